"""Tables of the ways to distil, from a result file of benchmarks/ways.py: every number is made from its rows."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from moekd import evaluate
from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from moekd.evaluate import Estimate

_REFERENCE = "kl"  # the plain way, which the others are compared with
_LABELS = "labels"
_SHOWN = {"accuracy": "accuracy", "auroc": "AUROC"}
_FEWEST_FOR_INTERVAL = 3  # of two seeds the 95% t interval is 12.7 times as wide as they are apart


def render_ways(result: Mapping[str, Any]) -> str:
    """Return a table for each student's shape, and below it the best way from each teacher."""
    students = _Students(result)
    made = result["provenance"]
    commits = ", ".join(dict.fromkeys(short_commit(one["commit"]) for one in made["ways"]))
    seeds = ", ".join(str(seed) for seed in made["seeds"])
    data = made["data"]["file_digests"].get("samples.parquet", made["data"]["key"])[:12]
    confidence = f"{students.confidence:.0%}"
    note = (
        "Equal in all rows: functions, split, teachers, and of the students of a seed their start and training budget; "
        "only the settings `[distill]` differ, which the result file holds. Losses of features stand beside "
        f"`{_REFERENCE}` of the logits. Test figures are means over seeds, whose number is in brackets. Differences "
        f"are to `{_REFERENCE}` from the same teacher, over the seeds that both have, with the {confidence} t interval "
        f"where these are {_FEWEST_FOR_INTERVAL} or more, not corrected for the number of ways; n is told where it is "
        "not the row's. Labels alone need no teacher: their figures are the same under each."
    )
    sections = [f"{note}\n\n*commit {commits}; seeds {seeds}; data {data}*"]
    for shape in students.shapes:
        best = [f"- {_best(students, shape, teacher)}" for teacher in students.teachers_of(shape)]
        sections.append("\n".join([f"### {shape}\n", _table(students, shape), *best]))
    return "\n\n".join(sections) + "\n"


class _Students:
    """Look-up of the numbers of a student by seed."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        rows = result["students"]
        self.confidence: float = result["provenance"]["settings"]["evaluate.confidence"]
        self.shapes = list(dict.fromkeys(row["student"] for row in rows if row["teacher"] != "none"))
        families = {one["way"]: one["family"] for one in result["provenance"]["ways"]}
        order = sorted(families, key=lambda way: (families[way] == "features", way != _REFERENCE))  # else as given
        self.families = {way: families[way] for way in order}
        self._values: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
        for row in rows:
            key = (row["student"], row["teacher"], row["way"], row["part"], row["metric"])
            self._values[key][row["seed"]] = row["value"]
        self._teachers = sorted({row["teacher"] for row in rows} - {"none"}, key=lambda name: (name != "single", name))

    def of(self, shape: str, teacher: str, way: str, part: str, metric: str) -> dict[int, float]:
        """Values by seed; none where nothing has finished. Labels have no teacher and are the same for any."""
        return self._values.get((shape, "none" if way == _LABELS else teacher, way, part, metric), {})

    def teachers_of(self, shape: str) -> list[str]:
        return [teacher for teacher in self._teachers if self.finished(shape, teacher)]

    def finished(self, shape: str, teacher: str) -> list[str]:
        return [way for way in self.families if self.of(shape, teacher, way, "valid", "accuracy")]


def _table(students: _Students, shape: str) -> str:
    teachers = students.teachers_of(shape)
    head = ["way", "loss of"]
    for teacher in teachers:
        head += [f"from {teacher}: accuracy", "AUROC", *(f"{name} − {_REFERENCE}" for name in _SHOWN.values())]
    rows = []
    for way, family in {_LABELS: "labels", **students.families}.items():
        cells = [_cells(students, shape, teacher, way) for teacher in teachers]
        if way != _LABELS or any(cell != "–" for one in cells for cell in one):
            rows.append(["labels alone" if way == _LABELS else way, family, *(cell for one in cells for cell in one)])
    return markdown_table(head, rows)


def _cells(students: _Students, shape: str, teacher: str, way: str) -> list[str]:
    values = [students.of(shape, teacher, way, "test", metric) for metric in _SHOWN]
    plain = [students.of(shape, teacher, _REFERENCE, "test", metric) for metric in _SHOWN]
    pairs = [_paired(one, two) if way != _REFERENCE else {} for one, two in zip(values, plain, strict=True)]
    means = [f"{_mean(one):.3f} ({len(one)})" if one else "–" for one in values]
    return means + [
        _difference(students, pair, of_all=len(pair) == len(one)) if pair else "–"
        for pair, one in zip(pairs, values, strict=True)
    ]


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """First minus second, seed by seed, of the seeds that both have."""
    return {seed: value - second[seed] for seed, value in first.items() if seed in second}


def _difference(students: _Students, pair: Mapping[int, float], *, of_all: bool) -> str:
    found: Estimate = evaluate.over_seeds(list(pair.values()), confidence=students.confidence)
    interval = f" ({found.low:+.3f} to {found.high:+.3f})" if found.n >= _FEWEST_FOR_INTERVAL else ""
    return f"{found.value:+.3f}{interval}" + ("" if of_all else f", n = {found.n}")


def _mean(values: Mapping[int, float], seeds: Collection[int] | None = None) -> float:
    chosen = [value for seed, value in values.items() if seeds is None or seed in seeds]
    return evaluate.over_seeds(chosen).value


def _best(students: _Students, shape: str, teacher: str) -> str:
    """The best way of each family by validation accuracy, the better family first.

    Means are over the seeds that every way has, since training varies with the seed. Of equals the first of the table.
    """
    source = "From the single teacher" if teacher == "single" else f"From the {teacher}"
    accuracies = {
        way: students.of(shape, teacher, way, "valid", "accuracy") for way in students.finished(shape, teacher)
    }
    seeds = sorted(set.intersection(*(set(values) for values in accuracies.values())))
    if not seeds:
        return f"{source}: no seed has all of {', '.join(accuracies)}, so none is chosen."
    ranked = sorted(accuracies, key=lambda way: _mean(accuracies[way], seeds), reverse=True)

    def told(way: str) -> str:
        test = {name: students.of(shape, teacher, way, "test", metric) for metric, name in _SHOWN.items()}
        figures = [f"{name} {_mean(values, seeds):.3f}" for name, values in test.items() if values]
        return f"`{way}`, {_mean(accuracies[way], seeds):.3f}; on test {', '.join(figures)}"

    best: dict[str, str] = {}
    for way in ranked:
        best.setdefault(students.families[way], way)
    text = (
        f"{source}, chosen by validation accuracy among {len(ranked)} ways "
        f"(seeds {', '.join(str(seed) for seed in seeds)}): {told(ranked[0])}."
    )
    others = [f" Best of {family}: {told(way)}." for family, way in best.items() if way != ranked[0]]
    return text + "".join(others)
