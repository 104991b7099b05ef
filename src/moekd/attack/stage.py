"""Attacks as stages of a run, and on a file of functions for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd import console, numerics
from moekd.attack import runner
from moekd.attack.measures import counts, robustness, transfer, wilson
from moekd.attack.runner import read_results
from moekd.attack.schedule import Names, no_substitutes
from moekd.attack.search import UnusableAnswerError
from moekd.attack.substitutes import Substitutes, shared_file
from moekd.attack.victims import SavedVictim, ScorerVictim, is_callable, load_victim, place_of_victim
from moekd.attack.vocabulary import frequent_names
from moekd.errors import DataError
from moekd.files import read_json, sha256_file, sha256_text, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.attack.victims import Victim
    from moekd.config import Attack, AttackName, MoekdSettings
    from moekd.data.tally import Tally
    from moekd.evaluate import Estimate
    from moekd.records import AttackResult, Sample

RESULTS = "results.jsonl"
SUBSTITUTES = "substitutes.jsonl"
TRANSFER = "transfer.json"
BAG_OF_TOKENS = "bag-of-tokens"
_EMBEDDED = 4000  # functions of the embedded data that names come from where no others are given


def attacked_samples(samples: Sequence[Sample], settings: Attack) -> list[Sample]:
    """Draw `settings.samples` functions by seed, in the order of `samples`; all of them if there are no more."""
    rng = numerics.generator(settings.seed, "attacked samples")
    drawn = rng.permutation(len(samples))[: settings.samples]
    return [samples[index] for index in sorted(drawn.tolist())]


def propose(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Stage: ALERT's candidate names of the functions to attack, for all models; writes `substitutes.jsonl`.

    Args:
        inputs: `data`.
    """
    from moekd.data import load_parts

    numerics.configure(1)  # here as in each process
    samples = attacked_samples(load_parts(inputs["data"])["test"], settings.attack)
    substitutes = Substitutes(folder / SUBSTITUTES, settings.attack)
    substitutes.compute(samples, processes=settings.run.threads)
    names = [names for sample in samples for names in substitutes(sample).values()]
    return {"functions": len(samples), "identifiers": len(names), "names": sum(map(len, names))}


def attack_system(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, attack: AttackName, system: str, **_: Any
) -> dict[str, Any]:
    """Stage: one attack on one model of the run, on functions of its test part; writes `results.jsonl`.

    MHM and WIR-Random draw from the names of the training parts.

    Args:
        inputs: `data`, `victim` (a folder that holds the saved model in `model/`; the bag of tokens is fitted again),
            and `substitutes` of ALERT.
        system: name of the model.
    Returns:
        Outcomes, counted.
    """
    from moekd.data import load_parts

    numerics.configure(1)  # here as in each worker process
    wanted = settings.attack.of(attack)
    parts = load_parts(inputs["data"])
    training = [*parts["train_a"], *parts["train_b"]]
    names = Names(
        frequent_names((sample.func for sample in training), wanted.vocabulary),
        Substitutes(inputs["substitutes"] / SUBSTITUTES, settings.attack) if attack == "alert" else no_substitutes,
    )
    victim = victim_of(system, inputs["victim"], training, bf16=wanted.bf16)
    samples = attacked_samples(parts["test"], wanted)
    path, processes = folder / RESULTS, settings.run.threads
    results = runner.attack(victim, samples, wanted, names, path=path, model=system, workers=processes)
    return {"outcomes": counts(results)}


def victim_of(system: str, folder: Path, training: Sequence[Sample], *, bf16: bool) -> Victim | SavedVictim:
    """A model of a run from the folder of its step; the bag of tokens is fitted again, on `training`."""
    return _bag_of_tokens(folder, training) if system == BAG_OF_TOKENS else SavedVictim(folder / "model", bf16)


def transfer_systems(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, **_: Any) -> dict[str, Any]:
    """Stage: what fooled one model of the run, scored by each other one; writes `transfer.json`.

    Args:
        inputs: `data`; for each attack on a model, by any name N, the folder of its results as `N` and that of the
            model as `victim of N`.
    Returns:
        Number of shares, one a row: attack, fooled and scored_by (names of models), value, low, high, n. Of a model
        that gives no usable answer n is 0.
    """
    from moekd.data import load_parts

    numerics.configure(settings.run.threads)
    parts = load_parts(inputs["data"])
    originals = {sample.id: sample.func for sample in parts["test"]}
    training = [*parts["train_a"], *parts["train_b"]]
    names = [name for name in inputs if f"victim of {name}" in inputs]
    variants = {name: read_json(inputs[name] / "manifest.json")["variant"] for name in names}
    results = {name: read_results(inputs[name] / RESULTS) for name in names}
    models = {inputs[f"victim of {name}"]: variants[name] for name in names}
    rows: list[dict[str, Any]] = []
    for model, scorer in models.items():
        found = victim_of(scorer["system"], model, training, bf16=settings.attack.bf16)
        victim = found.load() if isinstance(found, SavedVictim) else found
        for fooled in (name for name in names if inputs[f"victim of {name}"] != model):
            try:
                share = transfer(results[fooled], originals, victim, confidence=settings.evaluate.confidence)
            except UnusableAnswerError:
                share = wilson(0, 0)
            about = {"fooled": _called(variants[fooled]), "scored_by": _called(scorer)}
            rows.append({"attack": variants[fooled]["attack"]} | about | _estimate_fields(share))
    write_json(folder / TRANSFER, rows)
    return {"shares": len(rows)}


def _called(variant: Mapping[str, Any]) -> str:
    """Name of a model in a transfer table: its system, and the shape where it is a student."""
    return " ".join(str(variant[name]) for name in ("system", "student") if name in variant)


def _estimate_fields(estimate: Estimate) -> dict[str, Any]:
    """JSON has no NaN: what has no samples is null."""
    if not estimate.n:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _bag_of_tokens(folder: Path, training: Sequence[Sample]) -> Victim:
    from moekd.data.leaks import BagOfTokens

    facts = read_json(folder / "manifest.json")["facts"]
    return ScorerVictim(BagOfTokens.fit(training, facts["inverse_penalty"]))


def of_attack(results: Sequence[AttackResult], name: str) -> list[AttackResult]:
    return [one for one in results if one.attack == name]


# -------------------------------------------------------------------------------------------- command line


def attack_file(
    model: str, data: Path, settings: Attack, *, out: Path, names_from: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Attack a saved model on a file of labelled functions; results go to `out` as JSON lines, as they come.

    Args:
        model: what `load_victim` takes.
        data: functions, as `moekd.data.read_samples` reads them.
        names_from: functions whose names MHM and WIR-Random draw from; default: the embedded data set.
    Returns:
        For each attack: `measures`, name -> Estimate, and `counts`.
    Raises:
        DataError: the file holds no usable function.
        SettingsError: the model cannot be loaded, or `out` holds results of other work.
    """
    from moekd.config import Run
    from moekd.data import read_samples
    from moekd.data.embedded import generate

    loaded = read_samples(data)
    if loaded.tally.dropped:
        console.say(_left_out(data, loaded.tally))
    samples = attacked_samples(loaded.samples, settings)
    if not samples:
        raise DataError(f"{data} holds no function that can be used")
    numerics.configure(1)  # here as in each worker process
    victim: Victim | SavedVictim = load_victim(model, bf16=settings.bf16)  # what cannot be loaded, before any work
    if not is_callable(model):  # which is asked in this process: what it holds may not exist in another one
        victim = SavedVictim(model, settings.bf16)
    others = read_samples(names_from).samples if names_from else generate(_EMBEDDED, 0)
    workers = Run().threads
    names = Names(
        frequent_names((sample.func for sample in others), settings.vocabulary),
        _substitutes(samples, settings, out.parent, workers) if "alert" in settings.attacks else no_substitutes,
    )
    results = runner.attack(victim, samples, settings, names, path=out, model=_identity(model), workers=workers)
    found: dict[str, dict[str, Any]] = {}
    for name in settings.attacks:
        own = of_attack(results, name)
        found[name] = {"measures": robustness(own), "counts": counts(own)}
    return found


def _left_out(data: Path, tally: Tally) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.most_common())
    return f"{data}: {tally.kept:,} of {tally.read:,} functions can be used; left out: {reasons}"


def _substitutes(samples: Sequence[Sample], settings: Attack, folder: Path, processes: int) -> Substitutes:
    """ALERT's names of all samples, found before the attack: later, one process would find them while others wait."""
    substitutes = Substitutes(shared_file(folder, settings), settings)
    substitutes.compute(samples, processes=processes)
    return substitutes


def _identity(model: str) -> str:
    """Name of a model and, for files, a digest of them: another model in its place is another model."""
    place = place_of_victim(model)
    if is_callable(model) or not place.exists():
        return model
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return f"{place.name} {sha256_text(' '.join(sha256_file(path) for path in files))[:16]}"


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of what `attack_file` found, for people."""
    columns = ("asr", "asr_with_identifiers", "accuracy", "accuracy_under_attack", "queries", "renamed_share")
    lines = [
        "| attack | ASR (B) | ASR (A) | accuracy | under attack | queries | identifiers renamed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = [_shown(one["measures"][column], share=column != "queries") for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        "ASR (B) = fooled / classified correctly; ASR (A) leaves out functions without an identifier to rename."
    )
    lines += [
        f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in one['counts'].items())}"
        for name, one in found.items()
    ]
    return "\n".join(lines)


def _shown(estimate: Estimate, *, share: bool) -> str:
    if not estimate.n:
        return "–"
    if share:
        return f"{estimate.value:.1%} ({estimate.low:.1%} – {estimate.high:.1%})"
    return f"{estimate.value:.1f} ({estimate.low:.1f} – {estimate.high:.1f})"
