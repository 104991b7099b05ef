"""What a table says of attacks beyond one number a model: pairs over all settings, transfer, and what was rejected."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from moekd.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.records import AttackResult

TRANSFER_FILE = "transfer.json"


def over_settings(rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Compare two systems over all settings that both were attacked in: an attack, a student's shape and a seed each.

    Args:
        rows: of `results.json`; those with the metric `asr` are read.
        pairs: of systems, first and second.
    Returns:
        A row for each pair with two settings or more: `settings`, their number; `first_lower`, in how many the first
        is fooled less often; `difference`, the mean of ASR (B) of the first minus that of the second;
        `cliffs_delta`, negative where the first tends to be fooled less; `p` of Wilcoxon's signed-rank test, which no
        fewer than six settings can bring below 0.05, and `p_holm`, corrected for the number of pairs.
    """
    from moekd.attack.measures import cliffs_delta, holm, signed_ranks

    asr = {(r["system"], r["student"], r["seed"], r["part"]): r["value"] for r in rows if r["metric"] == "asr"}
    found = []
    for first, second in pairs:
        values = [
            (value, other)
            for (system, student, seed, part), value in asr.items()
            if system == first and (other := _counterpart(asr, second, student, seed, part)) is not None
        ]
        if len(values) >= 2:
            of_first, of_second = zip(*values, strict=True)
            found.append(
                {
                    "first": first,
                    "second": second,
                    "settings": len(values),
                    "first_lower": sum(a < b for a, b in values),
                    "difference": sum(a - b for a, b in values) / len(values),
                    "cliffs_delta": cliffs_delta(of_first, of_second),
                    "p": signed_ranks(of_first, of_second),
                }
            )
    corrected = holm({f"{one['first']} {one['second']}": one["p"] for one in found})
    return [one | {"p_holm": corrected[f"{one['first']} {one['second']}"]} for one in found]


def _counterpart(
    asr: Mapping[tuple[str, str | None, int | None, str], float],
    system: str,
    student: str | None,
    seed: int | None,
    part: str,
) -> float | None:
    """ASR of another system in the same setting; one without a student's shape or a seed meets all."""
    for key in ((system, student, seed, part), (system, None, seed, part), (system, None, None, part)):
        if key in asr:
            return asr[key]
    return None


def validity(about: Mapping[str, Any], attacks: Mapping[str, Sequence[AttackResult]]) -> list[dict[str, Any]]:
    """Return how many functions ended in each way under each attack, and how many renamings were rejected, by reason.

    Args:
        about: system, student and seed; part of each row.
        attacks: results of one system by the attack's name.
    """
    from moekd.attack import counts

    return [{**about, "part": f"attack/{name}", "counts": counts(results)} for name, results in attacks.items()]


def transferred(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows that the transfer steps wrote."""
    return [row for folder in folders for row in read_json(folder / TRANSFER_FILE)]


# -------------------------------------------------------------------------------------------------- tables


def over_settings_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["first − second", "settings", "first lower", "ASR (B)", "Cliff's delta", "p (Wilcoxon)", "p (Holm)"]
    body = [
        [
            f"{one['first']} − {one['second']}",
            str(one["settings"]),
            str(one["first_lower"]),
            f"{one['difference']:+.3f}",
            f"{one['cliffs_delta']:+.2f}",
            f"{one['p']:.3f}",
            f"{one['p_holm']:.3f}",
        ]
        for one in rows
    ]
    return head, body


def validity_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Counts over all seeds."""
    outcomes = ("fooled", "withstood", "already wrong", "no identifiers", "not attacked")
    added: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        key: tuple[str, ...] = (row["part"].removeprefix("attack/"), row["system"], row["student"] or "")
        added.setdefault(key, Counter()).update(row["counts"])
    body = []
    for key, found in sorted(added.items()):
        rejected = {name.removeprefix("rejected: "): n for name, n in found.items() if name.startswith("rejected: ")}
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(rejected.items()))
        body.append([*key, *(f"{found[outcome]:,}" for outcome in outcomes), reasons or "none"])
    return ["attack", "system", "student", *outcomes, "rejected renamings"], body


def transfer_tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each attack its name, the head and the body of a matrix; texts of all seeds together."""
    hits: Counter[tuple[str, str, str]] = Counter()
    texts: Counter[tuple[str, str, str]] = Counter()
    names: dict[str, None] = {}
    for row in rows:
        key = (row["attack"], row["fooled"], row["scored_by"])
        names |= dict.fromkeys(key[1:])
        texts[key] += row["n"]
        hits[key] += round((row["value"] or 0) * row["n"])

    def shown(attack: str, first: str, second: str) -> str:
        n = texts[attack, first, second]
        return f"{hits[attack, first, second] / n:.2f} ({n})" if n else "–"

    return [
        (
            attack,
            ["fooled \\ scored by", *names],
            [[one, *(shown(attack, one, other) for other in names)] for one in names],
        )
        for attack in dict.fromkeys(row["attack"] for row in rows)
    ]
