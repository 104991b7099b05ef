"""Source files to samples, streamed. Nothing disappears silently: every function read is kept or dropped with a reason.

A broken record is dropped, counted and named by file and row. A broken file (cut off, a missing column, nothing
in it, more than a tenth of its records broken) is an error.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd.data.text import digest, normalise
from moekd.errors import DataError, MissingExtraError, SettingsError
from moekd.files import sha256_remembered, sha256_text
from moekd.records import PAIR_MARK, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import IO

    from moekd.config import MoekdSettings, Source
    from moekd.records import TaskKind

#: Columns a source may have; `func` and `label` are required, of pairs `other_func` too; others are None where absent.
COLUMNS = (
    "func",
    "other_func",
    "label",
    "row_id",
    "kind",
    "cwe",
    "cve",
    "project",
    "family",
    "commit_id",
    "date",
    "pair_id",
)

#: Columns that are read of the 36 of BigVul's MSR_data_cleaned.csv (Fan et al. 2020, doi:10.1145/3379597.3387501).
BIGVUL_COLUMNS = (
    "CVE ID",
    "CWE ID",
    "Publish Date",
    "commit_id",
    "func_after",
    "func_before",
    "project",
    "vul",
)

_NAMED = 20  # broken records that are named; the rest are counted
_BROKEN_SHARE = 0.1  # more than this share of broken records means a wrong column or coding, not broken rows
_FIELD_LIMIT = 1 << 26  # characters of one CSV field; the parser holds 4 bytes for each
_BATCH = 1024  # parquet rows in memory at a time

_CWE = re.compile(r"CWE-0*(\d+)", re.IGNORECASE)
_CVE_YEAR = re.compile(r"CVE-(\d{4})-", re.IGNORECASE)
_DATE = re.compile(r"\d{4}(?:-\d{2}-\d{2})?(?!\d)")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass
class Tally:
    """Where the functions that were read went: kept + the sum of `dropped` = `read`.

    Attributes:
        read: functions read. A vulnerable record of BigVul's CSV holds two: before and after its fix.
        dropped: functions dropped, by reason.
        broken: the first broken records as "file, row 17: what is wrong"; rows count from 1 without the header.
        notes: what was kept with a remark, such as a CWE without a number, by remark.
        classes: multi-class: the number of each class that was found, by its name, in order of first occurrence.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.read - self.dropped.total()


@dataclass(frozen=True)
class _Unusable:
    """Why a function is not kept; of a broken record, not only the reason but also the row is told, with `detail`."""

    reason: str
    detail: str = ""
    broken: bool = True


#: One function of a record: values by the names of COLUMNS, not checked yet; or why there is none.
_Function = dict[str, Any] | _Unusable


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
    _check_columns(source)
    where = str(expand(source.path or ""))
    dataset = dataset_name(source)
    row, broken, first, before = 0, 0, "", tally.read
    required = _required(source, task)
    for row, functions in enumerate(_READERS[source.kind](source, where, required), start=1):
        for function in functions:
            tally.read += 1
            sample = _sample(function, dataset, row, tally, task)
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
        with _reading(path):
            contents = [sha256_remembered(file, Path(settings.run.folder) / "digests") for file in files]
        digests.append(sha256_text(" ".join(contents)))
    return digests


# From a record's values to a sample


def _sample(values: _Function, dataset: str, row: int, tally: Tally, task: TaskKind) -> Sample | _Unusable:
    if isinstance(values, _Unusable):
        return values
    label = _class_of(values.get("label"), tally) if task == "multi-class" else _label(values.get("label"))
    if label is None:
        wanted = "no label" if task == "multi-class" else "label is neither 0 nor 1"
        return _Unusable(wanted, f"got {_shown(values.get('label'))}")
    texts = []
    for name in ("func", "other_func") if task == "pair" else ("func",):
        func = values.get(name)
        func = "" if _absent(func) else func
        if not isinstance(func, str):
            return _Unusable(f"{name} is not text", f"got {_shown(func)}")
        if not _encodes(func):
            return _Unusable("invalid UTF-8")
        texts.append(normalise(func.replace(PAIR_MARK, " ") if task == "pair" else func))
    project, cve, kind = (_text(values.get(name)) for name in ("project", "cve", "kind"))
    row_id = _text(values.get("row_id")) or str(row)
    pair = _text(values.get("pair_id"))
    return Sample(
        id=f"{dataset}:{row_id}" + (":fixed" if kind == "fixed" else ""),
        func=PAIR_MARK.join(texts),
        label=label,
        dataset=dataset,
        kind=kind,
        cwe=_cwe(values.get("cwe"), tally.notes),
        cve=cve,
        project=project,
        family=_text(values.get("family")) or project,
        commit=_text(values.get("commit_id")),
        date=_date(values.get("date"), cve),
        pair=pair and f"{dataset}:{pair}",
        digest=digest("".join(sorted(map(digest, texts)))) if task == "pair" else digest(texts[0]),
    )


def _class_of(value: Any, tally: Tally) -> int | None:
    """The number of a class's name, which may be a number itself; None for no name."""
    name = _text(value)
    return None if name is None else tally.classes.setdefault(name, len(tally.classes))


def _label(value: Any) -> int | None:
    if isinstance(value, str):
        return {"0": 0, "1": 1}.get(value.strip())
    return int(value) if value in (0, 1) else None


def _cwe(value: Any, notes: Counter[str]) -> str | None:
    """First listed CWE as "CWE-119"; None, with a note, for a text without a number ("NVD-CWE-noinfo")."""
    if isinstance(value, list):
        value = value[0] if value else None
    listed = _text(value)
    if listed is None:
        return None
    found = _CWE.search(listed)
    if found or listed.isdecimal():
        return sys.intern(f"CWE-{found[1] if found else int(listed)}")
    notes[f"no CWE number in {_shown(listed)}"] += 1
    return None


def _date(value: Any, cve: str | None) -> str | None:
    """The ISO date that the value starts with, else the CVE's year."""
    found = _DATE.match(_text(value) or "") or _CVE_YEAR.match(cve or "")
    return found[found.lastindex or 0] if found else None


def _text(value: Any) -> str | None:
    """A short value as text, or None if unknown; what is no UTF-8 is replaced, as nothing is learned from it."""
    if _absent(value):
        return None
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps
        value = int(value)
    return sys.intern(str(value).strip().encode("utf-8", "replace").decode()) or None


def _absent(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is pandas' mark for absent


def _encodes(text: str) -> bool:
    """Bytes that were no UTF-8 are lone surrogates in the decoded text, which no encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# One reader for each kind of source: yields, for each record, the functions it holds


def _read_bigvul_csv(source: Source, where: str, required: Sequence[str]) -> Iterator[list[_Function]]:
    """BigVul's own MSR_data_cleaned.csv, plain or gzipped: one record at a time, whatever its size.

    `func_before` of a record with `vul` 1 is vulnerable, its `func_after` is the fixed version; both are dropped
    where they differ in comments or white space only, because the label then stands for no change of code. With
    `vul` 0 the function was not touched by the fix, and gets no CWE: the record's is that of another function.
    """
    for number, row in _csv_rows(where, required=required):
        if isinstance(row, _Unusable):
            yield [row]
            continue
        index = row.get("") or str(number)  # the first column has no name; it is BigVul's index
        common = {
            "row_id": index,
            "cve": row["CVE ID"],
            "project": row["project"],
            "commit_id": row["commit_id"],
            "date": row["Publish Date"],
        }
        if _label(row["vul"]) != 1:
            yield [common | {"func": row["func_before"], "label": row["vul"], "kind": "unchanged"}]
            continue
        common |= {"cwe": row["CWE ID"], "pair_id": index}
        before = common | {"func": row["func_before"], "label": 1, "kind": "vulnerable"}
        after = common | {"func": row["func_after"], "label": 0, "kind": "fixed"}
        if not row["func_after"]:
            yield [before | {"pair_id": None}]
        elif _same_code(row["func_before"], row["func_after"]):
            yield [_Unusable("fix changes only comments or white space", broken=False)] * 2
        else:
            yield [before, after]


def _same_code(before: str, after: str) -> bool:
    return "".join(normalise(before).split()) == "".join(normalise(after).split())


def _csv_rows(where: str, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | _Unusable]]:
    """Yield each record's number, from 1, and its values by column."""
    path = Path(where)
    with _reading(path), _open_text(path) as stream, _csv_field_limit():
        # strict: a file that ends inside a quoted field is an error, not a last record.
        rows = csv.reader(stream, strict=True)
        number = 0
        try:
            header = next(rows, None)
            if header is None:
                raise DataError(f"{path} is empty; expected a header and records")
            _require_columns(path, required, header)
            faulty = None
            for number, row in enumerate(rows, start=1):
                if faulty:
                    yield number - 1, faulty
                    faulty = None
                if len(row) == len(header):
                    yield number, dict(zip(header, row, strict=True))
                else:
                    faulty = _Unusable("wrong number of columns", f"{len(row)}, the header has {len(header)}")
        except csv.Error as error:
            raise DataError(
                f"{path}, row {number + 1} (line {rows.line_num}): {error}. The file is cut off inside a quoted "
                "field, or its quoting is damaged; copy it again"
            ) from error
        if faulty:  # held back: in the middle it is one bad record, at the end a file that was cut off
            raise DataError(f"{path}, row {number}: the last record is cut off ({faulty.detail}); copy the file again")


def _read_jsonl(source: Source, where: str, required: Sequence[str]) -> Iterator[list[_Function]]:
    """JSON lines, plain or gzipped: one object a line."""
    path = Path(where)
    theirs = _their_names(source)
    seen: set[str] = set()
    with _reading(path), _open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                yield []
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n") and number > 1:
                    raise DataError(f"{path}, row {number}: the last line is cut off; copy the file again") from error
                yield [_Unusable("not JSON", str(error))]
                continue
            if not isinstance(values, dict):
                yield [_Unusable("not a JSON object", f"got {_shown(values)}")]
                continue
            seen.update(values)
            yield [{ours: values.get(name) for ours, name in theirs.items()}]
    if seen:  # at the end, because a record may leave out what it does not know
        _require_columns(path, required, sorted(seen))


def _read_parquet(source: Source, where: str, required: Sequence[str]) -> Iterator[list[_Function]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(where)
    with _reading(path):
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                _require_columns(path, required, names)
                theirs = {ours: name for ours, name in _their_names(source).items() if name in names}
                for batch in file.iter_batches(_BATCH, columns=sorted(set(theirs.values()))):
                    values = {ours: _column(batch.column(name)) for ours, name in theirs.items()}
                    for row in zip(*values.values(), strict=True):
                        yield [dict(zip(values, row, strict=True))]
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{path} is not a readable parquet file: {error}") from error


def _column(array: Any) -> list[Any]:
    """Values of one arrow column; texts are decoded here, since arrow does not check that they are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type):
        array = array.cast(pa.binary())
    elif pa.types.is_large_string(array.type):
        array = array.cast(pa.large_binary())
    return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in array.to_pylist()]


def _read_hub(source: Source, where: str, required: Sequence[str]) -> Iterator[list[_Function]]:
    """A Hugging Face data set by name, or a folder of its files."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(
            "reading a data set from the hub needs the package datasets: pip install 'moekd[hub]'"
        ) from error
    try:
        records = load_dataset(where, split=source.split, revision=source.revision)
    except (OSError, ValueError, DatasetsError) as error:  # not found, no network, no such split, bad file
        raise DataError(
            f"cannot load the data set {where!r}, split {source.split!r}: {error}. Check its name and the "
            'network, or download it and read its files with kind = "parquet" or "jsonl"'
        ) from error
    _require_columns(where, required, records.column_names)
    theirs = _their_names(source)
    for values in records:
        yield [{ours: values.get(name) for ours, name in theirs.items()}]


def _read_embedded(source: Source, tally: Tally) -> Iterator[Sample]:
    from moekd.data.embedded import generate

    for sample in generate(source.count, source.seed):
        tally.read += 1
        yield replace(sample, func=(text := normalise(sample.func)), digest=digest(text))


_READERS: Mapping[str, Callable[[Source, str, Sequence[str]], Iterator[list[_Function]]]] = {
    "bigvul-csv": _read_bigvul_csv,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "hub": _read_hub,
}


# Columns and files


def _check_columns(source: Source) -> None:
    if source.kind == "bigvul-csv" and source.columns:
        raise SettingsError("data.sources.columns: BigVul's own CSV has fixed columns; leave `columns` out")
    for name in source.columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(COLUMNS)}"
            raise SettingsError(f"data.sources.columns: unknown column {name!r}{hint}")


def _their_names(source: Source) -> dict[str, str]:
    return {name: source.columns.get(name, name) for name in COLUMNS}


def _required(source: Source, task: TaskKind) -> tuple[str, ...]:
    """Their names of the columns that must exist: function or functions, label, and every column that is mapped."""
    if source.kind == "bigvul-csv":
        return BIGVUL_COLUMNS
    names = _their_names(source)
    always = ("func", "other_func", "label") if task == "pair" else ("func", "label")
    return tuple(names[ours] for ours in COLUMNS if ours in always or ours in source.columns)


def _require_columns(where: str | Path, needed: Iterable[str], found: Iterable[str]) -> None:
    found = list(found)
    for name in needed:
        if name not in found:
            raise DataError(
                f"{where}: no column {name!r}; found {', '.join(map(repr, found[:40]))}. "
                "Map columns with data.sources.columns, ours = theirs"
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a file as a whole into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check data.sources.path") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is cut off or damaged inside its compression; copy it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _open_text(path: Path) -> IO[str]:
    """Open as UTF-8, gunzipped if so named; bytes that are none become lone surrogates, see `_encodes`."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


@contextmanager
def _csv_field_limit() -> Iterator[None]:
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)
