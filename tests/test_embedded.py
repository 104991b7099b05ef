"""The embedded data set: balanced, compilable, no giveaway for a bag of tokens."""

from __future__ import annotations

import random
import re
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from moekd.data import embedded, templates
from moekd.data.duplicates import Union, join_near_duplicates
from moekd.data.leaks import length_features, token_features
from moekd.data.text import digest, normalise
from moekd.partition import group_of_cwe


@pytest.fixture(scope="module")
def samples():
    return embedded.generate(3000, seed=7)


def compiler_output(functions, folder):
    """Compile all functions in one file, each under a name of its own, and return what the compiler says."""
    parts = [templates.PRELUDE]
    for n, function in enumerate(functions):
        name = re.search(r"(\w+)\(", function)[1]
        parts.append(f"#define {name} {name}_{n}\n{function}\n#undef {name}\n")
    source = folder / "functions.c"
    source.write_text("\n".join(parts), encoding="utf-8")
    command = ["cc", "-std=c11", "-fsyntax-only", "-w", source.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr


def test_same_arguments_same_functions():
    """A result names its data by count and seed, so these two must fix it."""
    assert embedded.generate(100, seed=3) == embedded.generate(100, seed=3)
    assert embedded.generate(100, seed=3) != embedded.generate(100, seed=4)


def test_labels_and_groups_are_even(samples):
    """Half is vulnerable, and each of the ten groups has at least 8 % of the vulnerable functions."""
    assert Counter(sample.label for sample in samples) == {0: 1500, 1: 1500}
    groups = Counter(group_of_cwe(sample.cwe) for sample in samples if sample.label)
    assert len(groups) == 10
    assert min(groups.values()) >= 0.08 * 1500


def test_twins_differ_in_the_decisive_lines_only():
    """Same names, filler and layout: at most six lines of one twin are not lines of the other."""
    rng = random.Random(5)
    for scene in (scene for scenes in templates.SCENES.values() for scene in scenes):
        twins = embedded.draw_twins(rng, scene)
        assert twins.safe != twins.vulnerable
        lines = [Counter(line.strip() for line in text.splitlines()) for text in (twins.safe, twins.vulnerable)]
        assert max((lines[0] - lines[1]).total(), (lines[1] - lines[0]).total()) <= 6, twins


def test_functions_are_seldom_alike(samples):
    """Near-duplicates stay on one side of a split; were there many, one side would get a whole template."""
    texts = [normalise(sample.func) for sample in samples]
    union = Union(len(texts))
    join_near_duplicates(texts, union, jaccard=0.7)
    largest = Counter(union.sets()).most_common(1)[0][1]
    assert len(set(union.sets())) > 0.9 * len(texts)
    assert largest < 0.02 * len(texts)


@pytest.mark.parametrize(("features", "low", "high"), [(token_features, 0.55, 0.75), (length_features, 0.44, 0.56)])
def test_no_giveaway(samples, features, low, high):
    """A bag of tokens learns a little, as on real data; length alone nothing."""
    from sklearn.linear_model import LogisticRegression

    texts = [replace(sample, func=normalise(sample.func)) for sample in samples]
    assert len({digest(sample.func) for sample in texts}) > 0.99 * len(texts)
    labels = np.array([sample.label for sample in samples])
    x = features(texts)
    model = LogisticRegression(C=10.0, solver="newton-cg", max_iter=1000).fit(x[:2200], labels[:2200])
    assert low <= model.score(x[2200:], labels[2200:]) <= high


def test_no_label_without_a_jump(samples):
    """A safe function has a label at its end only where it gives up by jumping there."""
    safe = [sample.func for sample in samples if not sample.label]
    assert all("goto fail;" in func for func in safe if "fail:" in func)


def test_order_not_presence():
    """Most twins hold exactly the same lines, in another order."""
    rng = random.Random(6)
    scenes = [scene for scenes in templates.SCENES.values() for scene in scenes]
    twins = [embedded.draw_twins(rng, scene) for scene in scenes * 20]
    ordered = [twin for twin in twins if twin.mechanism in {"late", "swapped", "bracket"}]
    assert len(ordered) > 0.6 * len(twins)
    assert all(sorted(twin.safe.splitlines()) == sorted(twin.vulnerable.splitlines()) for twin in ordered)


def test_functions_compile(samples, tmp_path):
    """Each is accepted by the compiler after templates.PRELUDE."""
    assert compiler_output([sample.func for sample in samples[:600]], tmp_path) == ""


@pytest.mark.slow
def test_all_functions_compile(tmp_path):
    functions = [sample.func for sample in embedded.generate(8000, seed=0)]
    assert compiler_output(functions, tmp_path) == ""


def test_generator_belongs_to_the_key(monkeypatch):
    """Other templates mean other data: the data step's key must change with them."""
    before = embedded.fingerprint()
    assert before == embedded.fingerprint()
    monkeypatch.setattr(templates, "ANSWERS", templates.ANSWERS[:1])
    assert embedded.fingerprint() != before
