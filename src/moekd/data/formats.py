"""One reader for each kind of source: yields, for each record, the functions it holds.

What is wrong with a file as a whole is a DataError, what is wrong with a record stands in its place.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd.data.samples import binary_label, shown
from moekd.data.tally import Unusable
from moekd.data.text import normalise
from moekd.errors import DataError, MissingExtraError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import IO

    from moekd.config import Source
    from moekd.data.tally import Function
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

_FIELD_LIMIT = 1 << 26  # characters of one CSV field; the parser holds 4 bytes for each
_BATCH = 1024  # parquet rows in memory at a time


def _read_bigvul_csv(source: Source, where: str, required: Sequence[str]) -> Iterator[list[Function]]:
    """BigVul's own MSR_data_cleaned.csv, plain or gzipped: one record at a time, whatever its size.

    `func_before` of a record with `vul` 1 is vulnerable, its `func_after` is the fixed version; both are dropped
    where they differ in comments or white space only, because the label then stands for no change of code. With
    `vul` 0 the function was not touched by the fix, and gets no CWE: the record's is that of another function.
    """
    for number, row in _csv_rows(where, required=required):
        if isinstance(row, Unusable):
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
        if binary_label(row["vul"]) != 1:
            yield [common | {"func": row["func_before"], "label": row["vul"], "kind": "unchanged"}]
            continue
        common |= {"cwe": row["CWE ID"], "pair_id": index}
        before = common | {"func": row["func_before"], "label": 1, "kind": "vulnerable"}
        after = common | {"func": row["func_after"], "label": 0, "kind": "fixed"}
        if not row["func_after"]:
            yield [before | {"pair_id": None}]
        elif _same_code(row["func_before"], row["func_after"]):
            yield [Unusable("fix changes only comments or white space", broken=False)] * 2
        else:
            yield [before, after]


def _same_code(before: str, after: str) -> bool:
    return "".join(normalise(before).split()) == "".join(normalise(after).split())


def _csv_rows(where: str, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | Unusable]]:
    """Yield each record's number, from 1, and its values by column."""
    path = Path(where)
    with reading(path), _open_text(path) as stream, _csv_field_limit():
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
                    faulty = Unusable("wrong number of columns", f"{len(row)}, the header has {len(header)}")
        except csv.Error as error:
            raise DataError(
                f"{path}, row {number + 1} (line {rows.line_num}): {error}. The file is cut off inside a quoted "
                "field, or its quoting is damaged; copy it again"
            ) from error
        if faulty:  # held back: in the middle it is one bad record, at the end a file that was cut off
            raise DataError(f"{path}, row {number}: the last record is cut off ({faulty.detail}); copy the file again")


def _read_jsonl(source: Source, where: str, required: Sequence[str]) -> Iterator[list[Function]]:
    """JSON lines, plain or gzipped: one object a line."""
    path = Path(where)
    theirs = _their_names(source)
    seen: set[str] = set()
    with reading(path), _open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                yield []
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n") and number > 1:
                    raise DataError(f"{path}, row {number}: the last line is cut off; copy the file again") from error
                yield [Unusable("not JSON", str(error))]
                continue
            if not isinstance(values, dict):
                yield [Unusable("not a JSON object", f"got {shown(values)}")]
                continue
            seen.update(values)
            yield [{ours: values.get(name) for ours, name in theirs.items()}]
    if seen:  # at the end, because a record may leave out what it does not know
        _require_columns(path, required, sorted(seen))


def _read_parquet(source: Source, where: str, required: Sequence[str]) -> Iterator[list[Function]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(where)
    with reading(path):
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


def _read_hub(source: Source, where: str, required: Sequence[str]) -> Iterator[list[Function]]:
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


READERS: Mapping[str, Callable[[Source, str, Sequence[str]], Iterator[list[Function]]]] = {
    "bigvul-csv": _read_bigvul_csv,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "hub": _read_hub,
}


# Columns and files


def check_columns(source: Source) -> None:
    """Refuse a mapping of columns that means nothing."""
    if source.kind == "bigvul-csv" and source.columns:
        raise SettingsError("data.sources.columns: BigVul's own CSV has fixed columns; leave `columns` out")
    for name in source.columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(COLUMNS)}"
            raise SettingsError(f"data.sources.columns: unknown column {name!r}{hint}")


def _their_names(source: Source) -> dict[str, str]:
    return {name: source.columns.get(name, name) for name in COLUMNS}


def required_columns(source: Source, task: TaskKind) -> tuple[str, ...]:
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
def reading(path: Path) -> Iterator[None]:
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
    """Open as UTF-8, gunzipped if so named; bytes that are none become lone surrogates, which `samples` drops."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


@contextmanager
def _csv_field_limit() -> Iterator[None]:
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)
