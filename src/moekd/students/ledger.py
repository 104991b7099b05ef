"""What was measured of candidate students, one JSON line each, so that a search never trains one twice."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moekd import console
from moekd.errors import DataError
from moekd.files import writing
from moekd.processes import end_with
from moekd.students.space import Configuration

#: Trains and measures one candidate: names of measures, such as `accuracy`, and their values.
Evaluation = Callable[[Configuration], Mapping[str, float]]


@dataclass(frozen=True)
class Evaluated:
    """A candidate and what was measured of it."""

    configuration: Configuration
    values: Mapping[str, float]


def evaluate_all(
    configurations: Sequence[Configuration],
    evaluation: Evaluation,
    path: Path,
    *,
    about: Mapping[str, Any],
    workers: int = 1,
    label: str = "candidates",
) -> list[Evaluated]:
    """Evaluate the candidates that the ledger at `path` lacks, and return all of them in their order.

    Each result is written as it comes: after a stop the same call continues.

    Args:
        evaluation: must not depend on the order of calls; for several workers it must be picklable.
        about: what results depend on besides the configuration (data, teacher, seed, epochs); the ledger's first line.
        workers: processes.
        label: what is evaluated, for the progress.
    Raises:
        DataError: the ledger is of something else, or is damaged.
        OutputError: it cannot be written.
    """
    from joblib import Parallel, delayed

    known = {one.configuration: one for one in _known(path, about)}
    missing = [one for one in dict.fromkeys(configurations) if one not in known]
    if not missing:
        return [known[one] for one in configurations]
    with _quiet_replacement(), console.bar(len(missing), label) as advance:
        results = Parallel(n_jobs=workers, return_as="generator_unordered")(
            delayed(_evaluated)(evaluation, one, os.getpid()) for one in missing
        )
        for one in results:
            _append(path, {"configuration": asdict(one.configuration), "values": dict(one.values)})
            known[one.configuration] = one
            advance(1)
    return [known[one] for one in configurations]


@contextmanager
def _quiet_replacement() -> Iterator[None]:
    """No warning when joblib replaces a worker that has grown by 300 MB, which training does without leaking.

    joblib warns in the thread that hands out the work. Where warnings are errors that ends the thread, and whoever
    waits for results waits forever.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        yield


def read_ledger(path: Path) -> list[Evaluated]:
    """Return all candidates of a ledger. A last line that was cut off by a stop is left out.

    Raises:
        DataError: the file is missing, no ledger, or damaged before its last line; names the line.
    """
    return list(_rows(path))[1:]


def _known(path: Path, about: Mapping[str, Any]) -> list[Evaluated]:
    """The ledger's candidates; a new ledger gets its first line."""
    if not path.exists():
        _append(path, {"about": dict(about)})
        return []
    first, *rest = _rows(path)
    if first != json.loads(json.dumps(about)):
        raise DataError(f"{path} was measured with {first}, but now it is {dict(about)}; choose another file")
    _cut_torn_line(path)
    return rest


def _rows(path: Path) -> Iterator[Any]:
    """First what the ledger is about, then each candidate."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"cannot read the evaluated candidates {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds no evaluated candidates: a byte that is not UTF-8 ({error.start})") from error
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break was cut off, or is empty
        try:
            record = json.loads(line)
            yield record["about"] if number == 1 else _candidate(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no record of an evaluated candidate ({error!r})") from error
    if len(lines) == 1:
        raise DataError(f"{path} holds no evaluated candidates")


def _candidate(record: Mapping[str, Any]) -> Evaluated:
    values = {name: float(value) for name, value in record["values"].items()}
    configuration = Configuration(**record["configuration"])
    configuration.shape()  # refuses a width that the heads do not divide
    return Evaluated(configuration, values)


def _cut_torn_line(path: Path) -> None:
    """A line that a stop cut off must not be continued by the next one."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with writing(path):
            path.write_bytes(content[: content.rfind(b"\n") + 1])


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")


def _evaluated(evaluation: Evaluation, configuration: Configuration, parent: int) -> Evaluated:
    end_with(parent)
    return Evaluated(configuration, {name: float(value) for name, value in evaluation(configuration).items()})
