"""Published methods as whole systems: what each reads, learns from and suffers from, and small runs of them."""

from __future__ import annotations

import json
import math
import types

import numpy as np
import pytest
import torch
from micro import settings
from safetensors.torch import load_file

from moekd import stages
from moekd.classifier import Classifier
from moekd.data import load_parts
from moekd.data.embedded import generate
from moekd.distill.published import _loss, build_published, morph_loss, targets_of, training_of
from moekd.errors import DataError, SettingsError
from moekd.experts.training import _one_output_loss
from moekd.files import read_json
from moekd.report.comparisons import same_run
from moekd.scorer import aligned, load_scores
from moekd.steps import key_of, run_steps
from moekd.students.compressor import optimum
from moekd.students.published import (
    METHODS,
    configuration_of,
    parts_of,
    searched_digests,
    student_named,
    train_published_tokenizer,
    ways_of,
)
from moekd.students.shapes import SHAPES
from moekd.students.space import Configuration

# ---------------------------------------------------------------------------------------- methods and defects


def test_reference_has_all_defects_of_its_code_and_fixed_none():
    assert parts_of("compressor-reference")[1] == {"one-output-teacher", "sigmoid-targets", "frozen-biases"}
    assert parts_of("morph-reference")[1] == parts_of("avatar-reference")[1] | {"unscaled-loss"}
    assert parts_of("avatar-fixed")[1] == set()
    assert parts_of("avatar-sigmoid-targets")[1] == {"sigmoid-targets"}
    assert ways_of("avatar", ["fixed", "unscaled-loss", "frozen-biases"]) == ["fixed", "frozen-biases"]


@pytest.mark.parametrize("size", ["3mb", "2mb", "1.6mb"])
def test_compressors_students_are_the_optima_of_its_fitness(size):
    assert optimum(round(float(size[:-2]) * 1e6)).shape == SHAPES[f"compressor-{size}"]


@pytest.mark.parametrize(
    ("student", "epochs", "rate", "batch", "dropout"),
    [("compressor-3mb", 20, 1e-4, 16, 0.5), ("avatar-3mb", 50, 1e-3, 64, 0.5), ("morph-3mb", 40, 5e-5, 16, 0.2)],
)
def test_training_is_the_published_one(student, epochs, rate, batch, dropout):
    """methods.md 1.7, 2.6, 3.5: AdamW of its day, without decay; a full batch always fits."""
    chosen = settings()
    method, one = METHODS[student.partition("-")[0]], configuration_of(student, chosen)
    training = training_of(method, one, chosen)
    assert (training.epochs, training.learning_rate, training.batch_limit) == (epochs, rate, batch)
    assert (training.weight_decay, training.warmup, one.hidden_dropout) == (0, 0.1, dropout)
    assert training.token_budget >= batch * (method.tokens or one.max_length)


def test_sigmoid_targets_by_hand():
    """Of the logits (0, ln 3) the sigmoids are 1/2 and 3/4; MORPH's are their logarithms around zero."""
    logits = torch.tensor([[0.0, math.log(3)]])
    defects = frozenset({"sigmoid-targets"})
    assert targets_of(logits, METHODS["avatar"], defects)[0].tolist() == pytest.approx([0.5, 0.75])
    half = math.log(0.75 / 0.5) / 2
    assert targets_of(logits, METHODS["morph"], defects)[0].tolist() == pytest.approx([-half, half])
    assert targets_of(logits, METHODS["morph"], frozenset()) is logits


@pytest.mark.parametrize("outputs", [[30.0, -30.0], [-1.0, 2.0], [0.1, 0.2]])
def test_sigmoid_targets_are_hardly_sure_of_anything(outputs):
    """methods.md 1.10 c: at T = 10 within 0.475 ... 0.525, and a student that fits them is at most sigmoid(1) sure."""
    targets = targets_of(torch.tensor([outputs]), METHODS["compressor"], frozenset({"sigmoid-targets"}))
    assert 0.475 <= float((targets / 10).softmax(1).min()) <= float((targets / 10).softmax(1).max()) <= 0.525
    assert float(targets.softmax(1).max()) <= 1 / (1 + math.exp(-1)) + 1e-6


def test_a_one_output_teachers_loss_by_hand():
    """methods.md 1.10 a: -ln(3/4) of the sigmoid of the output for "vulnerable", mean with -ln(1/2); the other output
    is read by nothing, so it has no gradient."""
    logits = torch.tensor([[5.0, math.log(3)], [-7.0, 0.0]], requires_grad=True)
    loss = _one_output_loss(np.array([0, 1, 0]), logits, np.array([1, 2]))
    assert float(loss.detach()) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    loss.backward()
    assert logits.grad[:, 0].tolist() == [0, 0]
    assert (logits.grad[:, 1] != 0).all()


@pytest.mark.parametrize("method", ["compressor", "avatar"])
def test_the_published_loss_by_hand(method):
    """methods.md 1.7: T² = 100 times 0.130812 nats of (3/4, 1/4) from (1/2, 1/2) at T = 10; rows number the targets."""
    teacher = torch.tensor([[0.0, 0.0], [10 * math.log(3), 0.0]])
    loss = _loss(METHODS[method], frozenset(), teacher)
    assert float(loss(torch.zeros(1, 2), np.array([1]))) == pytest.approx(13.0812, abs=1e-4)


@pytest.mark.parametrize(("unscaled", "temperature", "soft"), [(False, 3, 9 * 0.130812), (True, 2, 0.130812)])
def test_morphs_loss_by_hand(unscaled, temperature, soft):
    """Softened teacher (3/4, 1/4), student (1/2, 1/2): 0.130812 nats, cosine 0.5 / sqrt(0.625 · 0.5)."""
    teacher = temperature * torch.tensor([[math.log(3), 0.0]])
    found = morph_loss(torch.zeros(1, 2), teacher, unscaled=unscaled)
    assert float(found) == pytest.approx(soft + 1 - 0.5 / math.sqrt(0.3125), abs=1e-5)


# ------------------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="module")
def texts():
    return [sample.func for sample in generate(40, 0)]


def tokenizer_of(texts, method: str, kind: str = "bpe"):
    one = Configuration(
        vocabulary=400, layers=1, hidden=16, heads=2, intermediate=32, max_length=30, tokenizer=kind, activation="silu"
    )
    return train_published_tokenizer(METHODS[method], one, texts), one


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "word"])
def test_avatars_tokenizers_see_no_layout_case_or_accents(texts, kind):
    """White space collapses, capitals and accents go, no special token is added, and the text is cut at its length."""
    tokenizer, _ = tokenizer_of(texts, "avatar", kind)
    one, same = (tokenizer(text)["input_ids"] for text in (" int  Caf\u00e9;\n\treturn", "int cafe; return"))
    assert one == same
    assert not set(one) & {0, 1, 2}
    assert len(tokenizer(texts[0] * 3, truncation=True)["input_ids"]) == 30
    assert len(tokenizer) <= 400


def test_compressors_tokenizer_marks_both_ends(texts):
    """methods.md 1.4: `<s>` and `</s>` within 400 tokens, although there are 514 positions."""
    tokenizer, _ = tokenizer_of(texts, "compressor")
    ids = tokenizer(texts[0])["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer.model_max_length == 400
    assert configuration_of("compressor-3mb", settings()).shape().positions == 514


def test_positions_start_as_noise(texts):
    """Not as our sinusoids, whose first row is 0, c, 0, c ...; the row of the padding stays zero."""
    tokenizer, one = tokenizer_of(texts, "avatar")
    weight = build_published(one, tokenizer, seed=0).roberta.embeddings.position_embeddings.weight.detach()
    assert not weight[1].any()
    assert weight[2:].std() == pytest.approx(0.02, rel=0.2)
    assert (weight[2] != 0).all()


# ------------------------------------------------------------------------------------------- the searched pick


def test_the_pick_of_a_search_replaces_the_published_architecture(tmp_path):
    path = tmp_path / "search.json"
    picked = Configuration(vocabulary=900, layers=2, hidden=24, heads=3, intermediate=48, max_length=64, batch_size=16)
    path.write_text(json.dumps({"search": "avatar", "picked": {"configuration": vars(picked)}}))
    chosen = settings(published={"systems": ["avatar", "compressor"], "searched": {"avatar-3mb": str(path)}})
    assert student_named("avatar", "3mb", chosen) == "avatar-3mb-searched"
    assert student_named("compressor", "3mb", chosen) == "compressor-3mb"
    assert configuration_of("avatar-3mb-searched", chosen) == picked
    assert len(searched_digests(chosen)) == 1
    relative = vars(picked) | {"position": "relative_key"}
    path.write_text(json.dumps({"search": "avatar", "picked": {"configuration": relative}}))
    with pytest.raises(SettingsError, match="relative_key positions, which transformers 5 no longer builds"):
        configuration_of("avatar-3mb-searched", chosen)
    path.write_text(json.dumps({"search": "morph", "picked": {"configuration": vars(picked)}}))
    with pytest.raises(SettingsError, match=r"avatar-3mb was given .*, which is a search of morph"):
        configuration_of("avatar-3mb-searched", chosen)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"holds no pick of a search .* moekd search avatar --out FOLDER"):
        configuration_of("avatar-3mb-searched", chosen)
    path.unlink()
    with pytest.raises(DataError, match=r"published\.searched: cannot read .*search\.json"):
        searched_digests(chosen)


@pytest.mark.parametrize("student", ["compressor-3mb", "morph-3mb", "avatar-2mb"])
def test_a_pick_for_a_student_that_is_not_trained(student):
    with pytest.raises(ValueError, match=f"published.searched holds '{student}', which is not trained"):
        settings(published={"systems": ["avatar", "compressor"], "searched": {student: "x.json"}})


# -------------------------------------------------------------------------------------------------- plan


def test_published_systems_change_no_other_step():
    """Finished results stay fresh; each way learns from the teacher with its own defects."""
    plain, chosen = settings(), settings(published={"systems": ["avatar"], "ways": ["reference", "sigmoid-targets"]})
    before = {step.label: key_of(step, plain) for step in stages.plan(plain)[:-1]}
    steps = {step.label: step for step in stages.plan(chosen)}
    assert all(key_of(steps[label], chosen) == key for label, key in before.items())
    students = {name: steps[f"student[avatar-{name}, avatar-3mb, seed 0]"] for name in ("reference", "sigmoid-targets")}
    assert students["reference"].needs["targets"].label == "flawed-teacher[teacher-reference, seed 0]"
    assert students["sigmoid-targets"].needs["targets"].label == "teacher[teacher, seed 0]"
    assert "flawed-teacher[teacher-one-output, seed 0]" not in steps


def test_several_seeds_have_their_own_renamed_functions():
    """Labels name the folders that the results are read from, so two steps must not share one."""
    several = settings(published={"systems": ["morph", "avatar"]}, run={"seeds": [0, 1]})
    steps = {step.label: step for step in stages.plan(several)[-1].needs.values()}
    keys = {key_of(step.needs["tokens"], several) for label, step in steps.items() if "morph-fixed" in label}
    assert len(keys) == 2
    shared = {key_of(step.needs["tokens"], several) for label, step in steps.items() if "avatar-fixed" in label}
    assert len(shared) == 1


def test_students_are_compared_at_their_size():
    def judged(system, student, seed=0):
        return types.SimpleNamespace(system=system, student=student, seed=seed)

    ours = judged("student-moe", "rotary-3mb-pretrained")
    assert same_run(ours, judged("avatar-fixed", "avatar-3mb"))
    assert same_run(ours, judged("avatar-fixed", "avatar-3mb-searched"))
    assert not same_run(ours, judged("avatar-fixed", "avatar-2mb"))
    assert not same_run(ours, judged("avatar-fixed", "avatar-3mb", seed=1))
    assert not same_run(ours, judged("student-single", "compact-3mb"))


# ------------------------------------------------------------------------------------------------- one run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Settings, folders by label and results of a run with Compressor and MORPH; 80 functions, an epoch."""
    chosen = settings(
        tmp_path_factory.mktemp("published") / "runs",
        data={"sources": [{"kind": "embedded", "count": 120}]},
        partition={"min_samples": 2},
        published={"systems": ["compressor", "morph"], "sizes": ["1.6mb"], "epochs": 1},
        student={"shapes": ["compressor-1.6mb"], "systems": ["moe"], "training": {"epochs": 1}},
    )
    folder = stages.run(chosen)
    return chosen, run_steps(stages.plan(chosen), chosen), read_json(folder / "results.json")


SYSTEMS = {"compressor-reference", "compressor-fixed", "morph-reference", "morph-fixed"}


def test_rows_and_paired_comparisons(run):
    """Every system is judged on the same functions, and compared with ours of its size and between its ways."""
    found = {row["system"] for row in run[2]["rows"] if (row["part"], row["metric"]) == ("test", "accuracy")}
    assert found >= SYSTEMS | {"teacher-reference"}
    pairs = {(one["first"], one["second"]) for one in run[2]["comparisons"]}
    assert pairs >= {("student-moe", system) for system in SYSTEMS}
    assert pairs >= {("compressor-fixed", "compressor-reference"), ("morph-fixed", "morph-reference")}


def test_frozen_biases_stay_at_their_start(run):
    for system, moved in (("compressor-reference", False), ("compressor-fixed", True)):
        weights = load_file(run[1][f"student[{system}, compressor-1.6mb, seed 0]"] / "model" / "model.safetensors")
        vectors = {name: tensor for name, tensor in weights.items() if tensor.ndim == 1}
        starts = [bool((one == float(name.endswith("weight"))).all()) for name, one in vectors.items()]
        assert all(starts) is not moved
        assert len(starts) > 100


def test_frozen_biases_of_the_teacher_stay_at_their_start(run):
    for label, moved in (("flawed-teacher[teacher-reference, seed 0]", False), ("teacher[teacher, seed 0]", True)):
        weights = load_file(run[1][label] / "model" / "model.safetensors")
        vectors = {name: tensor for name, tensor in weights.items() if tensor.ndim == 1}
        starts = [bool((one == float(name.endswith("weight"))).all()) for name, one in vectors.items()]
        assert all(starts) is not moved


def test_a_one_output_teacher_decides_by_the_output_it_trained(run):
    folder = run[1]["flawed-teacher[teacher-reference, seed 0]"]
    judged, given = (load_scores(folder / f"{name}.npz").logits for name in ("predictions", "targets"))
    assert not judged[:, 0].any()
    assert judged[:, 1].any()
    assert given.all()


def test_morph_learns_from_renamed_functions_too(run):
    """Twice half B is read, and the two sets of targets differ, because the texts do."""
    labels = run[1]
    tokens = labels["published-tokens[morph-1.6mb, seed 0]"]
    assert {path.stem for path in tokens.glob("*.npz")} == {
        "train_b",
        "valid",
        "test",
        "train_b-renamed",
        "valid-renamed",
    }
    plain = load_scores(labels["teacher[teacher, seed 0]"] / "targets.npz")
    renamed = load_scores(labels["renamed-targets[teacher, seed 0]"] / "targets.npz")
    assert plain.ids == renamed.ids
    assert np.abs(plain.logits - renamed.logits).max() > 1e-6  # a teacher of two epochs hardly tells functions apart


def test_a_saved_student_answers_as_it_was_judged(run):
    """Attacks and the scanner load it from its folder: the same tokens, without `<s>` where the method has none."""
    samples = load_parts(run[1]["data"])["valid"][:5]
    for system in ("compressor-fixed", "morph-fixed"):
        folder = run[1][f"student[{system}, {system.partition('-')[0]}-1.6mb, seed 0]"]
        judged = aligned(load_scores(folder / "predictions.npz"), samples)
        answers = Classifier.from_pretrained(folder / "model").logits([sample.func for sample in samples])
        np.testing.assert_allclose(answers, judged, atol=1e-4)
