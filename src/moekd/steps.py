"""The engine under the pipeline: steps cached by what they were given, resumable at any moment.

A step's work happens in `<run.folder>/<stage>/<key>.part`. Its manifest is written last, with the digest of
every file, and then the folder loses its `.part`: a folder without that suffix is finished or damaged, never
half done. The key is a digest of all that can change the result: equal keys mean equal work, which is reused.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moekd import console, numerics
from moekd.errors import DataError, OutputError
from moekd.files import read_json, sha256_file, sha256_text, write_json, writing
from moekd.settings_loading import key_settings

if TYPE_CHECKING:
    from moekd.config import RootSettings

MANIFEST = "manifest.json"
SCHEMA = 1
_ATTEMPTS = "attempts.json"  # in `.part` only: seconds of earlier attempts, and when this one started
_PACKAGES = (
    "accelerate",
    "moekd",
    "numpy",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True, eq=False)
class Step:
    """One cached piece of work: a stage, or one variant of it such as a student of one seed."""

    stage: str  # name of the folder under run.folder
    run: str  # "module:function", imported only when it must run: reuse needs no model library
    reads: tuple[str, ...] = ()  # dotted sections of the settings that affect the result
    needs: Mapping[str, Step] = field(default_factory=dict)  # name under which the function gets the folder
    variant: Mapping[str, str | int] = field(default_factory=dict)  # given to the function by keyword
    version: int = 1  # raise it when the code changes the result
    external: str | None = None  # "module:function", (settings) -> digests of what lies outside the settings

    @property
    def label(self) -> str:
        """Name for people, as in `student[student-moe, compressor-3mb, seed 0]`."""
        parts = [f"{name} {value}" if isinstance(value, int) else value for name, value in self.variant.items()]
        return f"{self.stage}[{', '.join(parts)}]" if parts else self.stage


@dataclass(frozen=True)
class Status:
    """How one step stands.

    `fresh` is finished, `partial` was begun, `stale` was finished with other settings, `missing` never ran.
    """

    label: str
    state: Literal["fresh", "partial", "stale", "missing"]
    reasons: tuple[str, ...]  # of a stale step: what changed; of any other: empty
    folder: Path


# ------------------------------------------------------------------------------------------------ keys


def key_of(step: Step, settings: RootSettings) -> str:
    """Return the key of a step, 16 hexadecimal digits. Raises DataError if an external input is missing."""
    return _identities([step], settings)[step]["key"]


def _identities(steps: Sequence[Step], settings: RootSettings) -> dict[Step, dict[str, Any]]:
    """Return what can change the result of each step and of all that they need, in an order that can be run.

    JSON-able: the key is the digest of an identity, and the manifest shows it.
    """
    identities: dict[Step, dict[str, Any]] = {}

    def visit(step: Step) -> None:
        if step in identities:
            return
        for needed in step.needs.values():
            visit(needed)
        identity = {
            "stage": step.stage,
            "version": step.version,
            "variant": dict(step.variant),
            "settings": key_settings(settings, step.reads),
            "inputs": {name: identities[needed]["key"] for name, needed in step.needs.items()},
            "external": _imported(step.external)(settings) if step.external else [],
        }
        key = sha256_text(json.dumps(identity, sort_keys=True))[:16]
        identities[step] = {"key": key, **identity}

    for step in steps:
        visit(step)
    keys = {(step.label, identity["key"]) for step, identity in identities.items()}
    assert len(keys) == len({label for label, _ in keys}), "two different steps of the plan have one label"
    return identities


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------------------ running


def run_steps(steps: Sequence[Step], settings: RootSettings) -> dict[str, Path]:
    """Bring each step, and all that it needs, to its finished folder; returns the folders by label.

    Finished steps are checked by the digests of their files and reused; a damaged one is told and rebuilt.
    Begun ones are continued from what their stage left in the folder.

    Raises:
        OutputError: the folder cannot be written, or another run works on the same step.
        MoekdError: what the stages raise; their work so far is kept.
    """
    root = Path(settings.run.folder)
    if root.exists() and not root.is_dir():
        raise OutputError(f"run.folder {root} is a file; choose a folder with --set run.folder=PATH")
    identities = _identities(steps, settings)
    folders = {step: _folder(identity, settings) for step, identity in identities.items()}
    finished: dict[str, Path] = {}
    reused = 0
    for step, identity in identities.items():
        if step.label in finished:  # the plan may make an equal step twice
            continue
        if _is_whole(folders[step], step):
            reused += 1
        else:
            _build(step, identity, settings, folders)
        finished[step.label] = folders[step]
    if reused:
        console.say(f"{reused} of {len(finished)} steps were finished before and are reused")
    return finished


def folder_of(step: Step, settings: RootSettings) -> Path:
    """Return where the step's finished work lies, or will lie."""
    return _folder(_identities([step], settings)[step], settings)


def is_finished(step: Step, settings: RootSettings) -> bool:
    """Whether the step's work is finished and undamaged."""
    return _is_whole(folder_of(step, settings), step, quiet=True)


def help_with(step: Step, settings: RootSettings) -> None:
    """Run the step's function in this process beside the one that builds the step, in its `.part` folder.

    For training in several processes; the function must know that it does not run in the first of them.
    """
    inputs = {name: folder_of(needed, settings) for name, needed in step.needs.items()}
    _imported(step.run)(settings, inputs, _part(folder_of(step, settings)), **step.variant)


def _folder(identity: Mapping[str, Any], settings: RootSettings) -> Path:
    return Path(settings.run.folder) / identity["stage"] / identity["key"]


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _build(step: Step, identity: dict[str, Any], settings: RootSettings, folders: Mapping[Step, Path]) -> None:
    """Run or continue one step in its `.part` folder, under its lock, and finish the folder."""
    folder = folders[step]
    part = _part(folder)
    with writing(part), _locked(folder.with_name(f"{folder.name}.lock"), step):
        if _is_whole(folder, step, quiet=True):  # another run finished it before we held the lock
            return
        _remove(folder)
        console.say(f"{step.label}: {'continued' if part.exists() else 'started'} in {part}")
        part.mkdir(exist_ok=True)
        seconds_before, started = _begin_attempt(part)
        inputs = {name: folders[needed] for name, needed in step.needs.items()}
        with _full_disk_named(part):
            facts = _imported(step.run)(settings, inputs, part, **step.variant)
        seconds = seconds_before + time.time() - started
        _write_manifest(part, identity, seconds, facts)
        (part / _ATTEMPTS).unlink()
        part.rename(folder)
        console.say(f"{step.label}: done in {seconds:.1f} s")


@contextmanager
def _locked(path: Path, step: Step) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends. The file stays: removing it would race."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{step.label} is being worked on by another run (lock {path}); "
                "wait for it, or choose another folder with --set run.folder=PATH"
            ) from error
        yield


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Recognise a full disk behind errors of compiled libraries, which carry its name in their text only."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _begin_attempt(part: Path) -> tuple[float, float]:
    """Return the seconds of earlier attempts and the time now, and note both for the next attempt.

    A killed attempt counts up to the last file it wrote: what came after is lost and done again.
    """
    path = part / _ATTEMPTS
    seconds = 0.0
    if path.exists():
        last = read_json(path)
        written = max(file.stat().st_mtime for file in part.rglob("*"))
        seconds = last["seconds"] + max(0.0, written - last["started"])
    started = time.time()
    write_json(path, {"seconds": seconds, "started": started})
    return seconds, started


def _write_manifest(part: Path, identity: dict[str, Any], seconds: float, facts: Any) -> None:
    for leftover in (*part.rglob("*.tmp"), *part.rglob(".tmp*")):  # of a write, ours or safetensors', that was killed
        leftover.unlink()
    paths = sorted(path for path in part.rglob("*") if path.is_file())
    files = {
        str(path.relative_to(part)): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
        if path not in (part / MANIFEST, part / _ATTEMPTS)
    }
    manifest = {
        "schema": SCHEMA,
        **identity,
        "seconds": round(seconds, 3),
        "facts": facts,
        "packages": package_versions(),
        "python": platform.python_version(),
        "commit": commit(),
        "accelerator": numerics.accelerator() if "torch" in sys.modules else None,  # work without torch uses none
        "files": files,
    }
    write_json(part / MANIFEST, manifest)


@cache
def package_versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@cache
def commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "-dirty" if it is changed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# ------------------------------------------------------------------------------------------------ finished


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished step.

    Raises:
        DataError: the manifest is missing or no JSON.
    """
    try:
        return read_json(folder / MANIFEST)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no finished step: it has no {MANIFEST}") from error
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST} is damaged: {error}") from error


def _is_whole(folder: Path, step: Step, *, quiet: bool = False) -> bool:
    """Whether the step is finished and each file is as the manifest has it; tells damage unless `quiet`."""
    if not folder.is_dir():
        return False
    problem = _damage(folder)
    if problem and not quiet:
        console.say(f"{step.label}: {problem}; rebuilding")
    return not problem


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a finished folder, one sentence; None if nothing is."""
    try:
        files = read_manifest(folder)["files"]
    except DataError as error:
        return str(error)
    for name, wanted in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != wanted["bytes"]:
                return f"{path} is damaged: got {size:,} bytes, wanted {wanted['bytes']:,}"
            if sha256_file(path) != wanted["sha256"]:
                return f"{path} is damaged: its digest is not the one in {MANIFEST}"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return None


def _remove(folder: Path) -> None:
    """Remove a damaged folder, its manifest first: killed in between, it is still known as damaged."""
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------ status


def status(steps: Sequence[Step], settings: RootSettings) -> list[Status]:
    """Tell how each step stands, and which setting made the stale ones stale. Trusts the manifests."""
    identities = _identities(steps, settings)
    by_label = {step.label: (step, identity) for step, identity in identities.items()}
    return [_status(step, identity, _folder(identity, settings)) for step, identity in by_label.values()]


def _status(step: Step, identity: Mapping[str, Any], folder: Path) -> Status:
    if (folder / MANIFEST).exists():
        return Status(step.label, "fresh", (), folder)
    if _part(folder).exists():
        return Status(step.label, "partial", (), folder)
    differences = [_differences(old, identity) for old in _finished(folder.parent, identity["variant"])]
    if not differences:
        return Status(step.label, "missing", (), folder)
    return Status(step.label, "stale", min(differences, key=len), folder)


def _finished(stage: Path, variant: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the manifests of the finished folders of a stage with this variant, the newest first."""
    paths = [path for path in stage.glob(f"*/{MANIFEST}") if path.parent.suffix != ".part"]
    paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    manifests = []
    for path in paths:
        with suppress(DataError):
            manifests.append(read_manifest(path.parent))
    return [one for one in manifests if one["schema"] == SCHEMA and one["variant"] == variant]


def _differences(old: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Say in which ways a step's identity changed, one short phrase each."""
    before, after = old["settings"], now["settings"]
    changed = [
        f"{name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in dict.fromkeys([*after, *before])
        if _shown(before, name) != _shown(after, name)
    ]
    if old["version"] != now["version"]:
        changed.append(f"code version: {old['version']} -> {now['version']}")
    if old["external"] != now["external"]:
        changed.append("input files changed")
    changed += [f"input {name} changed" for name, key in now["inputs"].items() if old["inputs"].get(name) != key]
    return tuple(changed)


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "absent"
