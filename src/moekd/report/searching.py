"""The tables of architecture searches, from a result file of benchmarks/search.py."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from moekd.report.markdown import markdown_table, short_commit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PRECISIONS = ("float32", "int8")
_SEARCHES = {"avatar": "AVATAR", "morph": "MORPH", "moekd": "ours"}
#: What the references spend on one search, as far as methods.md 1.2, 2.4, 2.5 and 3.3 to 3.6 state it.
_PUBLISHED = (
    ("Compressor", "none", "5,050: 50 genomes, 100 generations of 50 children", "not stated"),
    ("AVATAR", "20, 20 epochs each", "1,020: the 20 and 50 rounds of 10 pairs", "not stated"),
    ("MORPH", "10 a run of its script", "5,000: 50 points, 100 generations", "3.5, surrogates 1.5; a training 540"),
)


def render_searching(result: Mapping[str, Any]) -> str:
    """Return the tables as Markdown; every measured number in them is in `result`."""
    sections = [
        f"*{_commits(result['commits'])}; {result['cores']} cores, one thread*",
        f"### Compressor's fitness\n\n{_compressor(result['compressor'])}",
        f"### Searches on surrogates\n\n{_searches(result)}",
        f"### Picks\n\n{_picks(result)}",
    ]
    if "costs" in result:
        sections.append(f"### Students, measured\n\n{_students(result)}")
        sections.append(f"### Ours beside the published students\n\n{_beside(result)}")
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _commits(by_part: Mapping[str, str | None]) -> str:
    """The commit, or with several the parts that were measured at each."""
    parts: dict[str, list[str]] = {}
    for part, commit in by_part.items():
        parts.setdefault(short_commit(commit), []).append(part)
    if len(parts) == 1:
        return f"commit {next(iter(parts))}"
    return "; ".join(f"commit {commit}: {', '.join(names)}" for commit, names in parts.items())


def _compressor(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["target", "optimum's fitness", "seconds", "evaluations"]
    head += ["genetic: seeds at the optimum", "median fitness", "seconds", "evaluations"]
    cells = [
        [
            f"{row['budget_bytes'] / 1e6:g} MB",
            f"{row['exact_fitness']:.4f}",
            f"{row['exact_seconds']:.2f}",
            f"{row['exact_evaluations']:,}",
            f"{row['genetic_at_the_optimum']} of {row['genetic_seeds']}",
            f"{row['genetic_fitness']['median']:.4f}",
            f"{row['genetic_seconds']:.2f}",
            f"{row['genetic_evaluations']:,}",
        ]
        for row in rows
    ]
    note = (
        "Every architecture of its space is scored, so the optimum is exact; the genetic algorithm is the published "
        "one. Seconds are of wall time, one run."
    )
    return f"{note}\n\n{markdown_table(head, cells)}"


def _searches(result: Mapping[str, Any]) -> str:
    found = {title: result[kind] for kind, title in _SEARCHES.items()}
    head = ["search", "candidates", "error of the surrogate (of the mean)", "evaluations", "seconds"]
    head += ["hypervolume (lowest to highest)", "points on the front", "different picks"]
    rows = [
        [
            title,
            f"{one['candidates']}, {one['measures']}",
            "; ".join(
                f"{measure} {made['error']:.3f} ({made['constant_error']:.3f})"
                for measure, made in (one["surrogates"] | _timed(one)).items()
            ),
            f"{one['evaluations']:,}",
            f"{one['seconds']['median']:.1f}",
            _span(one["hypervolume"]),
            f"{one['front']['median']:g}",
            f"{one['distinct_picks']} of {one['seeds']}",
        ]
        for title, one in found.items()
    ]
    note = (
        "At 3 MB; medians over seeds, seconds of wall time. Hypervolumes compare seeds of one search only: each has "
        "its own objectives. Where measures are invented they say how steady a search is and nothing about students."
    )
    trained = " ".join(_trained_candidates(title, one) for title, one in found.items() if one.get("candidates_from"))
    published = markdown_table(["published", "students trained", "evaluations", "seconds"], list(map(list, _PUBLISHED)))
    parts = [f"{note} {trained}".strip(), markdown_table(head, rows), published, _survival(result["age-moea"])]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _timed(one: Mapping[str, Any]) -> dict[str, Any]:
    """The guess of milliseconds beside the surrogates, where they are an objective."""
    return {"milliseconds": one["latency"]} if "latency" in one else {}


def _span(summary: Mapping[str, float]) -> str:
    return f"{summary['median']:.3f} ({summary['lowest']:.3f} to {summary['highest']:.3f})"


def _trained_candidates(title: str, one: Mapping[str, Any]) -> str:
    made = one["candidates_from"]
    return (
        f"Candidates of {title}: {made['settings']['search.epochs']} epochs each, {made['seconds'] / 60:.0f} minutes "
        f"for all of them, accuracy {_span(one['candidates_accuracy'])}, commit {short_commit(made['commit'])}."
    )


def _survival(row: Mapping[str, Any]) -> str:
    ours = (
        f"MORPH's AGE-MOEA without surrogates, {row['seeds']} seeds: mean hypervolume {row['hypervolume']['mean']:.3f}"
    )
    if "pymoo_hypervolume" not in row:
        return f"{ours}; pymoo's own was not run ({row['skipped']})."
    return f"{ours}, pymoo's own {row['pymoo_hypervolume']['mean']:.3f} (p = {row['p_mann_whitney']:.2f})."


def _picks(result: Mapping[str, Any]) -> str:
    head = ["search", "layers", "hidden", "heads", "intermediate", "vocabulary", "length", "parameters"]
    head += ["fp32 files", "int8 files", "MFLOPs", "guessed accuracy"]
    optimum = result["compressor"][0]
    picks = [("Compressor", optimum["architecture"], optimum["cost"], "–")]
    for kind, title in _SEARCHES.items():
        picked = result[kind]["picked"]
        guess = f"{1 - picked['values']['error']:.3f}" if result[kind]["measures"] == "trained" else "–"
        picks.append((title, picked["configuration"], picked["cost"], guess))
    rows = [
        [
            title,
            *(str(shape[name]) for name in ("layers", "hidden", "heads", "intermediate")),
            f"{shape['vocabulary']:,}",
            str(shape["max_length"]),
            f"{cost['parameters']:,}",
            *(f"{cost[name] / 1e6:.2f} MB" for name in ("fp32_bytes", "int8_bytes")),
            f"{cost['matrix_flops'] / 1e6:.0f}",
            guess,
        ]
        for title, shape, cost, guess in picks
    ]
    note = (
        "First seed, 3 MB: by the references' formula for the published searches, all files in int8 for ours. Bytes "
        "are estimates for files as shipped, tokenizer included; MFLOPs are of matrix products for 256 tokens."
    )
    return f"{note}\n\n{markdown_table(head, rows)}"


def _students(result: Mapping[str, Any]) -> str:
    about, trained = result["costs"]["data"], result.get("trained", {})
    head = ["student", "layers x hidden", "parameters", "fp32 files", "int8 files", "tokens", "MFLOPs"]
    head += ["ms, fp32", "ms, int8", "accuracy"]
    rows = [
        [
            name,
            f"{one['configuration']['layers']} x {one['configuration']['hidden']}",
            f"{one['parameters']:,}",
            *(f"{one['bytes'][precision] / 1e6:.2f} MB" for precision in _PRECISIONS),
            f"{one['tokens_median']:g}",
            f"{one['matrix_flops'] / 1e6:,.0f}",
            *(f"{statistics.median(one['milliseconds'][precision]):.2f}" for precision in _PRECISIONS),
            f"{trained[name]['accuracy']:.3f}" if name in trained else "–",
        ]
        for name, one in result["costs"]["students"].items()
    ]
    note = (
        f"Files are graph and tokenizer as written, the tokenizer trained on {about['tokenizers']:,} functions. "
        f"Milliseconds are of processor time on one thread, tokenising included: medians over {about['timed']} other "
        f"functions, scored in turn in one run, each the best of {about['rounds']}; data {about['key']}. MFLOPs are of "
        "matrix products for the longest text that a student reads."
    )
    correlation = ", ".join(
        f"{about_one:.2f} in {precision}"
        for precision, about_one in result["costs"]["rank_correlation_with_flops"].items()
    )
    note += f" Their rank correlation with the median time: {correlation}."
    if trained:
        note += " Accuracy is on validation functions after the training of our search's candidates, one seed."
    return f"{note}\n\n{markdown_table(head, rows)}"


def _beside(result: Mapping[str, Any]) -> str:
    students, trained = result["costs"]["students"], result.get("trained", {})
    head = [
        "published",
        "ours",
        "parameters",
        "fp32 files",
        "int8 files",
        "time, fp32",
        "time, int8",
        "accuracy",
        "verdict",
    ]
    rows = []
    for published, name in result["beside"].items():
        ratios = cost_ratios(students[name], students[published])
        gain = None
        if name in trained and published in trained:
            gain = trained[name]["accuracy"] - trained[published]["accuracy"]
        shown = "–" if gain is None else f"{gain:+.3f}"
        rows.append([published, name, *(f"{one:.2f}" for one in ratios), shown, verdict(ratios, gain)])
    counts = "by count and by guessed milliseconds" if "latency" in result["moekd"] else "by count"
    note = (
        "Ours divided by the published student; time is the median of the ratios function by function. Of the points "
        f"on our front that cost no more {counts} the one of least guessed error."
    )
    if result["moekd"]["measures"] != "trained":
        note += " Its guesses are of invented measures, so the table is of costs and says nothing about accuracy."
    return f"{note}\n\n{markdown_table(head, rows)}" if rows else "No point of our front costs as little."


def cost_ratios(ours: Mapping[str, Any], published: Mapping[str, Any]) -> list[float]:
    """Ours over the published student: parameters, bytes in fp32 and int8, and the median time ratio in both."""
    times = [
        statistics.median(
            a / b for a, b in zip(ours["milliseconds"][precision], published["milliseconds"][precision], strict=True)
        )
        for precision in _PRECISIONS
    ]
    sizes = [ours["bytes"][precision] / published["bytes"][precision] for precision in _PRECISIONS]
    return [ours["parameters"] / published["parameters"], *sizes, *times]


def verdict(ratios: Sequence[float], gain: float | None) -> str:
    """Whether ours is nowhere worse: on the costs, and on accuracy where both were trained."""
    if max(ratios) > 1:
        return "dearer"
    if gain is None:
        return "no dearer"
    return "dominates or equals" if gain >= 0 else "cheaper, less accurate"
