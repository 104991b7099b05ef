"""Answers for functions that a model has scored before: one SQLite file that several scans may share.

A row is keyed by the model and by the exact text that it read, so a stored answer is the one the model would give.
(The fingerprint of a finding ignores line breaks, which the model sees; it would not do as a key.) A cache that
cannot be used costs time, never a scan: the first trouble turns it off and is told once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.scan.model import Answer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

FILE = "scores-2.sqlite"  # the number is of the layout
_WAIT_SECONDS = 5.0  # for another scan's write to end
_AT_ONCE = 500  # keys of one query


def default_folder() -> Path | None:
    """Return the user's folder for caches of this program, as the platform has it; None for a user without a home.

    A folder for all users would not do: whoever writes scores there decides what others are told.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "moekd"


def key_of(text: str) -> bytes:
    """Return the key of a normalised function, 16 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class Cache:
    """Answers by text for one model.

    Attributes:
        trouble: why it is off; None while it works.
    """

    def __init__(self, folder: Path | None, model_digest: str) -> None:
        self.trouble: str | None = None
        self._model = bytes.fromhex(model_digest)
        self._folder = folder
        self._base: sqlite3.Connection | None = None
        if folder is not None:
            self._open(folder)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return what is known of the keys."""
        found: dict[bytes, Answer] = {}
        if self._base is None:
            return found
        import sqlite3

        try:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._base.execute(
                    f"SELECT text, margin, cut, kind, p_kind FROM scores WHERE model = ? AND text IN ({marks})",
                    (self._model, *part),
                )
                found.update(
                    (text, Answer(float(margin), bool(cut), kind, p_kind)) for text, margin, cut, kind, p_kind in rows
                )
        except (sqlite3.Error, TypeError, ValueError) as error:
            self._turn_off(error)
        return found

    def put(self, answers: Mapping[bytes, Answer]) -> None:
        """Remember answers by key, all of them or none."""
        if self._base is None or not answers:
            return
        import sqlite3

        try:
            with self._base:
                self._base.executemany(
                    "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (self._model, key, one.margin, int(one.cut), one.group, one.p_group)
                        for key, one in answers.items()
                    ],
                )
        except sqlite3.Error as error:  # a full disk among them
            self._turn_off(error)

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def _open(self, folder: Path) -> None:
        import sqlite3

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(folder / FILE, timeout=_WAIT_SECONDS)
            with self._base:
                self._base.execute(
                    "CREATE TABLE IF NOT EXISTS scores (model BLOB, text BLOB, margin REAL, cut INTEGER, "
                    "kind INTEGER, p_kind REAL, PRIMARY KEY (model, text)) WITHOUT ROWID"
                )
            self._base.execute("PRAGMA synchronous = OFF")  # a lost row is only computed again
        except (OSError, sqlite3.Error) as error:
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        self.trouble = f"the cache in {self._folder} is not used: {error}"
        self.close()
