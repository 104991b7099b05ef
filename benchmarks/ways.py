"""Ways to distil side by side, from the finished results of one run a way: logit-based or feature-based?

    python benchmarks/ways.py docs/results/bigvul-ways.json RUNS/results/KEY/results.json ...

A way is the loss of logits, `distill.logits.kind`, or, beside plain `kl`, the loss of features, `distill.features.kind`
(Wang et al., arXiv:2508.15423). The runs must be equal in all else: data, settings and the steps that students learn
from, teachers among them. Nothing is trained or judged again; students that have not finished are missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moekd.errors import DataError
from moekd.files import read_json, write_json
from moekd.report.stage import JUDGED
from moekd.report.stage import SCHEMA as RESULTS_SCHEMA
from moekd.steps import commit

SCHEMA = 1
#: What the students that learn by `[distill]` learn from; `none` are the labels. Pioneer and soda have own losses.
TEACHERS = {
    "student-single": "single",
    "student-moe": "mixture",
    "student-ensemble": "ensemble",
    "student-random-partition": "mixture of a random partition",
    "student-hard": "none",
}
#: Settings in which runs may differ: the ways themselves, and which students were trained where.
FREE = ("name", "distill", "run", "student.shapes", "student.systems")


class Result(NamedTuple):
    """One `results.json` and the way that its students were taught."""

    path: Path
    way: str
    family: str  # logits or features
    made: Mapping[str, Any]  # its provenance
    rows: list[Mapping[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file for the result")
    parser.add_argument("results", type=Path, nargs="+", help="results.json of one run a way")
    arguments = parser.parse_args()
    write_json(arguments.out, together([read(path) for path in arguments.results]))


def read(path: Path) -> Result:
    """Read one `results.json`. Raises DataError if the file is none, or of another schema."""
    try:
        found = read_json(path)
        schema = found["schema"]
        made, rows = found["provenance"], found["rows"]
        distill = made["settings"]["distill"]
    except (OSError, UnicodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a results.json that `moekd run` wrote ({error!r})") from error
    if schema != RESULTS_SCHEMA:
        raise DataError(f"{path}: schema {schema}, wanted {RESULTS_SCHEMA}; finish the run with this version")
    loss, features = distill["logits"]["kind"], distill["features"]
    if features is None:
        return Result(path, loss, "logits", made, rows)
    way = features["kind"] if loss == "kl" else f"{loss} and {features['kind']}"
    return Result(path, way, "features", made, rows)


def together(results: list[Result]) -> dict[str, Any]:
    """The result file of the comparison; `students` holds one row a number.

    Raises:
        DataError: two results are of one way, or a result has other data, settings or teachers than one before it.
    """
    require_comparable(results)
    first = results[0].made
    # Students of hard labels alone are the same steps in every run that has them, so they are kept once.
    students = {tuple(row.values())[:-1]: row for result in results for row in rows_of(result)}
    return {
        "benchmark": "ways",
        "schema": SCHEMA,
        "commit": commit(),
        "provenance": {
            "seeds": sorted({row["seed"] for row in students.values()}),
            "data": {name: first["data"][name] for name in ("key", "source_digests", "file_digests", "judged")},
            "settings": compared_settings(first),
            "ways": [
                {
                    "way": result.way,
                    "family": result.family,
                    "name": result.made["settings"]["name"],
                    "commit": result.made["commit"],
                    "machine": result.made["machine"],
                    "distill": result.made["settings"]["distill"],
                }
                for result in results
            ],
        },
        "students": list(students.values()),
    }


def rows_of(result: Result) -> Iterator[dict[str, Any]]:
    """The measures of each student on all functions of a part, as tidy rows whose last entry is the value."""
    for row in result.rows:
        teacher = TEACHERS.get(row["system"])
        if teacher and row["part"] in JUDGED:
            taught = teacher != "none"
            yield {
                "way": result.way if taught else "labels",
                "family": result.family if taught else "labels",
                "teacher": teacher,
                **{name: row[name] for name in ("student", "seed", "part", "metric", "value")},
            }


def require_comparable(results: list[Result]) -> None:
    """Refuse a way that comes twice, and whatever else differs between the results."""
    first = results[0]
    known: dict[str, Path] = {}
    facts: dict[str, tuple[Any, Path]] = {}  # each with the first result that has it: not all have the same seeds
    for result in results:
        if result.way in known:
            raise DataError(f"{result.path}: its way is {result.way!r}, as in {known[result.way]}; give one of them")
        known[result.way] = result.path
        settings, others = compared_settings(result.made), compared_settings(first.made)
        for name in [*settings, *others]:
            require_equal(result.path, name, settings.get(name), others.get(name), first.path)
        for name, value in identities(result.made).items():
            require_equal(result.path, name, value, *facts.setdefault(name, (value, result.path)))


def require_equal(path: Path, name: str, value: Any, other: Any, other_path: Path) -> None:
    if value != other:
        raise DataError(
            f"{path}: {name} is {value!r}, and in {other_path} it is {other!r}, so their students cannot be compared; "
            "leave one of them out, or finish both runs with the same"
        )


def identities(made: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of the data, and keys of the steps that are the same whatever the way: teachers, students of labels."""
    data = made["data"]
    taught = tuple(f"student[{system}," for system, teacher in TEACHERS.items() if teacher != "none")
    steps = {f"key of {label}": step["key"] for label, step in made["steps"].items() if not label.startswith(taught)}
    return {f"data {name}": data[name] for name in ("key", "source_digests", "file_digests")} | steps


def compared_settings(made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which runs must not differ, flat: `student.training.epochs` and so on."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key in FREE:
                continue
            if isinstance(value, dict):
                yield from flat(value, f"{key}.")
            else:
                yield key, value

    return dict(flat(made["settings"]))


if __name__ == "__main__":
    main()
