"""Files that are either whole or absent: atomic writes, digests, arrays without pickles."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0)
        if reason is None or _elsewhere(error, path):
            raise
        raise OutputError(
            f"cannot write {path}: {reason}. Free some space or choose another folder with "
            "--set run.folder=PATH; finished stages are kept and the next run continues from them."
        ) from error


def _elsewhere(error: OSError, path: Path) -> bool:
    """Whether a permission is missing for another place than `path`, such as an input file."""
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, str):
        return False
    refused = Path(error.filename).absolute()
    return not (refused.is_relative_to(path.absolute()) or path.absolute().is_relative_to(refused))


def require_folder(path: Path) -> None:
    """Refuse a place where no folder can be, before there is anything to write into it.

    Raises:
        OutputError: it is a file, or lies under one.
    """
    for place in (path, *path.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise OutputError(f"cannot write into {path}: {place} is a file; name a folder")
            return


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds all of it or what it held before, also after a power cut."""
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON; NaN is refused because other readers would refuse it."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write numeric and fixed-width text arrays as npz (no pickled objects)."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_remembered(path: Path, memory: Path) -> str:
    """As `sha256_file`, but a file of the same place, size and time of change is not read again.

    Args:
        memory: folder of what is remembered, one small file for each path. Nothing breaks if it is lost.
    """
    place, stat = str(path.resolve()), path.stat()
    seen = {"path": place, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = memory / f"{sha256_text(place)[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(note)
        if all(known[name] == value for name, value in seen.items()):
            return str(known["sha256"])
    digest = sha256_file(path)
    with suppress(OSError, OutputError):
        write_json(note, {**seen, "sha256": digest})
    return digest


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
