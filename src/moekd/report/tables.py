"""Tables for people, made from `results.json` alone: every number in them is in that file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moekd.files import read_json
from moekd.report.attacks import over_settings_table, transfer_tables, validity_table
from moekd.report.detection import render_detection
from moekd.report.markdown import markdown_table, short_commit
from moekd.report.mixing import render_mixing
from moekd.report.scanning import render_scanning, render_start
from moekd.report.searching import render_searching
from moekd.report.sensitivity import render_sensitivity
from moekd.report.ways import render_ways

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

ROUTER = "router"

#: Measures of the main table besides accuracy, and their heads, for each task.
MEASURES = {
    "binary": {"f1": "F1", "mcc": "MCC", "auroc": "AUROC", "ece": "ECE"},
    "multi-class": {"macro_f1": "macro-F1", "nll_nats": "NLL, nats", "ece": "ECE"},
    "pair": {"f1": "F1", "macro_f1": "macro-F1", "mcc": "MCC", "auroc": "AUROC", "ece": "ECE"},
}

#: Order of systems in tables; others follow in the order of their steps.
SYSTEMS = (
    "length",
    "bag-of-tokens-half-a",
    "bag-of-tokens",
    "teacher",
    "teacher-random-weights",
    "mixture",
    "ensemble",
    "mixture-random-partition",
    "student-moe",
    "student-single",
    "student-hard",
    "student-ensemble",
    "student-random-partition",
    "student-pioneer",
    "student-soda",
)


def render_markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of one run as Markdown; every number in them is in `results`."""
    if not results["rows"]:
        return "# Nothing measured yet\n\nNone of the finished steps is a system that can be judged.\n"
    table = _Numbers(results)
    title = f"# {table.data}, split {table.split}\n"
    sections = [title, *(section for section in _sections(table) if section)]
    return "\n".join(sections)


#: Title and renderer of the results of each program in benchmarks/ that has a table, in the document's order.
BENCHMARKS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "detection": ("Detection at the natural ratio", render_detection),
    "scan": ("Cost of a scan", render_scanning),
    "start": ("Cold start", render_start),
    "search": ("Architecture search", render_searching),
    "mixture": ("Why the mixture does not win", render_mixing),
    "sensitivity": ("How far one name moves a model", render_sensitivity),
    "ways": ("Ways to distil", render_ways),
}


def render_results_doc(paths: Sequence[Path]) -> str:
    """Return `docs/results.md`: a section for each `results.json`, in the given order, then the pre-training runs.

    Args:
        paths: `results.json` of runs, manifests of finished `pretrain` steps, results of the programs in benchmarks/.
    """
    header = (
        "# Results\n\n"
        "Generated from the files of `docs/results` by `make results`; do not edit by hand.\n"
        "The line above each table names the commit, the training seeds and the data behind its numbers.\n"
    )
    found = [(path.stem, read_json(path)) for path in paths]
    sections = [render_markdown(one).replace("\n#", "\n##") for _, one in found if "rows" in one]
    pretrained = [(name, one) for name, one in found if one.get("stage") == "pretrain"]
    if pretrained:
        sections.append(_pretraining_section(pretrained))
    sections += [
        f"# {title}: {name}\n\n{render(one)}"
        for benchmark, (title, render) in BENCHMARKS.items()
        for name, one in found
        if one.get("benchmark") == benchmark
    ]
    return "\n".join([header, *(f"#{section}" for section in sections)])


def _pretraining_section(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One row for each pre-training run, from its manifest."""
    head = ["run", "shape", "objective", "tokens", "tokens/s", "loss, nats", "accuracy", "unigram", "trigram"]
    head += ["both neighbours", "detection AUROC", "commit"]
    rows = []
    for name, manifest in runs:
        settings, facts = manifest["settings"], manifest["facts"]
        held_out = facts["held_out"]
        measures = ["masked_loss_nats"] + [
            f"masked_accuracy_{model}" for model in ("model", "unigram", "trigram", "both_neighbours")
        ]
        shape = f"{settings['encoder.layers']} x {settings['encoder.hidden']}"
        if settings.get("encoder.name", "random") != "random":
            shape += f", from {settings['encoder.name']}"
        cells = [name, f"{settings.get('pretrain.architecture', 'roberta')}, {shape}", settings["pretrain.objective"]]
        cells += [f"{facts['history']['tokens'] / 1e6:.1f} M", f"{facts['tokens_per_second']:,.0f}"]
        cells += [f"{held_out[measure]:.3f}" for measure in measures]
        cells += [f"{held_out['detection_auroc']:.3f}" if "detection_auroc" in held_out else "–"]
        rows.append([*cells, short_commit(manifest["commit"])])
    note = (
        "Measured on masked tokens of held-out files; the n-gram models guess the most frequent token after two others "
        "(trigram) or between its neighbours. Loss curves are in the result files. Tokens a second were taken beside "
        "other work."
    )
    return f"# Pre-training\n\n{note}\n\n{markdown_table(head, rows)}"


class _Numbers:
    """Look-up of the numbers to show: the mean over seeds where there are several, else the one number."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.rows = results["rows"]
        self.data, self.split = self.rows[0]["data"], self.rows[0]["split"]
        # Earlier results and those that hold no settings of the data are of detectors.
        self.task = results["provenance"]["settings"].get("data", {}).get("task", "binary")
        self.samples = "pairs" if self.task == "pair" else "functions"
        shown = [*self.rows, *results["over_seeds"]["rows"]]  # later ones win
        self._by_key = {(r["system"], r["student"], r["part"], r["metric"]): r for r in shown}
        order = {name: position for position, name in enumerate(SYSTEMS)}
        names = dict.fromkeys((r["system"], r["student"]) for r in self.rows)
        self.systems = sorted(names, key=lambda name: order.get(name[0], len(order)))

    def row(self, system: tuple[str, str | None], part: str, metric: str) -> Mapping[str, Any] | None:
        return self._by_key.get((*system, part, metric))

    def show(self, system: tuple[str, str | None], part: str, metric: str, *, interval: bool = False) -> str:
        row = self.row(system, part, metric)
        if row is None:
            return "–"
        text = _shown(metric, row["value"])
        return f"{text} ({_span(row)})" if interval and row["low"] is not None else text

    def having(self, part: str, metric: str) -> list[tuple[str, str | None]]:
        return [system for system in self.systems if self.row(system, part, metric)]

    def source(self) -> str:
        """What a table's numbers were made from, in one line."""
        made = self.results["provenance"]
        commit = short_commit(made["commit"])
        seeds = ", ".join(str(seed) for seed in made["seeds"])
        digest = made["data"]["file_digests"].get("samples.parquet", made["data"]["key"])[:12]
        return f"*commit {commit}; seeds {seeds}; data {digest}*"

    def confidence(self) -> str:
        return f"{self.results['provenance']['settings']['evaluate']['confidence']:.0%}"


def _sections(table: _Numbers) -> list[str]:
    return [
        _main_section(table),
        _recall_section(table),
        _router_section(table),
        _comparison_section(table),
        _attack_section(table),
        _attack_comparison_section(table),
        _over_settings_section(table),
        _transfer_section(table),
        _validity_section(table),
        _cost_section(table),
    ]


def _main_section(table: _Numbers) -> str:
    columns = (*MEASURES[table.task], "parameters", "file_bytes")
    systems = [system for system in table.having("test", "accuracy") if system[0] != ROUTER]
    rows = [
        [*_named(system), table.show(system, "test", "accuracy", interval=True)]
        + [
            table.show(system, "cost" if metric in ("parameters", "file_bytes") else "test", metric)
            for metric in columns
        ]
        for system in systems
    ]
    n = table.results["provenance"]["data"]["judged"]["test"]
    spread = (
        f"the mean over training seeds with its {table.confidence()} t interval (bootstrap where nothing is seeded)"
        if table.results["over_seeds"]["rows"]
        else f"the value with its {table.confidence()} bootstrap interval over test {table.samples}"
    )
    head = ["system", "student", "accuracy", *MEASURES[table.task].values(), "parameters", "files"]
    note = f"{n:,} {table.samples}. Accuracy is {spread}.{_constant(table)}"
    return _section("Systems on the test part", table, head, rows, note)


def _constant(table: _Numbers) -> str:
    """Name the models that give one answer to all: a comparison of accuracies with them is one with a constant."""
    by_metric = {
        metric: {(r["system"], r["student"], r["seed"]): r["value"] for r in table.rows if _is_test(r, metric)}
        for metric in ("recall", "mcc")
    }
    found = [
        " ".join(str(part) for part in (system, student) if part) + (f" (seed {seed})" if seed is not None else "")
        for (system, student, seed), recall in by_metric["recall"].items()
        if recall in (0.0, 1.0) and by_metric["mcc"].get((system, student, seed)) == 0.0
    ]
    if not found:
        return ""
    return f" **One answer to every test function, so the accuracy is a constant's: {', '.join(found)}.**"


def _is_test(row: Mapping[str, Any], metric: str) -> bool:
    return bool(row["part"] == "test" and row["metric"] == metric)


def _recall_section(table: _Numbers) -> str:
    parts = dict.fromkeys(
        (r["part"], r["n"]) for r in table.rows if r["metric"] == "recall" and r["part"].startswith("test/")
    )
    systems = [system for system in table.systems if any(table.row(system, part, "recall") for part, _ in parts)]
    rows = [[*_named(system), *(table.show(system, part, "recall") for part, _ in parts)] for system in systems]
    head = ["system", "student", *(f"{part.removeprefix('test/')} ({n})" for part, n in parts)]
    title = "Recall by group" if table.task == "binary" else "Recall by class"
    note = "Share of the vulnerable test functions of a group that are called vulnerable; (n) is their number."
    if table.task != "binary":
        note = f"Share of the test {table.samples} of a class that are given that class; (n) is their number."
    return _section(title, table, head, rows, note) if parts else ""


def _router_section(table: _Numbers) -> str:
    system = (ROUTER, None)
    measures = ("accuracy", "macro_f1", "ece", "largest_group_share")
    rows = []
    for part, name in (
        ("test", "vulnerable with a group"),
        ("test/known-cwe", "vulnerable with a known CWE"),
        ("test/among-known", "the same, without the choice `unknown`"),
    ):
        row = table.row(system, part, "accuracy")
        if row:
            n = next(r["n"] for r in table.rows if r["system"] == ROUTER and r["part"] == part)
            rows.append([name, f"{n:,}", *(table.show(system, part, metric) for metric in measures)])
    head = ["test functions", "n", "accuracy", "macro-F1", "ECE", "largest group's share"]
    text = _section("Router", table, head, rows, "The largest group's share is what a constant answer reaches.")
    groups = dict.fromkeys(
        r["metric"] for r in table.rows if r["part"] == "test/not_vulnerable" and r["system"] == ROUTER
    )
    shares = [
        [name, *(table.show(system, f"test/{name}", metric) for metric in groups)]
        for name in ("vulnerable", "not_vulnerable")
    ]
    head = ["first choice for", *(metric.removeprefix("routed_to:") for metric in groups)]
    return f"{text}\n{markdown_table(head, shares)}" if rows else ""


def _comparison_section(table: _Numbers) -> str:
    rows = []
    second_metric = "macro_f1" if table.task == "multi-class" else "auroc"
    for (first, second, student), by_metric in _compared(table, "test").items():
        cells = [f"{first} − {second}", student or ""]
        for metric in ("accuracy", second_metric):
            one = by_metric.get(metric)
            cells.append(f"{one['difference']:+.3f} ({_span(one, '+.3f')})" if one else "–")
        rows.append([*cells, _shown_p(by_metric["accuracy"].get("p"))])
    head = ["first − second", "student", "accuracy", MEASURES[table.task][second_metric], "p (McNemar)"]
    note = (
        f"Differences on the same test {table.samples} with {table.confidence()} intervals (bootstrap over "
        f"{table.samples}; with several seeds, t over seeds). p is exact and not corrected for the number of "
        "comparisons."
    )
    return _section("Paired comparisons", table, head, rows, note) if rows else ""


def _compared(table: _Numbers, part: str) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    """Comparisons on one part by pair, then by metric: means over seeds where there are several."""
    shown = [*table.results["comparisons"], *table.results["over_seeds"]["comparisons"]]
    entries: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    for one in shown:  # means over seeds come last and win
        if one["part"] == part:
            entries.setdefault(_pair(one), {})[one["metric"]] = one
    return entries


def _attack_section(table: _Numbers) -> str:
    columns = (
        "asr_with_identifiers",
        "accuracy",
        "accuracy_under_attack",
        "queries",
        "queries_fooled",
        "renamed_share",
        "margin",
    )
    rows = [
        [part.removeprefix("attack/"), *_named(system), table.show(system, part, "asr", interval=True)]
        + [table.show(system, part, metric) for metric in columns]
        for part in _attack_parts(table)
        for system in table.having(part, "asr")
    ]
    head = ["attack", "system", "student", "ASR (B)", "ASR (A)", "accuracy", "under attack", "queries", "to success"]
    note = (
        "ASR (B) = fooled / classified correctly; ASR (A) leaves out functions without an identifier to rename. "
        "Queries are distinct texts: mean over attacked functions, and over those that were fooled. The margin is the "
        "mean logit of the label before the attack, by how much a function must be moved."
    )
    return _section("Under attack", table, [*head, "renamed", "margin"], rows, note) if rows else ""


def _attack_comparison_section(table: _Numbers) -> str:
    rows = []
    for part in _attack_parts(table):
        for (first, second, student), by_metric in _compared(table, part).items():
            cells = [part.removeprefix("attack/"), f"{first} − {second}", student or ""]
            for metric in ("asr", "asr_reduction"):
                one = by_metric.get(metric)
                cells.append(f"{one['difference']:+.3f} ({_span(one, '+.3f')})" if one else "–")
            rows.append([*cells, _shown_p(by_metric["asr"].get("p"))])
    head = ["attack", "first − second", "student", "ASR (B)", "relative reduction", "p (McNemar)"]
    note = "Negative differences and positive reductions: the first is fooled less often. p is not corrected."
    return _section("Paired comparisons under attack", table, head, rows, note) if rows else ""


def _over_settings_section(table: _Numbers) -> str:
    head, rows = over_settings_table(table.results.get("over_settings", []))
    note = (
        "A setting is an attack, a student's shape and a training seed. Negative differences and deltas: the first is "
        "fooled less often. Wilcoxon's signed-rank test needs six settings to reach p < 0.05; Holm's correction is for "
        "the number of pairs."
    )
    return _section("Under attack, over all settings", table, head, rows, note) if rows else ""


def _transfer_section(table: _Numbers) -> str:
    note = (
        "Share of the adversarial functions that fooled one model and fool another one, too, among those whose "
        "originals it classifies correctly (their number). Each row's own attack makes the functions."
    )
    return "\n".join(
        _section(f"Transfer of adversarial functions, {attack}", table, head, rows, note)
        for attack, head, rows in transfer_tables(table.results.get("transfer", []))
    )


def _validity_section(table: _Numbers) -> str:
    head, rows = validity_table(table.results.get("validity", []))
    note = "Functions by outcome, and renamings that would have been used but failed the check, by reason."
    return _section("Validity of the attacks", table, head, rows, note) if rows else ""


def _attack_parts(table: _Numbers) -> list[str]:
    return list(dict.fromkeys(r["part"] for r in table.rows if r["part"].startswith("attack/")))


def _pair(entry: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return entry["first"], entry["second"], entry["student"]


def _cost_section(table: _Numbers) -> str:
    costs = dict.fromkeys(r["metric"] for r in table.rows if r["part"] == "cost")
    metrics = [metric for metric in costs if metric not in ("parameters", "file_bytes")]
    systems = [system for system in table.systems if any(table.row(system, "cost", m) for m in metrics)]
    rows = [[*_named(system), *(table.show(system, "cost", m) for m in metrics)] for system in systems]
    head = ["system", "student", *(metric.replace("_", " ") for metric in metrics)]
    machine = table.results["provenance"]["machine"]
    parts = [machine["processor"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    note = f"Measured on {', '.join(parts + machine.get('accelerators', []))}."
    return _section("Cost", table, head, rows, note) if rows else ""


def _named(system: tuple[str, str | None]) -> list[str]:
    return [system[0], system[1] or ""]


def _section(title: str, table: _Numbers, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    return f"## {title}\n\n{note}\n{table.source()}\n\n{markdown_table(head, rows)}"


def _shown(metric: str, value: float) -> str:
    if metric.endswith("_bytes"):
        return f"{value / 1e6:.2f} MB"
    if metric.endswith("parameters"):
        return f"{value:,.0f}"
    if metric.endswith("_seconds"):
        return f"{value:,.1f}"
    if metric.startswith("queries"):
        return f"{value:.1f}"
    if metric.endswith(("_ms", "_per_sample", "_over_teacher")):
        return f"{value:.2f}"
    return f"{value:.3f}"


def _span(row: Mapping[str, Any], form: str = ".3f") -> str:
    return f"{row['low']:{form}} to {row['high']:{form}}"


def _shown_p(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
