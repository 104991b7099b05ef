"""Source files to samples, streamed. Nothing disappears silently: every function read is kept or dropped with a reason.

A broken record is dropped, counted and named by file and row. A broken file (cut off, a missing column, nothing
in it, more than a tenth of its records broken) is an error.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.data.formats import READERS, check_columns, reading, required_columns
from moekd.data.samples import sample_of
from moekd.data.tally import Tally
from moekd.data.text import digest, normalise
from moekd.errors import DataError, SettingsError
from moekd.files import sha256_remembered, sha256_text
from moekd.records import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moekd.config import MoekdSettings, Source
    from moekd.records import TaskKind

_NAMED = 20  # broken records that are named; the rest are counted
_BROKEN_SHARE = 0.1  # more than this share of broken records means a wrong column or coding, not broken rows
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def read(source: Source, tally: Tally, task: TaskKind = "binary") -> Iterator[Sample]:
    """Yield the functions of one source, normalised, counting into `tally` what is read and what is dropped.

    Args:
        task: what the label of a record is: 0 or 1, of a function or of a pair, or the name of a class, which gets
            the next number of `tally.classes`.
    Raises:
        DataError: the source is missing, unreadable, cut off or empty, lacks a column, or more than a tenth of
            its records is broken. Names the file and, where there is one, the row.
        SettingsError: `path` uses an environment variable that is not set, or `columns` an unknown column.
        MissingExtraError: kind "hub" without the package `datasets`.
    """
    if source.kind == "embedded":
        yield from _read_embedded(source, tally)
        return
    check_columns(source)
    where = str(expand(source.path or ""))
    dataset = dataset_name(source)
    row, broken, first, before = 0, 0, "", tally.read
    required = required_columns(source, task)
    for row, functions in enumerate(READERS[source.kind](source, where, required), start=1):
        for function in functions:
            tally.read += 1
            sample = sample_of(function, dataset, row, tally, task)
            if isinstance(sample, Sample):
                yield sample
                continue
            tally.dropped[sample.reason] += 1
            if sample.broken:
                broken += 1
                named = f"{where}, row {row}: {sample.reason}{sample.detail and f' ({sample.detail})'}"
                first = first or named
                if len(tally.broken) < _NAMED:
                    tally.broken.append(named)
    if tally.read == before:
        raise DataError(f"{where} holds no records; expected at least one function")
    if broken > _BROKEN_SHARE * row:
        raise DataError(
            f"{where}: {broken:,} of {row:,} records are broken; the first is {first}. "
            "Check the file, and data.sources.columns if its columns have other names"
        )


def dataset_name(source: Source) -> str:
    """Return the data set's label in ids and reports: `name`, else the stem of the path."""
    if source.name:
        return source.name
    if source.kind == "embedded":
        return "embedded"
    return Path(source.path or "").name.removesuffix(".gz").rsplit(".", 1)[0]


def expand(path: str) -> Path:
    """Replace `$NAME`, `${NAME}` and a leading `~`; a variable that is not set raises SettingsError."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise SettingsError(f"data.sources: path {path!r} needs the environment variable {name}, which is not set")
        return os.environ[name]

    return Path(_VARIABLE.sub(value, path)).expanduser()


def source_digests(settings: MoekdSettings) -> list[str]:
    """Return one digest for each source: of the file's content, or of the parameters where there is no file.

    Raises DataError if a file is missing.
    """
    from moekd.data.embedded import fingerprint

    digests = []
    for source in settings.data.sources:
        path = expand(source.path or "")
        if source.kind == "embedded" or (source.kind == "hub" and not path.is_dir()):
            generator = fingerprint() if source.kind == "embedded" else ""
            digests.append(sha256_text(source.model_dump_json() + generator))
            continue
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        with reading(path):
            contents = [sha256_remembered(file, Path(settings.run.folder) / "digests") for file in files]
        digests.append(sha256_text(" ".join(contents)))
    return digests


def _read_embedded(source: Source, tally: Tally) -> Iterator[Sample]:
    from moekd.data.embedded import generate

    for sample in generate(source.count, source.seed):
        tally.read += 1
        yield replace(sample, func=(text := normalise(sample.func)), digest=digest(text))
