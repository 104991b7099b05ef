"""Which files to scan: walks folders in order, honours ignore files, and counts whatever it leaves out."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.errors import SettingsError
from moekd.scan.findings import Counts, Note, Unread, printable
from moekd.syntax import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pathspec import GitIgnoreSpec

IGNORE_FILES = (".gitignore", ".moekdignore")  # in this order; the last pattern that matches decides

_Rules = tuple[tuple[str, "GitIgnoreSpec"], ...]  # folder and its patterns, outermost first


class Discovery:
    """Walks paths that a person named.

    Attributes:
        counts: files and folders left out, by why.
        unread: files and folders that cannot be looked into.
        notes: ignore patterns that make no sense.
    """

    def __init__(self, paths: Sequence[Path], *, root: Path) -> None:
        """Take files and folders; raises SettingsError if one does not exist. `root` is what shown paths start at."""
        self.root = root
        self.counts = Counts()
        self.unread: list[Unread] = []
        self.notes: list[Note] = []
        self._paths = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() follows links
        for given, path in zip(paths, self._paths, strict=True):
            name = printable(os.fspath(given))
            try:
                if not path.exists():
                    raise SettingsError(f"there is no file or folder {name}")
            except OSError as error:
                raise SettingsError(f"cannot look at {name}: {error.strerror}") from error

    def files(self) -> Iterator[Path]:
        """Yield each file once, absolute, folders sorted by name. A file that was named is not asked for its kind.

        Symbolic links inside folders are counted and not followed, so a loop of them does no harm.
        """
        seen: set[str] = set()  # needed only where one path may lie inside another
        for path in self._paths:
            for file in self._walk(path) if path.is_dir() else iter((path,)):
                if len(self._paths) > 1:
                    if os.fspath(file) in seen:
                        continue
                    seen.add(os.fspath(file))
                yield file

    def shown(self, path: Path) -> str:
        return shown(path, self.root)

    def _walk(self, top: Path) -> Iterator[Path]:
        stack: list[tuple[str, _Rules]] = [(os.fspath(top), self._rules_above(top))]
        while stack:
            folder, rules = stack.pop()
            entries = self._entries(folder)
            rules = self._with_rules_of(folder, rules, {entry.name for entry in entries})
            below: list[tuple[str, _Rules]] = []
            for entry in entries:
                if entry.is_symlink():
                    self.counts.links += 1
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name == ".git":
                        continue
                    if _ignored(entry.path + "/", rules):
                        self.counts.ignored += 1
                    else:
                        below.append((entry.path, rules))
                elif Path(entry.name).suffix.lower() not in SUFFIXES or not entry.is_file(follow_symlinks=False):
                    self.counts.other += 1
                elif _ignored(entry.path, rules):
                    self.counts.ignored += 1
                else:
                    yield Path(entry.path)
            stack += reversed(below)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.unread.append(Unread(self.shown(Path(folder)), f"folder: {error.strerror}"))
            return []

    def _rules_above(self, top: Path) -> _Rules:
        """Rules of the folders above, up to the root of the repository, if there is one."""
        above: list[Path] = []
        for folder in (top, *top.parents):
            above.append(folder)
            if (folder / ".git").exists():
                break
        else:
            return ()
        rules: _Rules = ()
        for folder in reversed(above[1:]):
            rules = self._with_rules_of(os.fspath(folder), rules, set(IGNORE_FILES))
        return () if _ignored(f"{top}/", rules) else rules  # an ignored folder that was named is meant

    def _with_rules_of(self, folder: str, rules: _Rules, names: set[str]) -> _Rules:
        from pathspec import GitIgnoreSpec

        lines: list[str] = []
        for name in IGNORE_FILES:
            if name in names:
                lines += self._usable_lines(Path(folder) / name)
        return (*rules, (folder, GitIgnoreSpec.from_lines(lines))) if lines else rules

    def _usable_lines(self, path: Path) -> list[str]:
        from pathspec import GitIgnoreSpec

        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return []
            lines = os.fsdecode(path.read_bytes()).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self.unread.append(Unread(self.shown(path), error.strerror or "cannot be read"))
            return []
        usable = []
        for number, line in enumerate(lines, start=1):
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError:
                self.notes.append(Note(self.shown(path), number, "ignore pattern not understood, it has no effect"))
            else:
                usable.append(line)
        return usable


def shown(path: Path, root: Path) -> str:
    """Return a path as reports show it: relative to `root` where inside, forward slashes; names are kept as they are.

    Outputs escape it each in their own way.
    """
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def _ignored(path: str, rules: _Rules) -> bool:
    """Whether the last pattern that matches, of the innermost folder that has one, excludes the path."""
    for folder, spec in reversed(rules):
        include = spec.check_file(path[len(folder.rstrip("/")) + 1 :].replace(os.sep, "/")).include
        if include is not None:
            return bool(include)
    return False
