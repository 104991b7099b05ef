"""Which lines a change touches: from a unified diff, or from git since a revision."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUNK = re.compile(r"@@ -\d{1,9}(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_OCTAL = re.compile(rb"\\([0-7]{3}|[abfnrtv\"\\])")
_ESCAPES = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b'"': b'"',
    b"\\": b"\\",
}

#: Ranges of new line numbers, first and last inclusive; a deletion between lines n - 1 and n is (n - 0.5, n - 0.5).
#: None stands for the whole file.
Changed = tuple[tuple[float, float], ...] | None


def touches(changed: Changed, first_line: int, last_line: int) -> bool:
    """Whether a change touches the lines: changes one of them, or deletes lines between two of them."""
    return changed is None or any(low <= last_line and high >= first_line for low, high in changed)


def read_diff(text: str) -> dict[str, Changed]:
    """Return the changed lines of each file that exists after the change, by the path in its `+++` line.

    `a/` and `b/` in front of git's paths are removed. Renames and mode changes without hunks touch nothing.

    Raises:
        SettingsError: no unified diff, or one that ends within a hunk.
    """
    lines = text.split("\n")
    found: dict[str, list[tuple[float, float]]] = {}
    path: str | None = None
    row = 0
    while row < len(lines):
        line = lines[row]
        if line.startswith("--- ") and row + 1 < len(lines) and lines[row + 1].startswith("+++ "):
            path = _path(lines[row + 1][4:])
            if path is not None:
                found.setdefault(path, [])
            row += 2
            continue
        match = _HUNK.match(line)
        row += 1
        if match:
            changed, row = _hunk(lines, row, match)
            if path is not None:
                found[path] += changed
    if not found and text.strip() and not re.search(r"^(?:diff --git |\+\+\+ )", text, re.MULTILINE):
        raise SettingsError("the diff is no unified diff: there is no `+++ FILE` line in it; make it with `git diff`")
    return {name: tuple(changed) for name, changed in found.items()}


def _hunk(lines: Sequence[str], row: int, match: re.Match[str]) -> tuple[list[tuple[float, float]], int]:
    """Read the body of a hunk from `row`; returns its changes and the row behind it."""
    old, new = (int(count) if count is not None else 1 for count in (match[1], match[3]))
    number = int(match[2]) + (new == 0)  # with no new line the header names the one before
    changed: list[tuple[float, float]] = []
    while old > 0 or new > 0:
        if row == len(lines) or (row == len(lines) - 1 and not lines[row]):
            raise SettingsError("the diff is cut off within a hunk; make it again with `git diff`")
        kind = lines[row][:1]
        row += 1
        if kind == "+":
            changed.append((number, number))
            number, new = number + 1, new - 1
        elif kind == "-":
            changed.append((number - 0.5, number - 0.5))
            old -= 1
        elif kind in (" ", "", "\r"):
            number, old, new = number + 1, old - 1, new - 1
        elif kind != "\\":  # "\ No newline at end of file"
            raise SettingsError(f"the diff is damaged: a hunk holds the line {lines[row - 1][:60]!r}")
    return changed, row


def _path(text: str) -> str | None:
    text = text.rstrip("\r")
    if text.startswith('"') and text.rstrip().endswith('"') and len(text) > 1:
        raw = os.fsencode(text.rstrip()[1:-1])
        text = os.fsdecode(_OCTAL.sub(lambda m: _ESCAPES.get(m[1]) or bytes([int(m[1], 8) & 255]), raw))
    else:
        text = text.partition("\t")[0]  # a time stamp follows
    if text == "/dev/null":
        return None
    return text[2:] if text[:2] in ("a/", "b/") else text


def changed_since(revision: str, folder: Path) -> dict[str, Changed]:
    """Return the lines changed since this branch left `revision`, untracked files as a whole, by absolute path.

    Compares the working tree with the merge base, so that what happened on `revision` meanwhile is not counted.

    Raises:
        SettingsError: git is missing, the folder is in no repository, or the revision is unknown.
    """
    root = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", of=revision)
    start = commit.decode().strip()
    base = _git(folder, "merge-base", start, "HEAD", of=revision).decode().strip()
    # Prefixes are given because diff.noprefix and diff.mnemonicPrefix would change them.
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--unified=0", "--src-prefix=a/", "--dst-prefix=b/")
    text = os.fsdecode(_git(root, "diff", *plain, base, "--"))
    changed: dict[str, Changed] = {os.fspath(root / path): lines for path, lines in read_diff(text).items()}
    for name in _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        if name:
            changed[os.fspath(root / os.fsdecode(name))] = None
    return changed


def _git(folder: Path, *arguments: str, of: str = "") -> bytes:
    try:
        ended = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise SettingsError("--changed-since needs git, which is not installed or not on the PATH") from error
    if ended.returncode:
        said = os.fsdecode(ended.stderr).strip().splitlines()
        what = f"{of!r} is no revision that shares history with HEAD" if of else "git refused"
        raise SettingsError(f"--changed-since: {what} in {folder}{': ' + said[0] if said else ''}")
    return ended.stdout
