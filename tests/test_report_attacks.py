"""Tables of attacks: pairs over settings, transfer and validity, by hand."""

from __future__ import annotations

import pytest

from moekd.report.attacks import over_settings, transfer_tables, validity_table

MOE, SINGLE, BAG = "student-moe", "student-single", "bag-of-tokens"


def asr(system, value, seed=0, attack="mhm", student="a"):
    return {
        "system": system,
        "student": student,
        "seed": seed,
        "part": f"attack/{attack}",
        "metric": "asr",
        "value": value,
    }


def test_pairs_over_settings_by_hand():
    """Six settings, the first lower in all: the smallest p of six signed ranks, 2 / 2**6; delta -1."""
    rows = [asr(MOE, 0.1 + 0.01 * seed, seed) for seed in range(6)]
    rows += [asr(SINGLE, 0.3 + 0.02 * seed, seed) for seed in range(6)]
    (one,) = over_settings(rows, [(MOE, SINGLE), (MOE, BAG)])
    assert (one["settings"], one["first_lower"]) == (6, 6)
    assert one["difference"] == pytest.approx(-0.225)
    assert one["cliffs_delta"] == -1.0
    assert one["p"] == one["p_holm"] == pytest.approx(2 / 2**6)


def test_a_baseline_meets_every_setting():
    """The bag of tokens has neither a shape nor a seed here: it is paired with all settings; Holm doubles p."""
    rows = [asr(MOE, 0.2, seed, attack) for seed in (0, 1) for attack in ("mhm", "alert")]
    rows += [asr(BAG, 0.1, None, attack, None) for attack in ("mhm", "alert")]
    rows += [asr(SINGLE, 0.2, seed, attack) for seed in (0, 1) for attack in ("mhm", "alert")]
    rows.append({**asr(SINGLE, 0.9, 0), "metric": "accuracy"})
    single, bag = over_settings(rows, [(MOE, SINGLE), (MOE, BAG)])
    assert (single["p"], single["cliffs_delta"], single["first_lower"]) == (1.0, 0.0, 0)
    assert (bag["settings"], bag["cliffs_delta"], bag["first_lower"]) == (4, 1.0, 0)
    assert bag["p_holm"] == pytest.approx(min(1.0, 2 * bag["p"]))


def test_one_setting_is_no_comparison():
    assert over_settings([asr(MOE, 0.1), asr(SINGLE, 0.2)], [(MOE, SINGLE)]) == []


def test_validity_adds_seeds():
    rows = [
        {"system": MOE, "student": "a", "seed": seed, "part": "attack/mhm", "counts": counts}
        for seed, counts in enumerate(({"fooled": 2, "rejected: other tokens": 1}, {"fooled": 1, "withstood": 4}))
    ]
    head, body = validity_table(rows)
    assert head[3:5] == ["fooled", "withstood"]
    assert body == [["mhm", MOE, "a", "3", "4", "0", "0", "0", "1 other tokens"]]


def test_transfer_pools_texts_of_all_seeds():
    """1 of 2 and 3 of 6 are 4 of 8; what nobody was fooled by has no share."""
    rows = [
        {"attack": "mhm", "fooled": MOE, "scored_by": BAG, "value": value, "n": n}
        for value, n in ((0.5, 2), (0.5, 6), (None, 0))
    ]
    ((attack, head, body),) = transfer_tables(rows)
    assert attack == "mhm"
    assert head[1:] == [MOE, BAG]
    assert body == [[MOE, "–", "0.50 (8)"], [BAG, "–", "–"]]
