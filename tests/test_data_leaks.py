"""The leak check: what length alone and a bag of tokens get."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from moekd.config import MoekdSettings
from moekd.data import load_classes, load_parts, prepare
from moekd.data.leaks import TRAINING_PARTS, baseline, length_features, token_features
from moekd.records import PAIR_MARK, Sample
from moekd.scorer import aligned, load_scores


def sample(func: str) -> Sample:
    return Sample("a:1", func, 0, "a")


def prepared(folder: Path, rows: list[dict[str, object]], **changes: object) -> MoekdSettings:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [{"kind": "jsonl", "path": str(path)}], "near_duplicate_jaccard": 1.0, **changes}
    student = {"systems": ["single", "hard"]}
    settings = MoekdSettings.model_validate({"name": "t", "data": data, "student": student})
    (folder / "data").mkdir()
    prepare(settings, {}, folder / "data")
    return settings


def measured(folder: Path, settings: MoekdSettings, system: str) -> tuple[float, dict[str, object]]:
    """Accuracy on test of the predictions that were written, and the facts."""
    place = folder / system
    place.mkdir()
    facts = baseline(settings, {"data": folder / "data"}, place, system=system)
    parts = load_parts(folder / "data")
    logits = aligned(load_scores(place / "predictions.npz"), parts["valid"] + parts["test"])
    assert logits.shape == (len(parts["valid"]) + len(parts["test"]), len(load_classes(settings, folder / "data")))
    truth = [s.label for s in parts["test"]]
    return float((logits[len(parts["valid"]) :].argmax(axis=1) == truth).mean()), facts


def test_a_leak_of_length_is_seen_by_length_only(tmp_path):
    """Vulnerable functions of 12 lines, others of 10 (allowed by balancing), of the same random tokens."""
    rng = np.random.default_rng(0)

    def func(n: int, lines: int) -> str:
        return f"int f{n}(void)\n{{\n" + "\n".join(f"w{rng.integers(40)}();" for _ in range(lines - 3)) + "\n}"

    rows = [{"func": func(n, 10 + 2 * (n % 2)), "label": n % 2, "project": "p"} for n in range(600)]
    settings = prepared(tmp_path, rows)
    assert measured(tmp_path, settings, "length")[0] == 1.0


def test_a_leak_of_order_is_seen_by_the_bag_of_tokens_only(tmp_path):
    """The label is in one pair of tokens in order; lengths are equal. Half A is half of the training functions."""
    rng = np.random.default_rng(0)

    def func(n: int) -> str:
        pair = "copy ( to , from )" if n % 2 else "copy ( from , to )"
        noise = " ".join(f"w{rng.integers(40):02} ( ) ;" for _ in range(6))
        return f"int f{n:03} ( void ) {{ {noise} {pair} ; }}"

    rows = [{"func": func(n), "label": n % 2, "project": "p"} for n in range(600)]
    settings = prepared(tmp_path, rows)
    assert 0.3 < measured(tmp_path, settings, "length")[0] < 0.7
    accuracy, facts = measured(tmp_path, settings, "bag-of-tokens")
    accuracy_a, facts_a = measured(tmp_path, settings, "bag-of-tokens-half-a")
    assert accuracy >= 0.95
    assert accuracy_a >= 0.9
    assert (facts["functions"], facts_a["functions"]) == (480, 240)


def test_length_features_by_hand():
    """Two lines, seven characters."""
    assert length_features([sample("int\na;b")]) == pytest.approx(np.log([[2, 7]]))


def test_token_features_by_hand():
    """Of a a b: tokens a twice and b once, pairs aa and ab once; 1 + ln 2 for the double one; length 1."""
    row = token_features([sample("a a b"), sample("a")])[[0]]
    double, single = 1 + np.log(2), 1.0
    norm = np.sqrt(double**2 + 3 * single**2)
    assert sorted(row.data) == pytest.approx(sorted([double / norm] + 3 * [single / norm]))


def test_features_do_not_depend_on_other_functions():
    """Hashing needs no vocabulary, so nothing of the test part enters training."""
    one, both = token_features([sample("int a;")]), token_features([sample("x"), sample("int a;")])
    assert (one[[0]] != both[[1]]).nnz == 0


def test_pair_features_by_hand():
    """a a b against a c: single tokens a, b and a, c; token pairs aa, ab and ac. Only a is shared."""
    row = token_features([sample(f"a a b{PAIR_MARK}a c")])
    double, single = 1 + np.log(2), 1.0
    one, other = np.sqrt(double**2 + 3 * single**2), np.sqrt(3)
    product = double / one * single / other
    buckets = 2**20
    assert row.shape == (1, 2 * buckets + 1)
    shared, apart, cosine = row[:, :buckets], row[:, buckets:-1], row[:, [-1]]
    assert shared.data[shared.data != 0] == pytest.approx([product])
    differences = [abs(double / one - single / other), *[1 / one] * 3, *[1 / other] * 2]
    assert sorted(apart.data[apart.data != 0]) == pytest.approx(sorted(differences))
    assert cosine.toarray() == pytest.approx(product)
    swapped = token_features([sample(f"a c{PAIR_MARK}a a b")])
    assert np.abs((row - swapped).data).max(initial=0) < 1e-12
    lengths = length_features([sample(f"int\na;b{PAIR_MARK}x")])
    assert lengths == pytest.approx(np.log([[2 * 1, 7 * 1, 2 / 1, 7 / 1]]))


def test_clones_by_shared_words_are_seen_by_the_bag_of_tokens(tmp_path):
    """Functions of ten topics with words of their own; a clone is of the same topic. Lengths are equal."""
    rng = np.random.default_rng(0)
    texts = [
        f"void f{n:03}() {{ {' '.join(f't{n % 10}w{w:02}();' for w in rng.permutation(30)[:12])} }}" for n in range(200)
    ]
    rows = []
    for n in range(4000):
        one = int(rng.integers(200))
        other = int(rng.choice([k for k in range(200) if k != one and (k % 10 == one % 10) == bool(n % 2)]))
        rows.append({"func": texts[one], "other_func": texts[other], "label": n % 2})
    settings = prepared(tmp_path, rows, task="pair", balance=False)
    assert measured(tmp_path, settings, "bag-of-tokens")[0] >= 0.95
    assert 0.3 < measured(tmp_path, settings, "length")[0] < 0.7


def test_three_classes_by_a_word_of_each(tmp_path):
    """One log-odds a class; chosen by accuracy, which the facts say."""
    rng = np.random.default_rng(0)

    def func(n: int) -> str:
        noise = " ".join(f"w{rng.integers(40):02}();" for _ in range(6))
        return f"int f{n:03}(void) {{ {noise} {('open', 'read', 'shut')[n % 3]}(); }}"

    rows = [{"func": func(n), "label": ("x", "y", "z")[n % 3]} for n in range(300)]
    settings = prepared(tmp_path, rows, task="multi-class", balance=False)
    accuracy, facts = measured(tmp_path, settings, "bag-of-tokens")
    assert accuracy >= 0.95
    assert facts["valid_accuracy"] >= 0.95
    assert 0.1 < measured(tmp_path, settings, "length")[0] < 0.7


@pytest.mark.slow
@pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA is not set")
def test_figures_on_bigvul(tmp_path):
    """Measured before on the same rows: 0.65 from half A, 0.68 from A and B, about 0.51 by length after matching."""
    data = {"sources": [{"kind": "parquet", "path": "$MOEKD_DATA/bigvul.parquet"}]}
    settings = MoekdSettings.model_validate({"name": "bigvul", "data": data})
    (tmp_path / "data").mkdir()
    prepare(settings, {}, tmp_path / "data")
    accuracy = {system: measured(tmp_path, settings, system)[0] for system in TRAINING_PARTS}
    assert accuracy["bag-of-tokens-half-a"] == pytest.approx(0.65, abs=0.03)
    assert accuracy["bag-of-tokens"] == pytest.approx(0.68, abs=0.03)
    assert accuracy["length"] == pytest.approx(0.52, abs=0.03)
