"""Experts and router: the focal loss, what each is trained on, and the light heads of the `shared` way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from micro import settings
from sklearn.metrics import f1_score

from moekd import numerics, stages
from moekd.classifier import Classifier, predict
from moekd.errors import DataError
from moekd.experts import shared, training
from moekd.experts.corpus import Corpus
from moekd.experts.losses import class_factors, focal_loss
from moekd.experts.training import group_counts, macro_f1
from moekd.files import read_arrays, write_arrays, write_json
from moekd.partition import load as load_groups
from moekd.records import LABELS, PARTS
from moekd.steps import run_steps
from moekd.tokens import Tokens
from moekd.training import History, fit

# ------------------------------------------------------------------------------------------------ losses


def tensor(*values) -> torch.Tensor:
    return torch.tensor(np.array(values), dtype=torch.float64)


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.519860), (1.0, 0.259930), (2.0, 0.129965)])
def test_focal_loss_by_hand(gamma, expected):
    """Two equal logits, factor 3/4: 0.75 * (1/2)^gamma * ln 2 nats."""
    loss = focal_loss(tensor([0, 0]), torch.tensor([1]), alpha=tensor(0.25, 0.75), gamma=gamma)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_focal_loss_is_a_mean_over_the_batch():
    """Equation 2 has 1/N; the reference sums, which ties the learning rate to the batch size."""
    logits, target, alpha = tensor([1, 2, 0]), torch.tensor([2]), tensor(0.2, 0.3, 0.5)
    one = focal_loss(logits, target, alpha=alpha, gamma=1.0)
    many = focal_loss(logits.repeat(7, 1), target.repeat(7), alpha=alpha, gamma=1.0)
    assert float(many) == pytest.approx(float(one))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), groups=st.integers(2, 5), gamma=st.floats(0, 4))
def test_focal_loss_against_a_slow_reference(seed, rows, groups, gamma):
    rng = np.random.default_rng(seed)
    logits, alpha = rng.normal(0, 3, (rows, groups)), rng.uniform(0.05, 1, groups)
    target = rng.integers(0, groups, rows)
    total = 0.0
    for values, true in zip(logits, target, strict=True):
        p = np.exp(values[true]) / sum(np.exp(value) for value in values)
        total -= alpha[true] * (1 - p) ** gamma * np.log(p)
    loss = focal_loss(tensor(*logits), torch.from_numpy(target), alpha=tensor(*alpha), gamma=gamma)
    assert float(loss) == pytest.approx(total / rows, rel=1e-9, abs=1e-12)


def test_gamma_zero_is_weighted_cross_entropy():
    rng = np.random.default_rng(0)
    logits, target = torch.from_numpy(rng.normal(size=(8, 4))), torch.from_numpy(rng.integers(0, 4, 8))
    alpha = tensor(0.1, 0.2, 0.3, 0.4)
    expected = torch.nn.functional.cross_entropy(logits, target, weight=alpha, reduction="sum") / 8
    assert float(focal_loss(logits, target, alpha=alpha, gamma=0.0)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("logits", "target", "alpha"),
    [((2, 3), (2,), (2,)), ((2, 3), (3,), (3,)), ((2, 3), (2, 1), (3,)), ((3,), (), (3,))],
)
def test_focal_loss_refuses_shapes_that_do_not_fit(logits, target, alpha):
    with pytest.raises(ValueError, match="do not fit"):
        focal_loss(torch.zeros(logits), torch.zeros(target, dtype=torch.int64), alpha=torch.ones(alpha), gamma=1.0)


def test_class_factors_by_hand():
    """10 and 30 of 40: 4 and 4/3, scaled to sum 1."""
    assert class_factors(("a", "b"), {"a": 10, "b": 30}) == pytest.approx([0.75, 0.25])


def test_a_group_without_functions_silences_nobody():
    assert class_factors(("a", "b", "c"), {"a": 10, "b": 30, "c": 0}) == pytest.approx([0.75, 0.25, 0.0])


@given(st.permutations(["CWE-664", "CWE-707", "other", "unknown"]))
def test_class_factors_are_bound_to_names(names):
    """Whatever the order of groups and counts, a name has its own factor; in the reference they were in two orders."""
    counts = {"unknown": 70, "CWE-664": 20, "other": 3, "CWE-707": 7}
    known = dict(zip(sorted(counts), class_factors(sorted(counts), counts), strict=True))
    assert dict(zip(names, class_factors(names, counts), strict=True)) == pytest.approx(known)
    assert max(known, key=known.__getitem__) == "other"


def test_group_counts_by_hand():
    """-1 is no group; a name is found at its own index."""
    assert group_counts(("b", "a"), np.array([0, -1, 1, 1, -1, 1])) == {"b": 1, "a": 3}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_f1_against_scikit_learn(pairs):
    truth, answer = (np.array(column) for column in zip(*pairs, strict=True))
    expected = f1_score(truth, answer, average="macro", zero_division=0)  # of the classes that occur
    assert macro_f1(truth, answer, 5) == pytest.approx(expected)


def test_macro_f1_of_nothing():
    assert macro_f1(np.array([], dtype=int), np.array([], dtype=int), 3) == 0.0


# ---------------------------------------------------------------------------------------- what is learned


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """Folders of data, encoder and partition of a small run."""
    chosen = settings(tmp_path_factory.mktemp("inputs") / "runs")
    steps = {step.stage: step for step in stages.plan(chosen)}
    partition = steps["router"].needs["partition"]
    folders = run_steps([steps["encoder"], partition], chosen)
    return {"data": folders["data"], "encoder": folders["encoder"], "partition": folders[partition.label]}


@pytest.fixture(scope="module")
def corpus(inputs) -> Corpus:
    return Corpus.load(inputs)


@pytest.fixture
def tasks(monkeypatch):
    """The tasks that were given to the training loop, by name; nothing is trained."""
    seen = {}

    def remember(model, task, settings, *, pad_id, seed, folder) -> History:
        seen[task.name] = task
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        (folder / "best.safetensors").touch()
        return History()

    monkeypatch.setattr(training, "fit", remember)
    return seen


@pytest.mark.parametrize("negatives", ["all", "benign"])
def test_an_expert_sees_all_of_its_group_and_as_many_others(inputs, corpus, tasks, tmp_path, negatives):
    """1:1, drawn anew each epoch and the same for a seed; of everything else, or of non-vulnerable code only."""
    chosen = settings(experts={"negatives": negatives})
    training.train_experts(chosen, inputs, tmp_path, partition="cwe", seed=0)
    groups = load_groups(inputs["partition"])
    members, labels = corpus.groups("train_a", groups.of), corpus.labels("train_a")
    assert tasks.keys() == {f"expert {name}" for name in groups.names}
    others = set()
    for index, name in enumerate(groups.names):
        draws = [tasks[f"expert {name}"].draw(epoch) for epoch in (0, 1, 0)]
        positives = set(np.flatnonzero(members == index))
        for rows in draws:
            assert len(set(rows)) == len(rows) == 2 * len(positives)
            assert positives <= set(rows)
        negative = [set(rows) - positives for rows in draws]
        assert negative[0] == negative[2] != negative[1]
        others |= negative[0]
    assert (labels[list(others)] == 0).all() == (negatives == "benign")


def test_an_expert_tells_its_group_from_the_rest(inputs, corpus, tasks, tmp_path):
    """The target is membership of the group, not vulnerability: sure and right costs nothing."""
    training.train_experts(settings(), inputs, tmp_path, partition="cwe", seed=0)
    groups = load_groups(inputs["partition"])
    members = corpus.groups("train_a", groups.of)
    for index, name in enumerate(groups.names):
        task = tasks[f"expert {name}"]
        rows = task.draw(0)
        right = torch.nn.functional.one_hot(torch.from_numpy((members[rows] == index).astype(np.int64)), 2) * 40.0
        assert float(task.loss(right, rows)) == pytest.approx(0)
        assert float(task.loss(-right, rows)) == pytest.approx(40)


def test_the_router_learns_groups_of_vulnerable_functions_only(inputs, corpus, tasks, tmp_path):
    training.train_router(settings(), inputs, tmp_path, system="router", seed=0)
    groups = load_groups(inputs["partition"])
    members = corpus.groups("train_a", groups.of)
    rows = tasks["router"].draw(0)
    assert set(rows) == set(np.flatnonzero(corpus.labels("train_a") == 1))
    right = torch.nn.functional.one_hot(torch.from_numpy(members[rows]), len(groups.names)) * 40.0
    assert float(tasks["router"].loss(right, rows)) == pytest.approx(0, abs=1e-6)


def test_a_linear_router_learns_groups_without_an_encoder(inputs, corpus, tmp_path):
    """A table alone learns the groups of half A's vulnerable functions by heart, and no other weights are saved."""
    chosen = settings(
        encoder={"ngram_buckets": 4096},
        router={"model": "n-grams", "training": {"epochs": 30, "ngram_learning_rate": 5e-3, "schedule": "one-cycle"}},
    )
    training.train_router(chosen, inputs, tmp_path, system="router", seed=0)
    router = Classifier.from_pretrained(tmp_path / "model")
    groups = load_groups(inputs["partition"])
    assert {name: tuple(value.shape) for name, value in router.model.state_dict().items()} == {
        "ngrams.weight": (4096, len(groups.names))
    }
    vulnerable = [sample for sample in corpus.samples["train_a"] if sample.label]
    found = router.logits([sample.func for sample in vulnerable]).argmax(1)
    assert np.mean(found == [groups.of[sample.id] for sample in vulnerable]) > 0.9


def test_a_group_nobody_can_learn_is_refused(inputs, tasks, tmp_path):
    groups = load_groups(inputs["partition"])
    empty = {"scheme": "cwe", "groups": [*groups.names, "CWE-0"], "group_of": groups.of}
    write_json(tmp_path / "partition" / "partition.json", empty)
    with pytest.raises(DataError, match=r"'CWE-0' has no vulnerable function in half A.*lower partition\.min_samples"):
        training.train_experts(
            settings(), {**inputs, "partition": tmp_path / "partition"}, tmp_path, partition="cwe", seed=0
        )


def test_finished_experts_are_not_trained_again(inputs, tasks, tmp_path):
    """Nor are the checkpoints kept of one that was killed behind its last file but before they were removed."""
    first = training.train_experts(settings(), inputs, tmp_path, partition="cwe", seed=0)
    names = sorted(tasks)
    left, unfinished = (tmp_path / name.replace(" ", "-") for name in names[:2])
    (left / "best.safetensors").touch()
    (unfinished / "history.json").unlink()
    tasks.clear()
    second = training.train_experts(settings(), inputs, tmp_path, partition="cwe", seed=0)
    assert list(tasks) == [names[1]]
    assert first == second
    assert not [path for path in tmp_path.rglob("*") if path.name in ("best.safetensors", "checkpoint")]


def test_experts_start_from_the_whole_teacher(inputs, corpus, tasks, tmp_path):
    """Before its first step each expert is the teacher, head included: its question is a part of the teacher's."""
    chosen = settings(experts={"start": "teacher"})
    teacher = training.new_model(chosen, corpus, chosen.teacher.training, LABELS, 5)
    training.save_model(teacher, corpus, tmp_path / "teacher" / "model", chosen)
    training.train_experts(chosen, {**inputs, "teacher": tmp_path / "teacher"}, tmp_path, partition="cwe", seed=0)
    folders = list(tmp_path.glob("expert-*"))
    assert len(folders) >= 3
    for folder in folders:
        expert = Classifier.from_pretrained(folder).model.state_dict()
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, expert[name]), name


def test_the_best_epoch_is_judged_by_f1_at_one_to_one(inputs, corpus, tasks, tmp_path):
    """An expert that always says yes has precision 1/2 and recall 1 on validation: F1 2/3."""
    training.train_experts(settings(), inputs, tmp_path, partition="cwe", seed=0)
    model = training.new_model(settings(), corpus, settings().experts.training, LABELS, 0)
    with torch.no_grad():
        model.classifier.out_proj.weight.zero_()
        model.classifier.out_proj.bias.copy_(torch.tensor([0.0, 1.0]))
    judged = [task.measure(model) for task in tasks.values() if task.measure]
    assert judged == pytest.approx([2 / 3] * len(judged))
    assert len(judged) >= 3


# ---------------------------------------------------------------------------------------- shared experts


def test_features_one_by_one(corpus):
    """First token beside the mean over real tokens: padding in a batch changes nothing."""
    model = training.new_model(settings(), corpus, settings().experts.training, LABELS, 0).eval()
    tokens = corpus.tokens["valid"].take(np.arange(9))
    values, logits = shared.features(model, tokens, pad_id=corpus.pad_id, bf16=False)
    for row in range(9):
        ids, _ = tokens.padded(np.array([row]), corpus.pad_id)
        with torch.inference_mode():
            states = model.base_model(input_ids=torch.from_numpy(ids)).last_hidden_state[0]
        expected = torch.cat((states[0], states.mean(0))).numpy()
        np.testing.assert_allclose(values[row], expected, atol=1e-5)
    np.testing.assert_allclose(logits, predict(model, tokens, pad_id=corpus.pad_id), atol=1e-5)


@pytest.mark.parametrize("negatives", ["all", "benign"])
def test_weights_balance_each_expert(inputs, corpus, negatives):
    """Positives and negatives of an expert weigh the same, half of the samples each."""
    groups = load_groups(inputs["partition"])
    chosen = settings(experts={"negatives": negatives}).experts
    target, weight = shared._targets(chosen, corpus, groups.of, len(groups.names), "train_a")
    labels = torch.from_numpy(corpus.labels("train_a"))
    half = len(labels) / 2
    assert (weight * target).sum(0).tolist() == pytest.approx([half] * len(groups.names))
    assert (weight * (1 - target)).sum(0).tolist() == pytest.approx([half] * len(groups.names))
    elsewhere = weight[(labels == 1)[:, None] & (target == 0)]
    assert bool((elsewhere > 0).all()) == (negatives == "all")
    assert bool((elsewhere == 0).all()) == (negatives == "benign")


def test_heads_against_a_loop():
    """K small networks at once: linear, rectifier, linear."""
    heads = shared._new_heads(3, 10, seed=1)
    with torch.no_grad():
        for name in ("in_bias", "out_bias"):
            heads[name].copy_(torch.randn(heads[name].shape, generator=torch.Generator().manual_seed(2)))
    values = torch.randn(5, 10, generator=torch.Generator().manual_seed(3))
    logits = shared.head_logits(heads, values)
    assert logits.shape == (5, 3, 2)
    for text in range(5):
        for expert in range(3):
            hidden = torch.relu(values[text] @ heads["in_weight"][expert] + heads["in_bias"][expert])
            expected = hidden @ heads["out_weight"][expert] + heads["out_bias"][expert]
            torch.testing.assert_close(logits[text, expert], expected)


def test_saved_heads_answer_as_in_training(inputs, corpus, tmp_path):
    """The F1 that chose each head's epoch is found again from the saved heads and the raw features."""
    groups = load_groups(inputs["partition"])
    count = len(groups.names)
    rng = np.random.default_rng(0)
    for part in PARTS:
        target = np.maximum(corpus.groups(part, groups.of), 0)
        hints = np.eye(count, 24)[target] * corpus.labels(part)[:, None]
        values = (hints * 3 + rng.normal(size=(len(target), 24))) * 50 + 7  # heads scale what they read
        write_arrays(tmp_path / f"{part}-features.npz", {"values": values.astype(np.float32)})
    chosen = settings(experts={"mode": "shared", "head_epochs": 12, "head_learning_rate": 1e-2})
    facts = shared.train_heads(chosen, {**inputs, "shared": tmp_path}, tmp_path, partition="cwe", seed=0)
    answers = shared.score_heads(tmp_path, shared.load_features(tmp_path, "valid")).argmax(-1)
    target, weight = shared._targets(chosen.experts, corpus, groups.of, count, "valid")
    judged = [index for index in range(count) if target[:, index].any()]
    found = [facts["valid_f1"][groups.names[index]] for index in judged]
    expected = [f1_score(target[:, i], answers[:, i], sample_weight=weight[:, i], zero_division=0) for i in judged]
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.mean(found) > 0.6  # the hints can be learned


def test_a_head_that_nobody_judges_is_trained_to_the_end(inputs, corpus, tmp_path):
    """A group that validation lacks has F1 0 in every epoch: the first, nearly untrained one, must not win."""
    groups = load_groups(inputs["partition"])
    judges = {sample.id for sample in corpus.samples["valid"]}
    elsewhere = {name: group for name, group in groups.of.items() if group != 0 or name not in judges}
    write_json(tmp_path / "partition.json", {"scheme": "cwe", "groups": list(groups.names), "group_of": elsewhere})
    rng = np.random.default_rng(0)
    for part in PARTS:
        values = rng.normal(size=(len(corpus.samples[part]), 8)).astype(np.float32)
        write_arrays(tmp_path / f"{part}-features.npz", {"values": values})
    moved = []
    for epochs in (1, 4):
        chosen = settings(experts={"mode": "shared", "head_epochs": epochs})
        folders = {**inputs, "shared": tmp_path, "partition": tmp_path}
        shared.train_heads(chosen, folders, tmp_path, partition="cwe", seed=0)
        moved.append(np.abs(read_arrays(tmp_path / "heads.npz")["in_bias"][0]).mean())  # it starts at 0
    assert moved[1] > 2 * moved[0]


def test_the_shared_encoder_answers_both_questions(inputs, corpus, tmp_path):
    """Its first two outputs are the label, the others the router's, named and saved as a router's."""
    chosen = settings(experts={"mode": "shared"})
    facts = shared.train_shared(chosen, inputs, tmp_path, system="router", seed=0)
    groups = load_groups(inputs["partition"])
    saved = Classifier.from_pretrained(tmp_path / "model")
    assert list(saved.model.config.id2label.values()) == [*LABELS, *groups.names]
    samples = corpus.samples["train_b"][:5]
    logits = saved.logits([sample.func for sample in samples])[:, 2:]
    stored = read_arrays(tmp_path / "targets.npz")
    assert stored["logits"].shape == (len(corpus.samples["train_b"]), len(groups.names))
    np.testing.assert_allclose(stored["logits"][:5], logits, atol=0.02)  # scored in bf16
    read = shared.load_features(tmp_path, "train_b")  # the logits are the last of the features
    np.testing.assert_array_equal(read[:, -len(groups.names) :], stored["logits"])
    assert read.shape[1] == 2 * saved.model.config.hidden_size + len(LABELS) + len(groups.names)
    assert facts["rows"]["train_seconds"] > 0


def test_the_losses_of_the_shared_encoder_add_up(inputs, corpus, tmp_path, monkeypatch):
    """Cross-entropy of the label everywhere, focal loss where a group is known, both means over their rows."""
    seen = {}

    def remember(model, task, chosen, **options) -> History:
        seen["task"] = task
        return fit(model, task, chosen, **options)

    monkeypatch.setattr(shared, "fit", remember)
    shared.train_shared(settings(experts={"mode": "shared"}), inputs, tmp_path, system="router", seed=0)
    groups = load_groups(inputs["partition"])
    members, labels = corpus.groups("train_a", groups.of), corpus.labels("train_a")
    count = len(groups.names)
    logits = torch.randn(10, 2 + count, generator=torch.Generator().manual_seed(0))
    for rows in (np.arange(10), np.flatnonzero(labels == 0)[:10]):
        answer = torch.nn.functional.cross_entropy(logits[:, :2], torch.from_numpy(labels[rows]))
        known = np.flatnonzero(members[rows] >= 0)
        if len(known):
            factors = torch.tensor(class_factors(groups.names, group_counts(groups.names, members))) * count
            answer += focal_loss(logits[known, 2:], torch.from_numpy(members[rows][known]), alpha=factors, gamma=1.0)
        assert float(seen["task"].loss(logits, rows)) == pytest.approx(float(answer))


def test_tokens_of_a_corpus_belong_to_its_samples(corpus):
    for part in PARTS:
        expected = Tokens.of(
            corpus.tokenizer([sample.func for sample in corpus.samples[part]], truncation=True)["input_ids"]
        )
        np.testing.assert_array_equal(corpus.tokens[part].flat, expected.flat)


def test_configuration_is_deterministic():
    numerics.configure(1)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1
