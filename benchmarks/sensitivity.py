"""How far one new name moves a model: is what withstands an attack sure of its answer, or do names weigh little in it?

    python benchmarks/sensitivity.py configs/bigvul.toml --set ... --out docs/results/bigvul-sensitivity.json

Takes the settings of a finished run that attacks models, and asks each of those models about the same functions and the
same renames: one local variable gets one name, drawn at random from the names of the training functions. No attack
chooses the renames, so that they are equal for all models. Of the attacks that are finished it also compares two models
on the functions that both have right: each model's success rate is of the functions that it has right itself, and those
that few models have right may be the ones that are easily lost. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from moekd import console, numerics, stages
from moekd.attack.measures import logit
from moekd.attack.runner import read_results
from moekd.attack.stage import RESULTS, attacked_samples, victim_of
from moekd.attack.victims import HasSessions, SavedVictim, Victim
from moekd.attack.vocabulary import frequent_names
from moekd.config import MoekdSettings
from moekd.data import load_parts
from moekd.errors import SettingsError
from moekd.evaluate import Measures, difference, estimate
from moekd.files import write_json
from moekd.records import AttackResult, Sample
from moekd.rewrite.renaming import Template, fault_of_renaming
from moekd.settings_loading import load_settings
from moekd.steps import Step, commit, folder_of, is_finished, read_manifest

#: (system, student shape) -> seed -> rows of `moves`, (functions, 4).
Moved: TypeAlias = dict[tuple[str, Any], dict[Any, np.ndarray]]
#: (system, student shape) -> (attack, seed) -> results by id of the function.
Attacked: TypeAlias = dict[tuple[str, Any], dict[tuple[Any, Any], dict[str, AttackResult]]]

RENAMES = 10  # of a function
DRAWS = 40  # until as many of them are legal
#: Systems that are compared, each with the one it differs from in a single thing.
PAIRS = (
    ("mixture", "teacher"),
    ("student-moe", "student-hard"),
    ("student-single", "student-hard"),
    ("student-moe", "student-single"),
)


def main() -> None:
    arguments = parse()
    settings = load_settings(arguments.config, arguments.set)
    numerics.configure(1)
    victims = finished_victims(settings)
    data = folder_of(victims[0].needs["data"], settings)
    parts = load_parts(data)
    training = [*parts["train_a"], *parts["train_b"]]
    samples = attacked_samples(parts["test"], settings.attack)
    names = frequent_names((sample.func for sample in training), settings.attack.vocabulary)
    renamed = {sample.id: renames(sample, names, settings.attack.seed) for sample in samples}
    asked = [sample for sample in samples if renamed[sample.id]]
    moved: Moved = {}
    made: dict[str, str] = {}
    with console.bar(len(victims), "models") as advance:
        for step in victims:
            folder = folder_of(step.needs["victim"], settings)
            system, student, seed = (step.variant.get(name) for name in ("system", "student", "seed"))
            victim = victim_of(str(system), folder, training, bf16=settings.attack.bf16)
            loaded = victim.load() if isinstance(victim, SavedVictim) else victim
            rows = [moves(loaded, sample, renamed[sample.id]) for sample in asked]
            moved.setdefault((str(system), student), {})[seed] = np.array(rows)
            made[step.needs["victim"].label] = read_manifest(folder)["key"]
            advance(1)
    result = {
        "benchmark": "sensitivity",
        "commit": commit(),
        "config": settings.name,
        "data": read_manifest(data)["key"],
        "steps": made,
        "functions": len(asked),
        "without_identifiers": len(samples) - len(asked),
        "renames": sum(len(renamed[sample.id]) for sample in asked),
        **summary(moved),
        "shared": shared(finished_attacks(settings)),
    }
    write_json(arguments.out, result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `moekd run`")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    return parser.parse_args()


def finished_victims(settings: MoekdSettings) -> list[Step]:
    """One attack step for each model that the run attacks and that is finished, whether the attack is or not."""
    if not settings.attack.attacks:
        raise SettingsError("the run attacks nothing: add --set 'attack.attacks=[\"wir-random\"]', here and in the run")
    attacks = [step for step in stages.plan(settings) if step.stage == "attack"]
    first = [step for step in attacks if step.variant["attack"] == settings.attack.attacks[0]]
    found = [step for step in first if is_finished(step.needs["victim"], settings)]
    if not found:
        raise SettingsError("no model of this run is finished: `moekd run` with the same config and settings first")
    return found


def finished_attacks(settings: MoekdSettings) -> Attacked:
    found: Attacked = {}
    for step in stages.plan(settings):
        if step.stage == "attack" and is_finished(step, settings):
            attack, system, student, seed = (step.variant.get(name) for name in ("attack", "system", "student", "seed"))
            results = {one.id: one for one in read_results(folder_of(step, settings) / RESULTS)}
            found.setdefault((str(system), student), {})[attack, seed] = results
    return found


def renames(sample: Sample, names: Sequence[str], seed: int) -> list[str]:
    """Up to `RENAMES` variants of a function in which one local variable has another name; none where it has none."""
    template = Template.of(sample.func)
    rng = numerics.generator(seed, "sensitivity", sample.id)
    found: dict[str, None] = {}
    for _ in range(DRAWS if template.identifiers else 0):
        old = template.identifiers[int(rng.integers(len(template.identifiers)))].name
        renaming = {old: names[int(rng.integers(len(names)))]}
        if fault_of_renaming(template, renaming) is None:
            found[template.render(renaming)] = None
        if len(found) == RENAMES:
            break
    return list(found)


def moves(victim: Victim, sample: Sample, variants: Sequence[str]) -> tuple[float, float, float, float]:
    """Margin, mean move, greatest fall and whether the answer flips, for one function; log-odds in nats.

    The margin is how far the log-odds are from the decision. A move is the distance that one rename takes them, either
    way; a fall is how far towards the other answer, 0 where every rename makes the model surer.
    """
    ask = victim.session(sample.func) if isinstance(victim, HasSessions) else victim
    log_odds = np.array([logit(p) for p in ask([sample.func, *variants])])
    away = (log_odds[0] - log_odds[1:]) * (1 if log_odds[0] > 0 else -1)
    margin = abs(log_odds[0])
    return margin, np.abs(away).mean(), max(away.max(), 0.0), float(away.max() > margin)


def summary(moved: Moved) -> dict[str, Any]:
    """Measures of each model and differences of the pairs, means over seeds within each function, with intervals."""
    mean = {model: np.mean(list(seeds.values()), axis=0) for model, seeds in moved.items()}
    models = [
        {"system": system, "student": student, "seeds": len(moved[system, student]), "measures": shown(rows)}
        for (system, student), rows in mean.items()
    ]
    pairs = [
        {"first": first, "second": second, "student": shape, "measures": shown(mean[first, shape], mean[second, shape])}
        for shape in dict.fromkeys(shape for _, shape in mean)
        for first, second in PAIRS
        if (first, shape) in mean and (second, shape) in mean
    ]
    return {"models": models, "pairs": pairs}


def shared(attacked: Attacked) -> list[dict[str, Any]]:
    """For each pair, shape and attack: who is fooled among the functions that both have right, of the same seeds.

    `fooled_first` and `fooled_second` are shares, the margins mean log-odds of the label before the attack. A function
    that both have right in several seeds counts in each, and is drawn with all of them.
    """
    rows: list[dict[str, Any]] = []
    for shape in dict.fromkeys(shape for _, shape in attacked):
        for first, second in PAIRS:
            ours, others = attacked.get((first, shape), {}), attacked.get((second, shape), {})
            for attack in dict.fromkeys(name for name, seed in ours if (name, seed) in others):
                counted: dict[str, np.ndarray] = {}
                seeds = [seed for name, seed in ours if name == attack and (name, seed) in others]
                for seed in seeds:
                    for one, other in _both_right(ours[attack, seed], others[attack, seed]):
                        counted[one.id] = counted.get(one.id, np.zeros(5)) + _counted(one, other)
                if counted:
                    about = {"first": first, "second": second, "student": shape, "attack": attack, "seeds": len(seeds)}
                    table = np.array(list(counted.values()))
                    rows.append(
                        about | {"n": int(table[:, 0].sum()), "measures": estimated(shared_measures(table), len(table))}
                    )
    return rows


def _both_right(
    ours: dict[str, AttackResult], others: dict[str, AttackResult]
) -> list[tuple[AttackResult, AttackResult]]:
    pairs = [(one, others[key]) for key, one in ours.items() if key in others]
    return [(one, other) for one, other in pairs if one.was_right and other.was_right]


def _counted(one: AttackResult, other: AttackResult) -> np.ndarray:
    """One function of one seed: 1, whether each model is fooled, and the margin of each."""
    margins = [logit(result.p_original) for result in (one, other) if result.p_original is not None]
    return np.array([1, one.outcome == "fooled", other.outcome == "fooled", *margins], dtype=np.float64)


def shared_measures(table: np.ndarray) -> Measures:
    """Shares and means of the columns of `table`, (functions, 5), as `_counted` has them summed over seeds."""

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        n, *sums = (weights @ table).T
        first, second, margin_first, margin_second = (one / n for one in sums)
        return {
            "fooled_first": first,
            "fooled_second": second,
            "difference": first - second,
            "margin_first": margin_first,
            "margin_second": margin_second,
        }

    return measures


def shown(rows: np.ndarray, minus: np.ndarray | None = None) -> dict[str, dict[str, float]]:
    """The measures of one model, or of one minus another on the same functions, with intervals over functions."""
    wanted = measures_of(rows) if minus is None else difference(measures_of(rows), measures_of(minus))
    return estimated(wanted, len(rows))


def estimated(measures: Measures, n: int) -> dict[str, dict[str, float]]:
    found = estimate(measures, n)
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}


def measures_of(rows: np.ndarray) -> Measures:
    """Means of the columns of `rows`, (functions, 4), and the greatest fall as a share of the margin."""

    def measures(weights: np.ndarray) -> dict[str, np.ndarray]:
        margin, move, fall, flipped = (weights @ rows / weights.sum(axis=1, keepdims=True)).T
        return {"margin": margin, "move": move, "fall": fall, "fall_per_margin": fall / margin, "flipped": flipped}

    return measures


if __name__ == "__main__":
    main()
