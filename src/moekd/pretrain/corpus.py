"""The functions of C and C++ sources: found in folders, archives or parquet columns, cleaned, near-duplicates removed.

Nothing disappears silently: every function that was found is kept or counted under the reason for which it is not.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from moekd import console, syntax
from moekd.data.duplicates import Union, join_near_duplicates
from moekd.data.readers import expand
from moekd.data.text import digest, normalise, structural_fault
from moekd.errors import DataError
from moekd.files import sha256_file, sha256_remembered, sha256_text, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moekd.config import Corpus, PretrainSettings

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".zip")
_FILE_BYTES = 4_000_000  # larger files are tables written as code


@dataclass
class Found:
    """Functions of one folder, archive or table.

    Attributes:
        functions: normalised texts.
        files: for each function the file it comes from, as a path inside the source.
        counts: files and functions seen, and functions dropped, by reason.
    """

    functions: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def collect(settings: PretrainSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Stage: `functions.parquet` (func, file, source, held_out) and `report.json`, counts by source and by reason.

    Raises:
        DataError: a path is missing, or no C or C++ function is found.
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table

    corpus = settings.corpus
    sources = _sources(corpus)
    found = [one for _, one in _read_all(sources, corpus)]
    report: dict[str, Any] = {"sources": {}, "dropped": Counter()}
    seen: set[str] = set()
    texts: list[str] = []
    files: list[str] = []
    origins: list[str] = []
    for path, one in zip(sources, found, strict=True):
        report["sources"].setdefault(path.name, Counter()).update(one.counts)  # two folders may hold one name
        for func, file in zip(one.functions, one.files, strict=True):
            key = digest(func)
            if key in seen:
                report["dropped"]["exact duplicate"] += 1
                continue
            seen.add(key)
            texts.append(func)
            files.append(file)
            origins.append(path.name)
    if not texts:
        counts = sum((one.counts for one in found), Counter[str]())
        seen_there = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if name != "bytes")
        raise DataError(
            f"no C or C++ function in {', '.join(corpus.paths)} ({seen_there or 'no file of these languages'}): looked "
            f"for {' '.join(sorted(syntax.SUFFIXES))} files in folders and archives, and for the column corpus.column "
            "in parquet files"
        )
    keep, dropped = _distinct(texts, _excluded(corpus), corpus.near_duplicate_jaccard)
    report["dropped"].update(dropped)
    held_out = [_is_held_out(origins[i], files[i], corpus.held_out) for i in keep]
    table = pa.table(
        {
            "func": [texts[i] for i in keep],
            "file": [files[i] for i in keep],
            "source": [origins[i] for i in keep],
            "held_out": held_out,
        }
    )
    with writing(folder):
        write_table(table, folder / "functions.parquet", compression="zstd")
    kept = Counter(origins[i] for i in keep)
    for name, counts in report["sources"].items():
        counts["functions kept"] = kept[name]
    report |= {"kept": len(keep), "held out": sum(held_out), "characters": sum(len(texts[i]) for i in keep)}
    write_json(folder / "report.json", report)
    return {key: report[key] for key in ("kept", "held out", "characters", "dropped")}


def source_digests(settings: PretrainSettings) -> list[str]:
    """Return one digest for each source, of its content. Raises DataError if a path is missing."""
    remembered = Path(settings.run.folder) / "digests"
    digests = []
    for path in [*_sources(settings.corpus), *(_existing(name) for name in settings.corpus.exclude)]:
        if path.is_dir():
            listing = "\n".join(f"{sha256_file(file)} {file.relative_to(path)}" for file in _code_files(path))
            digests.append(sha256_text(listing))
        else:
            digests.append(sha256_remembered(path, remembered))
    return digests


# Sources


def _sources(corpus: Corpus) -> list[Path]:
    """The archives and tables to read; a folder stands for its archives and its code files."""
    sources: list[Path] = []
    for name in corpus.paths:
        path = _existing(name)
        if path.is_dir():
            sources += sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(_ARCHIVES))
            if next(_code_files(path), None) is not None:
                sources.append(path)
        elif path.name.endswith((*_ARCHIVES, ".parquet")):
            sources.append(path)
        else:
            raise DataError(
                f"the source {name!r} of the corpus is neither a folder nor an archive ({' '.join(_ARCHIVES)}) nor a "
                ".parquet file; of single C files name their folder"
            )
    if not sources:
        raise DataError(f"neither C or C++ files nor archives ({' '.join(_ARCHIVES)}) in {', '.join(corpus.paths)}")
    return sources


def _existing(name: str) -> Path:
    path = expand(name)
    if not path.exists():
        raise DataError(f"the source {name!r} of the corpus does not exist (looked at {path})")
    return path


def _read_all(sources: list[Path], corpus: Corpus) -> Iterator[tuple[Path, Found]]:
    """Read the sources in their order, several at a time where asked for."""
    with console.bar(len(sources), "sources of the corpus") as advance:
        if corpus.workers == 1 or len(sources) == 1:
            for path in sources:
                yield path, _read(path, corpus)
                advance(1)
            return
        with ProcessPoolExecutor(corpus.workers) as pool:
            for path, found in zip(sources, pool.map(_read, sources, [corpus] * len(sources)), strict=True):
                yield path, found
                advance(1)


def _read(path: Path, corpus: Corpus) -> Found:
    if path.suffix == ".parquet":
        return _read_table(path, corpus)
    found = Found()
    files = _in_folder(path) if path.is_dir() else _in_zip(path) if path.suffix == ".zip" else _in_tar(path)
    try:
        for name, source in files:
            _take_file(name, source, found, corpus)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        what = "" if path.is_dir() else " as an archive"  # RuntimeError: an encrypted zip, or packed in an unknown way
        raise DataError(f"{path} cannot be read{what}: {error}; remove it or fetch it again") from error
    return found


def _read_table(path: Path, corpus: Corpus) -> Found:
    found = Found()
    for row, func in enumerate(_column(path, corpus.column)):
        found.counts["functions"] += 1
        _take_function(func or "", f"row {row}", found, corpus)
    return found


def _column(path: Path, column: str) -> list[str | None]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(names)}. Set corpus.column")
        return file.read([column]).column(0).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no parquet file: {error}") from error


def _code_files(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in sorted(folder.rglob("*"))
        if (path.suffix.lower() in syntax.SUFFIXES) and path.is_file() and not path.is_symlink()
    )


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in _code_files(folder):
        yield str(path.relative_to(folder)), path.read_bytes()


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error, also behind whole ones: the library takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # neither nothing nor the zeros that end an archive
                raise tarfile.ReadError(str(error)) from error
            raise


def _in_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, mode="r|*", tarinfo=_Member) as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in syntax.SUFFIXES:
                stream = archive.extractfile(member)
                assert stream is not None  # it is a file
                yield member.name, stream.read(_FILE_BYTES + 1)


def _in_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and PurePosixPath(member.filename).suffix.lower() in syntax.SUFFIXES:
                with archive.open(member) as stream:
                    yield member.filename, stream.read(_FILE_BYTES + 1)


# Functions


def _take_file(name: str, source: bytes, found: Found, corpus: Corpus) -> None:
    found.counts["files"] += 1
    if len(source) > _FILE_BYTES:
        found.counts["files dropped: too large"] += 1
        return
    if b"\0" in source:
        found.counts["files dropped: binary"] += 1
        return
    language = syntax.language_of(PurePosixPath(name), source)
    if language is None:
        return
    found.counts["bytes"] += len(source)
    for function in syntax.functions(source, language):
        found.counts["functions"] += 1
        if not function.whole:
            found.counts["functions dropped: not understood by the parser"] += 1
            continue
        _take_function(source[function.start : function.end].decode("utf-8", "replace"), name, found, corpus)


def _take_function(text: str, file: str, found: Found, corpus: Corpus) -> None:
    func = normalise(text) if len(text) <= 4 * corpus.max_characters else text
    if len(func) < corpus.min_characters:
        reason = "too short"
    elif len(func) > corpus.max_characters:
        reason = "too long"
    elif fault := structural_fault(func):
        reason = fault
    else:
        found.functions.append(func)
        found.files.append(file)
        return
    found.counts[f"functions dropped: {reason}"] += 1


def _excluded(corpus: Corpus) -> list[str]:
    """Distinct normalised texts of the tables whose functions must not be in the corpus."""
    texts = {normalise(func) for name in corpus.exclude for func in _column(_existing(name), "func") if func}
    return sorted(text for text in texts if len(text) <= corpus.max_characters)


def _distinct(texts: list[str], excluded: list[str], jaccard: float) -> tuple[list[int], Counter[str]]:
    """Keep the first of each set of near-duplicates, and none of a set that holds an excluded text."""
    union = Union(len(texts) + len(excluded))
    with console.bar(len(texts) + len(excluded), "near-duplicates") as advance:
        join_near_duplicates([*texts, *excluded], union, jaccard=jaccard, advance=advance)
    sets = union.sets()
    forbidden = set(sets[len(texts) :])
    keep: list[int] = []
    dropped: Counter[str] = Counter()
    for index, first in enumerate(sets[: len(texts)]):
        if first in forbidden:
            dropped["like an excluded function"] += 1
        elif first != index:
            dropped["near-duplicate"] += 1
        else:
            keep.append(index)
    return keep, dropped


def _is_held_out(source: str, file: str, share: float) -> bool:
    """By file, so that no function of a held-out file was trained on, whatever else the corpus holds."""
    drawn = int.from_bytes(hashlib.sha256(f"{source}\0{file}".encode()).digest()[:8], "big")
    return drawn < share * 2**64


def functions_of(folder: Path) -> tuple[list[str], list[bool]]:
    """Return the texts of a `collect` stage's folder and whether each is held out."""
    from pyarrow.parquet import read_table

    table = read_table(folder / "functions.parquet", columns=["func", "held_out"])
    return table.column("func").to_pylist(), table.column("held_out").to_pylist()
