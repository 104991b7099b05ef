"""Searches of architectures: what they cost, how steady they are, and their students beside the published ones.

    OMP_NUM_THREADS=1 python benchmarks/search.py --points moekd=RUNS/candidates/KEY/points.jsonl \
        --data RUNS/data/KEY --config CONFIG --set search.epochs=3 --out FILE

Compressor's fitness is a formula, so its figures are what a user gets: the exact optimum, and how often the published
genetic algorithm ends there. The other searches guess accuracy and flips from candidates that were trained; without
`--points` they are given invented measures, and then hypervolumes tell how steadily a search finds the same front, and
nothing about students. With `--pymoo` MORPH's search is also run with pymoo's own AGE-MOEA, which needs numba.

Students are the published ones at 3, 2 and 1.6 MB and, for each, the one of our front (first seed) with the least
guessed error among those with no more parameters and bytes and, by the guess of our search, no more milliseconds for
the longest text that each reads. All are built with random weights and a tokenizer trained on the functions of
`--data`, exported in both precisions, and score each function in turn, one text at a time on one thread, tokenising
included; processor time is counted, which a busy machine hardly changes, and ratios are taken function by function.
With `--config`, the config that the points of `moekd` were trained with, those of 3 MB are also trained as these
candidates were: an architecture's accuracy, not a method's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from moekd.config import MoekdSettings
from moekd.export.latency import measure_latency
from moekd.files import read_json, write_json
from moekd.settings_loading import load_settings
from moekd.steps import commit, read_manifest
from moekd.students import compressor, pareto
from moekd.students.cost import Cost, cost_of
from moekd.students.ledger import Evaluated, evaluate_all, read_ledger
from moekd.students.published import METHODS, configuration_of, method_of, train_published_tokenizer
from moekd.students.search import RECIPES, Kind, Searched, formula_gflops, search
from moekd.students.space import Configuration, build_candidate
from moekd.students.surrogate import spread
from moekd.tokens import train_bpe

if TYPE_CHECKING:
    from moekd.scan.model import Precision
    from moekd.students.latency import Latency
    from moekd.students.pareto import Point

BUDGETS = (3_000_000, 2_000_000, 1_600_000)
SIZES = ("3mb", "2mb", "1.6mb")
CANDIDATES = 40
#: Of `pareto_front` and of `compressor`: the first generation and a hundred more.
PARETO_EVALUATIONS = 50 * 100
GENETIC_EVALUATIONS = 50 + 50 * 100
TOKENS = 256  # of a function, where costs of different searches are counted
TIMED, ROUNDS = 40, 3
PICK = "ours, picked"
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def main() -> None:
    arguments = parse()
    seeds, points = arguments.seeds, arguments.points
    ours = cache(lambda: searches("moekd", points.get("moekd"), 1)[0])
    students = cache(lambda: to_compare(ours()))
    parts: dict[str, Callable[[], Any]] = {
        "compressor": lambda: [genetic_against_exact(budget, arguments.genetic_seeds) for budget in BUDGETS],
        **{kind: partial(figures, kind, points.get(kind), seeds) for kind in RECIPES},
        "age-moea": lambda: against_pymoo(seeds, with_pymoo=arguments.pymoo),
    }
    if arguments.data:
        parts["beside"] = lambda: students()[1]
        parts["costs"] = lambda: costs(students()[0], arguments.data)
    if arguments.config:
        parts["trained"] = lambda: trained_alike(*students(), arguments)
    found = begun(arguments.out)
    for name in arguments.part or parts:
        if name in found:
            continue
        if name not in parts:
            raise SystemExit(f"--part {name}: give --data and, for `trained`, --config; or one of {', '.join(parts)}")
        found[name] = parts[name]()
        found["commits"][name] = commit()
        print(name, found[name])
        if arguments.out:
            write_json(arguments.out, found)  # each part as it comes; the same command continues


def begun(out: Path | None) -> dict[str, Any]:
    """The parts that the file holds already; each keeps the commit that it was measured at."""
    if out is None or not out.exists():
        return {"benchmark": "search", "commits": {}, "cores": os.cpu_count()}
    found: dict[str, Any] = read_json(out)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--genetic-seeds", type=int, default=60)
    parser.add_argument(
        "--points", action="append", default=[], metavar="KIND=FILE", help="candidates that were trained"
    )
    parser.add_argument("--pymoo", action="store_true", help="also run pymoo's AGE-MOEA; needs numba")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of a finished data stage: also measure students")
    parser.add_argument("--config", type=Path, help="that the points of `moekd` were trained with")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of that config", dest="overrides"
    )
    parser.add_argument(
        "--trained", type=Path, default=Path("trained.jsonl"), help="where students' accuracies are kept"
    )
    parser.add_argument("--part", action="append", metavar="NAME", help="this part of the result alone; repeatable")
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    given = [one.partition("=") for one in arguments.points]
    if wrong := [f"{kind}{mark}{path}" for kind, mark, path in given if kind not in get_args(Kind) or not path]:
        parser.error(f"--points wants avatar=FILE, morph=FILE or moekd=FILE, got {', '.join(wrong)}")
    arguments.points = {kind: Path(path) for kind, _, path in given}
    if arguments.config and "moekd" not in arguments.points:
        parser.error("--config trains students as the candidates of --points moekd=FILE were, and there are none")
    return arguments


# ----------------------------------------------------------------------------------------------- the searches


def genetic_against_exact(budget_bytes: int, seeds: int) -> dict[str, Any]:
    started = time.perf_counter()
    exact = compressor.optimum(budget_bytes)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    fitness = [compressor.genetic_search(budget_bytes, np.random.default_rng(seed)).fitness for seed in range(seeds)]
    return {
        "budget_bytes": budget_bytes,
        "exact_fitness": exact.fitness,
        "exact_seconds": seconds,
        "exact_evaluations": int(np.prod([len(values) for values in compressor.AXES.values()])),
        "architecture": asdict(exact.shape),
        "cost": asdict(cost_of(exact.shape, length=TOKENS)),
        "genetic_seeds": seeds,
        "genetic_at_the_optimum": sum(value == exact.fitness for value in fitness),
        "genetic_fitness": summary(fitness),
        "genetic_seconds": (time.perf_counter() - started) / seeds,
        "genetic_evaluations": GENETIC_EVALUATIONS,
    }


def searches(kind: Kind, points: Path | None, seeds: int) -> list[Searched]:
    """One search at 3 MB for each seed."""
    evaluated = read_ledger(points) if points else invented(kind)
    return [search(kind, BUDGETS[0], evaluated, seed=seed, latency=latency) for seed in range(seeds)]


@cache
def latency(budget_bytes: int) -> Latency:
    """Timed once for all seeds, so that their hypervolumes have one bound."""
    return measure_latency(budget_bytes, None)


def figures(kind: Kind, points: Path | None, seeds: int) -> dict[str, Any]:
    """Seconds, hypervolume and picks of one search over seeds."""
    results = searches(kind, points, seeds)
    picks = [one.picked.configuration for one in results]
    row: dict[str, Any] = {
        "budget_bytes": BUDGETS[0],
        "measures": "trained" if points else "invented",
        "candidates": results[0].surrogates["accuracy"].points,
        "seeds": len(results),
        "evaluations": PARETO_EVALUATIONS,
        "seconds": summary([one.seconds for one in results]),
        "front": summary([len(one.front) for one in results]),
        "hypervolume": summary([one.hypervolume for one in results]),
        "surrogates": {
            name: {"error": one.error, "constant_error": one.constant_error}
            for name, one in results[0].surrogates.items()
        },
        "distinct_picks": len(set(picks)),
        "picked": {
            "configuration": asdict(picks[0]),
            "values": dict(results[0].picked.values),
            "cost": asdict(cost_of(picks[0].shape(), length=TOKENS)),
        },
    }
    if results[0].latency:
        row["latency"] = asdict(results[0].latency)
    if points:
        accuracies = [one.values["accuracy"] for one in read_ledger(points)]
        row["candidates_accuracy"] = summary(accuracies)
        row["candidates_from"] = _candidates_from(points)
    return row


def _candidates_from(points: Path) -> dict[str, Any]:
    """What a `candidates` stage says of itself; a file of other origin says nothing."""
    if not (points.parent / "manifest.json").exists():
        return {}
    manifest = read_manifest(points.parent)
    return {name: manifest[name] for name in ("commit", "seconds", "variant", "settings")}


def invented(kind: Kind) -> list[Evaluated]:
    """Candidates whose accuracy rises with the logarithm of their size, and whose flips fall with depth; with noise."""
    recipe = RECIPES[kind]
    rng = np.random.default_rng(0)
    space = recipe.space(BUDGETS[0]).only(position="absolute")  # as candidates that are trained
    chosen = spread(space, CANDIDATES, lambda one: recipe.size_bytes(one) <= BUDGETS[0], rng)
    noise = rng.normal(0, 0.005, (len(chosen), 2))
    return [
        Evaluated(one, {"accuracy": accuracy(one) + float(off[0]), "flips": flips(one) + float(off[1])})
        for one, off in zip(chosen, noise, strict=True)
    ]


def accuracy(one: Configuration) -> float:
    return 0.5 + 0.05 * float(np.log10(one.parameters() / 1e4)) + 0.01 * one.max_length / 512


def flips(one: Configuration) -> float:
    return 0.3 - 0.01 * one.layers + 0.05 * one.hidden_dropout


def against_pymoo(seeds: int, *, with_pymoo: bool) -> dict[str, Any]:
    """Hypervolume of MORPH's four objectives: our survival in pymoo's loop, and if asked for pymoo's own."""
    from scipy.stats import mannwhitneyu

    ours = [morph_hypervolume(seed) for seed in range(seeds)]
    row: dict[str, Any] = {"seeds": seeds, "evaluations": PARETO_EVALUATIONS, "hypervolume": summary(ours)}
    if not with_pymoo:
        return row | {"skipped": "not asked for"}
    try:
        from pymoo.algorithms.moo.age import AGEMOEASurvival
    except Exception as error:  # pymoo raises a bare Exception where numba is missing
        return row | {"skipped": str(error)}
    theirs = [morph_hypervolume(seed, survival=AGEMOEASurvival()) for seed in range(seeds)]
    p = float(mannwhitneyu(ours, theirs).pvalue)
    return row | {"pymoo_hypervolume": summary(theirs), "p_mann_whitney": p}


def morph_hypervolume(seed: int, *, survival: Any = None, population: int = 50, generations: int = 100) -> float:
    """Of the front that one run finds on the invented measures without surrogates.

    Args:
        survival: takes the place of our AGE-MOEA's.
    """
    from pymoo.optimize import minimize

    recipe = RECIPES["morph"]
    space = recipe.space(BUDGETS[0])
    one_by_one = {
        "megabytes": lambda one: recipe.size_bytes(one) / 1e6,
        "gflops": formula_gflops,
        "error": lambda one: 1 - accuracy(one),
        "flips": flips,
    }
    objectives = {name: partial(_of_all, measure) for name, measure in one_by_one.items()}
    algorithm = pareto.algorithm(space, "age-moea", population, seed)
    if survival is not None:
        algorithm.survival = survival
    found = minimize(pareto.problem(space, objectives, {}), algorithm, ("n_gen", generations), seed=seed)
    configurations = [space.configuration(row) for row in space.repaired(found.X)]
    table = np.column_stack([objective(configurations) for objective in objectives.values()])
    return pareto.hypervolume(table, [6.0, 6.0, 1.0, 1.0])


def _of_all(measure: Any, configurations: Sequence[Configuration]) -> np.ndarray:
    return np.array([measure(one) for one in configurations])


# ------------------------------------------------------------------------------------------- students, measured


def to_compare(ours: Searched) -> tuple[dict[str, Configuration], dict[str, str]]:
    """The published students, our pick and ours for each of the published, by name; and which is for which."""
    settings = MoekdSettings.model_validate({"name": "published", "data": {"sources": [{"kind": "embedded"}]}})
    students = {name: configuration_of(name, settings) for size in SIZES for name in published_of(size)}
    beside = {}
    names = {ours.picked.configuration: PICK}
    for published, configuration in list(students.items()):
        one = no_dearer(ours, counted(published, configuration), guessed_ms(ours, published, configuration))
        if one is not None:
            beside[published] = names.setdefault(one, f"ours, {len(names)}")
    return students | {name: one for one, name in names.items()}, beside


def published_of(size: str) -> list[str]:
    return [f"{method}-{size}" for method in METHODS]


def no_dearer(ours: Searched, limit: Cost, milliseconds: float) -> Configuration | None:
    """The configuration of least guessed error on our front that costs no more than `limit` and `milliseconds`."""
    names = ("parameters", "fp32_bytes", "int8_bytes")

    def allowed(point: Point) -> bool:
        cost = counted(PICK, point.configuration)
        counts = all(getattr(cost, name) <= getattr(limit, name) for name in names)
        return counts and point.values["milliseconds"] <= milliseconds

    within = [point for point in ours.front if allowed(point)]
    return min(within, key=lambda point: point.values["error"]).configuration if within else None


def counted(name: str, one: Configuration) -> Cost:
    """Cost at the longest text that the student reads."""
    return cost_of(one.shape(), length=longest(name, one))


def guessed_ms(ours: Searched, name: str, one: Configuration) -> float:
    """Milliseconds of a published student for the longest text that it reads, by the guess that ours are judged by."""
    assert ours.latency is not None
    return float(ours.latency.predict([replace(one, max_length=longest(name, one))])[0])


def longest(name: str, one: Configuration) -> int:
    """Tokens of the longest text that the student reads: of Compressor's 514 positions it is 400."""
    published = name.partition("-")[0] in METHODS
    return (method_of(name).tokens if published else None) or one.max_length


class Built(NamedTuple):
    """A student with random weights, as it would ship."""

    tokenizer: Any
    max_length: int
    sessions: Mapping[Precision, Any]
    facts: Mapping[str, Any]

    def answer(self, precision: Precision, text: str) -> int:
        """Score one text; returns its number of tokens."""
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        self.sessions[precision].run(None, {"input_ids": np.array([ids], dtype=np.int64)})
        return len(ids)


def costs(students: Mapping[str, Configuration], data: Path) -> dict[str, Any]:
    """Files' bytes of each student, and processor milliseconds of each function, function by function in turn."""
    from scipy.stats import spearmanr

    from moekd import numerics
    from moekd.data import load_parts

    numerics.configure(1)
    parts = load_parts(data)
    texts = [sample.func for sample in parts["train_b"]]
    timed = [sample.func for sample in parts["valid"][:TIMED]]
    built = {name: build(name, one, texts) for name, one in students.items()}
    contestants = [(name, precision) for name in built for precision in PRECISIONS]
    seconds: dict[tuple[str, Precision], list[float]] = {one: [np.inf] * len(timed) for one in contestants}
    tokens: dict[str, list[int]] = {name: [built[name].answer("float32", text) for text in timed] for name in built}
    for turn in range(ROUNDS):
        for number, text in enumerate(timed):
            first = (turn + number) % len(contestants)
            for name, precision in contestants[first:] + contestants[:first]:
                started = time.process_time()
                built[name].answer(precision, text)
                took = time.process_time() - started
                seconds[name, precision][number] = min(took, seconds[name, precision][number])
    work = [one.facts["matrix_flops"] for one in built.values()]
    medians = {precision: [np.median(seconds[name, precision]) for name in built] for precision in PRECISIONS}
    return {
        "data": {"key": data.name, "tokenizers": len(texts), "timed": len(timed), "rounds": ROUNDS},
        "rank_correlation_with_flops": {
            precision: float(spearmanr(work, times).statistic) for precision, times in medians.items()
        },
        "students": {
            name: {
                "configuration": asdict(students[name]),
                **one.facts,
                "tokens_median": float(np.median(tokens[name])),
                "milliseconds": {precision: [1000 * s for s in seconds[name, precision]] for precision in PRECISIONS},
            }
            for name, one in built.items()
        },
    }


def build(name: str, configuration: Configuration, texts: Sequence[str]) -> Built:
    import onnxruntime

    from moekd.classifier import Classifier
    from moekd.export.graph import graph_of

    if name.partition("-")[0] in METHODS:
        tokenizer = train_published_tokenizer(method_of(name), configuration, texts)
    else:
        size, length = configuration.vocabulary, configuration.max_length
        tokenizer = train_bpe(texts, vocabulary=size, max_length=length, lowercase=True)
    model = build_candidate(configuration, tokenizer, seed=0)
    classifier = Classifier(model, tokenizer, tokenizer.model_max_length)
    graphs = {precision: graph_of(classifier, precision) for precision in PRECISIONS}
    beside = len(tokenizer.backend_tokenizer.to_str(pretty=False).encode())
    facts = {
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "bytes": {precision: len(graph) + beside for precision, graph in graphs.items()},
        "matrix_flops": counted(name, configuration).matrix_flops,
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        precision: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for precision, graph in graphs.items()
    }
    return Built(tokenizer, tokenizer.model_max_length, sessions, facts)


def trained_alike(
    students: Mapping[str, Configuration], beside: Mapping[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy on validation functions of our pick, of the published students of 3 MB and of ours beside them.

    All are trained as the candidates of `moekd` were.
    """
    from moekd.distill.candidates import in_its_own_folder, measure_candidate

    points: Path = arguments.points["moekd"]
    settings = load_settings(arguments.config, arguments.overrides)
    manifest = read_json(points.parent / "manifest.json")
    stages = points.parents[2]
    inputs = {
        name: stages / stage / manifest["inputs"][name] for name, stage in (("data", "data"), ("targets", "mixture"))
    }
    names = [PICK, *(name for one in published_of(SIZES[0]) for name in (one, beside.get(one)) if name)]
    alike = {
        name: replace(
            students[name],
            tokenizer="bpe",
            hidden_dropout=0.0,
            attention_dropout=0.0,
            learning_rate=1e-3,
            batch_size=64,
        )
        for name in names
    }
    measure = partial(
        measure_candidate,
        settings=settings,
        inputs=inputs,
        seed=manifest["variant"]["seed"],
    )
    about = {name: manifest[name] for name in ("key", "inputs", "settings")}
    evaluation = partial(in_its_own_folder, measure, arguments.trained.parent)
    found = evaluate_all(list(alike.values()), evaluation, arguments.trained, about=about)
    return {name: dict(one.values) for name, one in zip(alike, found, strict=True)}


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "lowest": float(np.min(values)),
        "median": float(np.median(values)),
        "highest": float(np.max(values)),
        "mean": float(np.mean(values)),
    }


if __name__ == "__main__":
    main()
