"""The engine: what is reused, what is rebuilt, and what a kill, a full disk or a second run leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moekd import files
from moekd.config import MoekdSettings
from moekd.errors import DataError, OutputError
from moekd.steps import Step, key_of, read_manifest, run_steps, status

# A pipeline that adds one to `data.seed` ten times, slowly if a file `slow` exists, and squares the sum.
STAGES = """
import time
from pathlib import Path

def count(settings, inputs, folder, **variant):
    log(folder, "count")
    progress = folder / "progress.txt"
    value = int(progress.read_text()) if progress.exists() else settings.data.seed
    while value < settings.data.seed + 10:
        if (Path(settings.run.folder) / "slow").exists():
            time.sleep(0.05)
        value += 1
        partial = progress.with_name("progress.txt.tmp")
        partial.write_text(str(value))
        partial.replace(progress)
    return {"value": value}

def square(settings, inputs, folder, **variant):
    log(folder, "square")
    value = int((inputs["count"] / "progress.txt").read_text())
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "square.txt").write_text(f"{value**2} {sorted(variant.items())}")
    return {}

def log(folder, name):
    with (folder.parent.parent / "calls.txt").open("a") as stream:
        print(name, file=stream)

def digests(settings):
    return [Path(settings.data.sources[0].path).read_text()]

def interrupted(settings, inputs, folder):
    raise KeyboardInterrupt
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path / "few_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path)
    yield settings_of(tmp_path / "runs")
    sys.modules.pop("few_stages", None)


def settings_of(folder: Path, **changes) -> MoekdSettings:
    tree = {
        "name": "few",
        "run": {"folder": str(folder)},
        "data": {"sources": [{"kind": "parquet", "path": str(folder.parent / "x.parquet")}]},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return MoekdSettings.model_validate(tree)


COUNT = Step("count", "few_stages:count", reads=("data",))
SQUARE = Step(
    "square",
    "few_stages:square",
    reads=("distill", "student.training"),
    needs={"count": COUNT},
    variant={"system": "student-moe", "student": "compressor-3mb", "seed": 0},
)
LABEL = "square[student-moe, compressor-3mb, seed 0]"


def calls(settings) -> list[str]:
    path = Path(settings.run.folder) / "calls.txt"
    return path.read_text().split() if path.exists() else []


# ------------------------------------------------------------------------------------------------ running


def test_runs_in_order_of_needs_and_reuses(settings, capsys):
    """A step is run after what it needs, once; the second run runs nothing and says so."""
    folders = run_steps([SQUARE], settings)
    assert list(folders) == ["count", LABEL]
    assert (folders[LABEL] / "deep" / "square.txt").read_text().startswith("100 [('seed', 0), ('student'")

    assert run_steps([SQUARE], settings) == folders
    assert calls(settings) == ["count", "square"]
    output = capsys.readouterr()
    assert "2 of 2 steps were finished before" in output.err
    assert output.out == ""


def test_equal_steps_are_one(settings):
    """A plan may build the same step for each of several seeds."""
    twin = Step("count", "few_stages:count", reads=("data",))
    assert list(run_steps([SQUARE, twin], settings)) == ["count", LABEL]
    assert calls(settings) == ["count", "square"]
    assert len(status([SQUARE, twin], settings)) == 2
    with pytest.raises(AssertionError, match="two different steps"):
        run_steps([SQUARE, Step("count", "few_stages:count")], settings)


def test_reuse_imports_no_stage(settings):
    """A finished run must not pay for importing the stages' libraries."""
    run_steps([SQUARE], settings)
    del sys.modules["few_stages"]
    run_steps([SQUARE], settings)
    assert "few_stages" not in sys.modules


def test_manifest_tells_how_the_folder_was_made(settings, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    folders = run_steps([SQUARE], settings)
    manifest = read_manifest(folders[LABEL])
    assert manifest["schema"] == 1
    assert manifest["stage"] == "square"
    assert manifest["key"] == folders[LABEL].name == key_of(SQUARE, settings)
    assert manifest["variant"] == {"system": "student-moe", "student": "compressor-3mb", "seed": 0}
    assert manifest["inputs"] == {"count": folders["count"].name}
    assert manifest["settings"]["distill.temperature"] == 10.0
    assert "data.seed" not in manifest["settings"]
    assert manifest["files"] == {
        "deep/square.txt": {
            "sha256": files.sha256_file(folders[LABEL] / "deep" / "square.txt"),
            "bytes": (folders[LABEL] / "deep" / "square.txt").stat().st_size,
        }
    }
    assert manifest["packages"]["numpy"]
    assert manifest["accelerator"] is None  # work that loads no torch runs on the processor wherever it runs
    assert read_manifest(folders["count"])["facts"] == {"value": 10}


def test_reading_a_folder_without_manifest_names_it(tmp_path):
    with pytest.raises(DataError, match=r"is no finished step: it has no manifest\.json"):
        read_manifest(tmp_path)


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("changes", "count_changes", "square_changes"),
    [
        ({"data__seed": 1}, True, True),  # an input's key is part of the key
        ({"distill__temperature": 2.0}, False, True),
        ({"mixture__k": 3}, False, False),  # not read by either
        ({"run__threads": 1}, False, False),
        ({"student__training": {"checkpoint_seconds": 5.0}}, False, False),  # NotInKey
        ({"student__training": {"epochs": 5}}, False, True),
    ],
)
def test_a_key_changes_with_its_own_settings_only(settings, changes, count_changes, square_changes):
    other = settings_of(Path(settings.run.folder), **changes)
    assert (key_of(COUNT, settings) != key_of(COUNT, other)) is count_changes
    assert (key_of(SQUARE, settings) != key_of(SQUARE, other)) is square_changes


def test_a_key_changes_with_version_variant_and_stage(settings):
    base = {"stage": "s", "run": "few_stages:count"}
    keys = [
        key_of(Step(**base), settings),
        key_of(Step(**base, version=2), settings),
        key_of(Step(**base, variant={"seed": 1}), settings),
        key_of(Step(**base | {"stage": "t"}), settings),
    ]
    assert len(set(keys)) == 4
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    assert key_of(Step(**base | {"run": "moved:count"}), settings) == keys[0]


def test_a_key_changes_with_external_files(settings, tmp_path):
    """The settings name a file; what it holds matters, too."""
    step = Step("data", "few_stages:count", external="few_stages:digests")
    (tmp_path / "x.parquet").write_text("one")
    before = key_of(step, settings)
    (tmp_path / "x.parquet").write_text("two")
    assert key_of(step, settings) != before


def test_a_known_file_is_not_read_again(tmp_path, monkeypatch):
    """10 GB of CSV are hashed once, and again only after they changed."""
    data, memory = tmp_path / "data.csv", tmp_path / "digests"
    data.write_text("func")
    reads = []
    monkeypatch.setattr(files, "sha256_file", lambda path: reads.append(path) or path.read_text())
    assert [files.sha256_remembered(data, memory) for _ in range(3)] == ["func"] * 3
    assert len(reads) == 1
    data.write_text("func,label")
    assert files.sha256_remembered(data, memory) == "func,label"
    next(memory.glob("*.json")).write_text("[broken")
    assert files.sha256_remembered(data, memory) == "func,label"
    assert len(reads) == 3


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("1"), r"progress\.txt is damaged: got 1 bytes, wanted 2; rebuilding"),
        (lambda path: path.write_text("99"), r"is damaged: its digest is not the one in manifest\.json"),
        (lambda path: path.unlink(), r"progress\.txt is missing; rebuilding"),
        (lambda path: (path.parent / "manifest.json").unlink(), r"it has no manifest\.json; rebuilding"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
    ],
    ids=["truncated", "changed", "lost", "no manifest", "broken manifest"],
)
def test_damage_is_told_and_rebuilt(settings, capsys, damage, message):
    """Only the damaged step is rebuilt: what was made from it when it was whole stays valid."""
    folders = run_steps([SQUARE], settings)
    damage(folders["count"] / "progress.txt")
    capsys.readouterr()

    assert run_steps([SQUARE], settings) == folders
    assert calls(settings) == ["count", "square", "count"]
    assert (folders["count"] / "progress.txt").read_text() == "10"
    assert re.search(message, capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------ kills


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_steps import SQUARE, run_steps, settings_of
run_steps([SQUARE], settings_of(Path(sys.argv[1]) / "runs"))
"""


def started_process(tmp_path: Path) -> subprocess.Popen:
    """Run the two steps in another process; returns once it is inside the first."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "slow").touch()
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("runs/count/*.part/progress.txt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the other process did not start"
        time.sleep(0.01)
    return process


def test_a_killed_run_continues(settings, tmp_path, capsys):
    """SIGKILL in the middle: the next run goes on from the checkpoint, and both attempts' seconds count."""
    with started_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    part = next(tmp_path.glob("runs/count/*.part"))
    begun = int((part / "progress.txt").read_text())
    assert 1 <= begun < 10
    assert [one.state for one in status([SQUARE], settings)] == ["partial", "missing"]
    (part / "progress.txt.tmp").write_text("half")
    (part / ".tmpx1Y2z3").write_text("half, of safetensors")

    (tmp_path / "runs" / "slow").unlink()
    folders = run_steps([SQUARE], settings)
    assert (folders["count"] / "progress.txt").read_text() == "10"
    assert sorted(path.name for path in folders["count"].iterdir()) == ["manifest.json", "progress.txt"]
    assert read_manifest(folders["count"])["seconds"] >= 0.05 * begun
    assert not part.exists()
    assert "count: continued in" in capsys.readouterr().err


def test_two_runs_do_not_share_a_step(settings, tmp_path):
    """The second run is refused while the first lives, and disturbs nothing."""
    with started_process(tmp_path) as process:
        with pytest.raises(OutputError, match=r"count is being worked on by another run .* wait for it, or"):
            run_steps([SQUARE], settings)
        (tmp_path / "runs" / "slow").unlink()
        process.wait(20)
        assert process.returncode == 0, process.stderr.read()
    run_steps([SQUARE], settings)
    assert calls(settings) == ["count", "square"]


def test_ctrl_c_keeps_the_work(settings):
    step = Step("interrupted", "few_stages:interrupted")
    with pytest.raises(KeyboardInterrupt):
        run_steps([step], settings)
    assert [one.state for one in status([step], settings)] == ["partial"]


# ------------------------------------------------------------------------------------------------ no writing


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KB, where mounting is permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FILLING = """
def write(settings, inputs, folder):
    (folder / "big.bin").write_bytes(bytes(100_000))

def save_tensors(settings, inputs, folder):
    import numpy
    from safetensors.numpy import save_file
    save_file({"weights": numpy.zeros(100_000)}, folder / "big.safetensors")

def raise_text(settings, inputs, folder):
    raise RuntimeError("I/O error: No space left on device (os error 28)")

def fail(settings, inputs, folder):
    raise RuntimeError("a defect")
"""


@pytest.fixture
def filling(tmp_path, monkeypatch):
    (tmp_path / "filling_stages.py").write_text(FILLING)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("filling_stages", None)


@pytest.mark.parametrize("function", ["write", "save_tensors"])
def test_full_disk(tiny_disk, filling, function):
    """Whichever library meets it, a full disk is told as such, and no finished folder appears."""
    step = Step("big", f"filling_stages:{function}")
    with pytest.raises(OutputError, match=r"the disk is full\. Free some space or .*run\.folder=PATH"):
        run_steps([step], settings_of(tiny_disk / "runs"))
    assert [path.suffix for path in (tiny_disk / "runs" / "big").iterdir() if path.is_dir()] == [".part"]


def test_full_disk_behind_a_library(tmp_path, filling):
    """Compiled libraries put the reason into their own errors' text; other errors stay what they are."""
    with pytest.raises(OutputError, match="the disk is full"):
        run_steps([Step("big", "filling_stages:raise_text")], settings_of(tmp_path / "runs"))
    with pytest.raises(RuntimeError, match="a defect"):
        run_steps([Step("big", "filling_stages:fail", version=2)], settings_of(tmp_path / "runs"))


def test_read_only_folder(tiny_disk, settings):
    """Nothing can be made there, but what is finished there can be used."""
    there = settings_of(tiny_disk / "runs")
    run_steps([COUNT], there)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    run_steps([COUNT], there)
    with pytest.raises(OutputError, match=r"cannot write .*square.*: the file system is read-only"):
        run_steps([SQUARE], there)


def test_no_permission(settings, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="no permission to write there"):
        run_steps([COUNT], settings)


def test_unreadable_input_is_not_blamed_on_the_output(tmp_path):
    """Only a refusal below the folder that is written concerns the output."""
    with pytest.raises(PermissionError), files.writing(tmp_path / "runs"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "input.csv"))


def test_run_folder_is_a_file(tmp_path, settings):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"run\.folder .*file is a file; choose a folder"):
        run_steps([COUNT], settings_of(tmp_path / "file"))


# ------------------------------------------------------------------------------------------------ status


def test_status_names_the_setting(settings):
    """`stale` says which setting changed; steps behind it say which input did."""
    assert [one.state for one in status([SQUARE], settings)] == ["missing", "missing"]
    run_steps([SQUARE], settings)
    assert [(one.state, one.label) for one in status([SQUARE], settings)] == [
        ("fresh", "count"),
        ("fresh", LABEL),
    ]
    other = settings_of(Path(settings.run.folder), data__seed=5)
    assert [(one.state, one.reasons) for one in status([SQUARE], other)] == [
        ("stale", ("data.seed: 0 -> 5",)),
        ("stale", ("input count changed",)),
    ]


def test_status_compares_with_the_closest_folder(settings):
    """Of several older folders the one with the fewest differences explains best."""
    folder = Path(settings.run.folder)
    run_steps([COUNT], settings)
    run_steps([COUNT], settings_of(folder, data__seed=5, data__split="time"))
    (found,) = status([COUNT], settings_of(folder, data__seed=5, data__split="commit"))
    assert found.reasons == ('data.split: "time" -> "commit"',)


def test_status_names_version_and_files(settings, tmp_path):
    (tmp_path / "x.parquet").write_text("one")
    step = {"stage": "count", "run": "few_stages:count", "external": "few_stages:digests"}
    run_steps([Step(**step)], settings)
    (tmp_path / "x.parquet").write_text("two")
    (found,) = status([Step(**step, version=2)], settings)
    assert found.reasons == ("code version: 1 -> 2", "input files changed")
