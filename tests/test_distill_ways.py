"""The ways to distil as they are trained: the objective by hand, teachers' states, and the students that use them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from micro import settings

from moekd import cli
from moekd.classifier import Classifier, roberta
from moekd.config import Distill
from moekd.data import load_parts
from moekd.distill import features, lessons, losses
from moekd.distill.objective import FeatureTerm, Objective, logit_loss
from moekd.distill.states import PLACES, States, place_means, read, token_places
from moekd.distill.student import train_student
from moekd.distill.variants import load_variants, score_variants
from moekd.errors import DataError, SettingsError
from moekd.files import read_arrays, write_json
from moekd.mixture import Table, save_table
from moekd.records import LABELS
from moekd.rewrite import Template
from moekd.scorer import save_scores, scores_of
from moekd.stages import data_step
from moekd.steps import run_steps
from moekd.students.shapes import SHAPES, Shape
from moekd.tokens import Tokens, encode, train_bpe

LN3 = math.log(3)
KL = 0.130812  # of (3/4, 1/4) from (1/2, 1/2), nats
FEATURES = ("hidden", "patient", "attention", "contrastive", "relational", "prior-knowledge")

# ------------------------------------------------------------------------------------------------ objective


def value(loss: torch.Tensor) -> float:
    return float(loss.detach())


def loss_of(distill: dict, student, teacher, labels, *, progress: float = 0.0) -> float:
    """The loss of one batch of all rows, logits given as lists."""
    objective = Objective(Distill.model_validate(distill), torch.tensor(labels), torch.tensor(teacher))
    objective.begin_step(progress)
    return value(objective(torch.tensor(student, requires_grad=True), np.arange(len(labels))))


@pytest.mark.parametrize(
    ("distill", "progress", "expected"),
    [
        ({}, 0.0, KL),
        # A quarter of ln 2, the cross-entropy of (1/2, 1/2), and three quarters of KL.
        ({"label_share": 0.25}, 0.0, 0.25 * math.log(2) + 0.75 * KL),
        ({"schedule": {"kind": "continuation", "end": 1.0}}, 0.5, 0.5 * math.log(2) + 0.5 * KL),
        ({"label_share": 0.2, "schedule": {"kind": "continuation", "end": 0.0}}, 1.0, KL),
        # Gradients of the logits: (1/2, -1/2) of the labels, (-1/4, 1/4) of the teacher; 1/3 and 2/3 cancel them.
        ({"schedule": {"kind": "balanced"}}, 0.0, math.log(2) / 3 + 2 * KL / 3),
    ],
)
def test_objective_by_hand(distill, progress, expected):
    """Teacher (3/4, 1/4), student (1/2, 1/2), label 1, T = 1."""
    found = loss_of({"temperature": 1.0} | distill, [[0.0, 0.0]], [[LN3, 0.0]], [1], progress=progress)
    assert found == pytest.approx(expected, abs=1e-6)


def test_annealed_temperature_by_hand():
    """From 3 to 1, at half of the run 2: logits ln 9 at T = 2 are ln 3 at T = 1, and T^2 = 4."""
    distill = {"temperature": 3.0, "schedule": {"kind": "annealed-temperature", "end": 1.0}}
    assert loss_of(distill, [[0.0, 0.0]], [[math.log(9), 0.0]], [0], progress=0.5) == pytest.approx(4 * KL, abs=1e-5)


def test_uncertainty_by_hand():
    """Student (3/4, 1/4) has 0.811278 of the largest entropy; KL from the teacher's (1/2, 1/2) is 0.143841 nats.

    The second student is sure, so its row counts nothing.
    """
    distill = {"temperature": 1.0, "schedule": {"kind": "uncertainty"}}
    found = loss_of(distill, [[LN3, 0.0], [500.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [0, 0])
    assert found == pytest.approx(0.811278 * 0.143841 / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("wanted", "pure"),
    [
        ({"kind": "kl"}, lambda s, t, y: losses.soft_target_loss(s, t, temperature=2.0)),
        ({"kind": "skewed", "skew": 0.3}, lambda s, t, y: losses.skewed_kl_loss(s, t, temperature=2.0, skew=0.3)),
        (
            {"kind": "decoupled", "target_weight": 2.0, "other_weight": 3.0},
            lambda s, t, y: losses.decoupled_loss(s, t, y, temperature=2.0, target_weight=2.0, other_weight=3.0),
        ),
        (
            {"kind": "dist", "inter_weight": 2.0, "intra_weight": 3.0},
            lambda s, t, y: losses.dist_loss(s, t, temperature=2.0, inter_weight=2.0, intra_weight=3.0),
        ),
        (
            {"kind": "cosine", "cosine_weight": 5.0},
            lambda s, t, y: (
                losses.soft_target_loss(s, t, temperature=2.0) + 5 * losses.cosine_loss(s, t, temperature=2.0)
            ),
        ),
        (
            {"kind": "standardised"},
            lambda s, t, y: losses.soft_target_loss(
                losses.standardise_logits(s), losses.standardise_logits(t), temperature=2.0
            ),
        ),
    ],
)
def test_each_kind_is_its_pure_function(wanted, pure):
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, generator=rng), torch.randn(4, 3, generator=rng)
    labels = torch.tensor([0, 1, 2, 1])
    chosen = Distill.model_validate({"logits": wanted}).logits
    assert float(logit_loss(chosen, student, teacher, labels, temperature=2.0)) == float(pure(student, teacher, labels))


def test_a_batch_of_one_has_no_correlations():
    """The last batch of an epoch may hold one function; it must not end a run."""
    student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    chosen = Distill.model_validate({"logits": {"kind": "dist"}}).logits
    loss = logit_loss(chosen, student, torch.zeros(1, 2), torch.tensor([0]), temperature=1.0)
    loss.backward()
    assert value(loss) == 0
    assert student.grad.tolist() == [[0, 0]]


# ----------------------------------------------------------------------------------------------------- states


def states(layers, places=None) -> States:
    """One text a row; without places, zeros of the same width, all of them real."""
    values = torch.tensor(layers, dtype=torch.float32)
    if places is None:
        places = torch.zeros(len(values), PLACES, values.shape[2])
    return States(values, places, torch.ones(places.shape[:2], dtype=torch.bool))


def term_of(wanted: dict, teacher: States, *, layers: int = 2) -> FeatureTerm:
    """A feature term of a student of width 2, its projections replaced by the identity."""
    chosen = Distill.model_validate({"features": wanted}).features
    config = SimpleNamespace(num_hidden_layers=layers, hidden_size=2, model_type="roberta")
    term = FeatureTerm(chosen, config, teacher, seed=0)
    for layer in term.projections:
        torch.nn.init.eye_(layer.weight)
    return term


def test_hidden_and_patient_terms_by_hand():
    """Embeddings, layers 1 and 2 of a student and a teacher of one depth; the embeddings take no part.

    Hidden: half of the squared distances 25 and 4, mean over both layers, times 2. Patient: layer 1 alone, (1, 0)
    against (0, 1), squared distance 2, times 10.
    """
    student, teacher = states([[[9, 9], [3, 0], [0, 2]]]), states([[[0, 0], [0, 4], [0, 0]]])
    rows = np.array([0])
    assert value(term_of({"kind": "hidden", "weight": 2.0}, teacher)(student, rows)) == pytest.approx(2 * 29 / 4)
    assert value(term_of({"kind": "patient"}, teacher)(student, rows)) == pytest.approx(20)


def test_contrastive_term_by_hand():
    """Last layers at right angles within the batch: ln(1 + 1 / e) at temperature 1; nothing for a batch of one."""
    both = states([[[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 3]]])
    term = term_of({"kind": "contrastive", "temperature": 1.0}, both)
    assert value(term(both, np.array([0, 1]))) == pytest.approx(0.313262, abs=1e-6)
    assert value(term(replace_rows(both, [1]), np.array([1]))) == 0


def replace_rows(found: States, rows: list[int]) -> States:
    return States(found.layers[rows], found.places[rows], found.real[rows])


def test_attention_and_relational_terms_by_hand():
    """One state at place 0, one at place 1: maps at right angles, sqrt(2). Equal geometry: no relational loss."""
    here, there = torch.zeros(1, PLACES, 2), torch.zeros(1, PLACES, 2)
    here[0, 0, 0], there[0, 1, 1] = 3.0, 5.0
    flat = [[[0, 0], [1, 0], [0, 1]]]
    rows = np.array([0])
    attention = term_of({"kind": "attention"}, states(flat, there))
    assert value(attention(states(flat, here), rows)) == pytest.approx(math.sqrt(2))
    line = torch.arange(PLACES).float().view(1, PLACES, 1) * torch.tensor([1.0, 0.0])
    relational = term_of({"kind": "relational"}, states(flat, 7 * line.flip(2)))
    assert value(relational(states(flat, line), rows)) == pytest.approx(0, abs=1e-6)
    assert value(relational(states(flat, line**2), rows)) > 0.01


def test_place_means_by_hand():
    """Tokens 1 and 2 begin at place 0, token 3 at place 2; the first and the padding nowhere."""
    values = torch.tensor([[[9.0], [1.0], [3.0], [5.0], [9.0]]])
    means, real = place_means(values, torch.tensor([[PLACES, 0, 0, 2, PLACES]]))
    assert means[0, :, 0].tolist() == [2, 0, 5] + [0] * (PLACES - 3)
    assert real[0].tolist() == [True, False, True] + [False] * (PLACES - 3)


def test_places_are_shares_of_the_text_for_any_tokenizer(tokenizer, functions):
    """As many as the model's tokens, rising, specials nowhere, and two tokenizers agree about a character's place."""
    texts = [sample.func for sample in functions[:20]]
    other = train_bpe(texts, vocabulary=300, max_length=2000)
    for one, limit in ((tokenizer, 64), (other, 2000)):
        found, tokens = token_places(one, texts, limit), encode(one, texts, limit)
        assert found.lengths.tolist() == tokens.lengths.tolist()
        for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
            row = found.flat[start:end]
            assert row[0] == PLACES == row[-1]
            assert (np.diff(row[1:-1]) >= 0).all()
    whole = token_places(other, texts, 2000)
    assert all(whole.flat[end - 2] == PLACES - 1 for end in whole.offsets[1:])
    cut = token_places(tokenizer, ["x = 1;" * 100], 64)
    assert cut.flat[-2] < PLACES - 1  # the end of the text is not read, so its last places are not real


# ------------------------------------------------------------------------------------------------ a small run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Settings and folders of data, tokens, two saved experts, a table, a mixture, and targets that know the labels."""
    folder = tmp_path_factory.mktemp("made")
    chosen = settings(folder / "runs", student={"training": {"epochs": 2, "learning_rate": 1e-3}})
    data = run_steps([data_step()], chosen)["data"]
    parts = load_parts(data)
    samples = parts["train_b"]
    tokenizer = train_bpe([sample.func for sample in parts["train_a"]], vocabulary=400, max_length=64)
    tokenizer.save_pretrained(str(folder / "encoder"))
    for part in ("train_b", "valid", "test"):
        encode(tokenizer, [s.func for s in parts[part]], 64).save(folder / "encoder" / f"{part}.npz")
    for index, place in enumerate(("experts/expert-a", "experts/expert-b", "teacher/model")):
        torch.manual_seed(index)
        model = roberta(
            tokenizer=tokenizer, max_length=64, layers=3, hidden=16, heads=2, intermediate=16, dropout=0.0
        ).eval()
        Classifier(model, tokenizer, 64).save_pretrained(folder / place)
    rng = np.random.default_rng(0)
    names = tuple(sample.id for sample in samples)
    router, answers = rng.normal(size=(len(names), 2)), rng.normal(size=(len(names), 2, 2))
    digests = tuple(sample.digest for sample in samples)
    save_table(folder, Table(names, digests, ("train_b",) * len(names), router, answers))
    write_json(folder / "partition.json", {"scheme": "cwe", "groups": ["a", "b"], "group_of": {}})
    write_json(folder / "manifest.json", {"facts": {"temperatures": {"a": 1.0, "b": 1.0}}})
    save_scores(folder / "targets.npz", scores_of(samples, np.array([[-s.label, s.label] for s in samples])))
    inputs = {"data": data, "encoder": folder / "encoder", "experts": folder / "experts"}
    return (
        chosen,
        inputs | dict.fromkeys(("scores", "partition", "mixture", "targets"), folder),
        samples,
        router,
        folder,
    )


@pytest.fixture
def tiny(monkeypatch):
    """Two families of students small enough for a test."""
    shape = Shape(layers=2, hidden=16, heads=2, intermediate=16, vocabulary=400, max_length=64, positions=66)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    monkeypatch.setitem(SHAPES, "tiny-bigru", replace(shape, architecture="bigru", positions=64))


@pytest.fixture(scope="module")
def collected(made, tmp_path_factory):
    chosen, inputs, *_ = made
    folder = tmp_path_factory.mktemp("states")
    facts = features.collect(chosen, inputs, folder, system="mixture", seed=0)
    assert (facts["layers"], facts["width"], facts["rows"]["encoder_passes_per_sample"]) == (3, 16, 2)
    return folder


def test_states_of_a_mixture_are_its_experts_by_weight(made, collected):
    """Against a slow reference: both experts asked about one function at a time, mixed by the router's softmax."""
    _, inputs, samples, router, _ = made
    found = features.teacher_states(collected, samples)
    experts = [Classifier.from_pretrained(inputs["experts"] / f"expert-{name}") for name in "ab"]
    tokens = Tokens.load(inputs["encoder"] / "train_b.npz")
    places = token_places(experts[0].tokenizer, [sample.func for sample in samples], 64)
    for row in range(0, len(samples), 20):
        weight = np.exp(router[row]) / np.exp(router[row]).sum()
        with torch.inference_mode():
            asked = [read(one.model, tokens, places, np.array([row]), 1)[1] for one in experts]
        layers = sum(w * one.layers[0] for w, one in zip(weight, asked, strict=True))
        at_places = sum(w * one.places[0] for w, one in zip(weight, asked, strict=True))
        # Stored in half precision, read in bfloat16 where that is fast.
        torch.testing.assert_close(found.layers[row].float(), layers.float(), atol=0.05, rtol=0.05)
        torch.testing.assert_close(found.places[row].float(), at_places.float(), atol=0.05, rtol=0.05)
        assert found.real[row].tolist() == asked[0].real[0].tolist()


def test_states_are_found_by_id_and_content(made, collected, tmp_path):
    """In another order; never of a function with another text, and never from a teacher that left none."""
    samples = made[2]
    forward, backward = (features.teacher_states(collected, some) for some in (samples, samples[::-1]))
    assert torch.equal(forward.layers.flip(0), backward.layers)
    with pytest.raises(DataError, match="is not the one that was scored"):
        features.teacher_states(collected, [replace(samples[0], digest="0" * 16)])
    with pytest.raises(DataError, match=r"holds no states\.npz: this teacher has no hidden states"):
        features.teacher_states(tmp_path, samples)


def test_too_many_states_are_refused_before_they_are_read(made, tmp_path, monkeypatch):
    chosen, inputs, *_ = made
    monkeypatch.setattr(features, "MAX_BYTES", 1000)
    with pytest.raises(SettingsError, match=r"states of \d+ functions would take .* Set data\.limit"):
        features.collect(chosen, inputs, tmp_path, system="mixture", seed=0)


def taught(made, folder, system="student-moe", student="tiny", **distill):
    """Train one student; returns the stage's facts."""
    chosen, inputs, _, _, base = made
    tree = chosen.model_dump()
    tree["distill"] |= distill
    folder.mkdir(exist_ok=True)
    given = inputs | {"tokens": base / "encoder"}
    return train_student(type(chosen).model_validate(tree), given, folder, system=system, student=student, seed=0)


@pytest.mark.parametrize("student", ["tiny", "tiny-bigru"])
@pytest.mark.parametrize("kind", FEATURES)
def test_students_learn_from_states(made, collected, tiny, tmp_path, kind, student):
    """Each loss, for both families, from the states of a mixture; what is saved is the student alone."""
    chosen, inputs, samples, router, base = made
    with_states = (chosen, inputs | {"features": collected}, samples, router, base)
    facts = taught(with_states, tmp_path / "student", student=student, features={"kind": kind})
    assert np.isfinite(facts["history"]["losses"]).all()
    loaded = Classifier.from_pretrained(tmp_path / "student" / "model")
    assert loaded.model.num_parameters() == facts["rows"]["parameters"]
    assert {path.name for path in (tmp_path / "student").iterdir()} == {"model", "predictions.npz"}


def test_states_of_a_teacher_without_any(made, tiny, tmp_path):
    with pytest.raises(SettingsError, match=r'features\.kind = "hidden" asks for hidden states of the teacher, and'):
        taught(made, tmp_path / "student", features={"kind": "hidden"})


@pytest.mark.parametrize(
    "distill",
    [
        {"logits": {"kind": "dist"}},
        {"schedule": {"kind": "competence"}},
        {"schedule": {"kind": "balanced"}},
        {"schedule": {"kind": "continuation"}, "logits": {"kind": "skewed"}},
    ],
)
def test_students_learn_by_schedule(made, tiny, tmp_path, distill):
    facts = taught(made, tmp_path / "student", **distill)
    assert np.isfinite(facts["history"]["losses"]).all()
    everything = taught(made, tmp_path / "all")["history"]["tokens"]
    fewer = distill.get("schedule") == {"kind": "competence"}
    assert (facts["history"]["tokens"] < everything) == fewer


def test_competence_draws_the_easiest_first():
    """A half of four rows in the first epoch, all in the last, whatever is between; one epoch takes all."""
    draw = lessons.by_competence(np.array([3.0, 1.0, 2.0, 4.0]), 3, initial=0.5)
    assert draw(0).tolist() == [1, 2]
    assert draw(2).tolist() == [0, 1, 2, 3]
    assert lessons.by_competence(np.array([3.0, 1.0]), 1, initial=0.5)(0).tolist() == [0, 1]


# --------------------------------------------------------------------------------------------- pioneer, soda


@pytest.fixture(scope="module")
def variants(made, tmp_path_factory):
    chosen, inputs, _, _, base = made
    folder = tmp_path_factory.mktemp("variants")
    facts = score_variants(chosen, inputs | {"teacher": base / "teacher"}, folder, seed=0)
    assert facts["variants"] > facts["functions"]  # two of most functions
    return folder


def test_variants_are_renamed_and_scored_by_the_teacher(made, variants):
    """Same tokens but for names, the label of the original, and the logits that the teacher gives that very text."""
    samples, base = made[2], made[4]
    found = load_variants(variants, samples)
    teacher = Classifier.from_pretrained(base / "teacher" / "model")
    stored = lessons.teacher_logits(variants, [one for ones in found.values() for one in ones])
    texts = [one.func for ones in found.values() for one in ones]
    np.testing.assert_allclose(stored.numpy(), teacher.logits(texts), atol=1e-5)
    for row in list(found)[::10]:
        kinds = [leaf.kind for leaf in Template.of(samples[row].func).code.leaves]
        for one in found[row]:
            assert one.func != samples[row].func
            assert one.label == samples[row].label
            assert [leaf.kind for leaf in Template.of(one.func).code.leaves] == kinds
    with pytest.raises(DataError, match="was made from other data"):
        load_variants(variants, samples[:3])


def test_pioneer_reads_each_function_and_one_variant_of_it(made, variants):
    """Rows of an epoch: every original once, and behind them one variant of each, another one in the next epoch."""
    chosen, inputs, samples, _, base = made
    given, tokens = inputs | {"variants": variants}, Tokens.load(base / "encoder" / "train_b.npz")
    tokenizer = Classifier.from_pretrained(base / "teacher" / "model").tokenizer
    plain = lessons.plain(given, samples, tokens, LABELS, chosen.distill, 2)
    both = lessons.pioneer(plain, given, samples, tokenizer, 64)
    first, second = both.draw(0), both.draw(1)
    count = len(samples)
    assert first[:count].tolist() == second[:count].tolist() == list(range(count))
    by_row = load_variants(variants, samples)
    assert len(first) == count + len(by_row)
    assert set(first[count:]).isdisjoint(second[count:])
    ordered = [one for row in sorted(by_row) for one in by_row[row]]
    assert len(both.tokens) == len(both.labels) == len(both.teacher) == count + len(ordered)
    last = both.tokens.take(np.array([len(both.tokens) - 1])).flat.tolist()
    assert last == encode(tokenizer, [ordered[-1].func], 64).flat.tolist()
    assert both.labels[count:].tolist() == [one.label for one in ordered]


def test_pioneer_and_soda_are_trained(made, variants, tiny, tmp_path):
    """SODA reads as many functions an epoch as others; PIONEER more. Neither leaves notes behind."""
    chosen, inputs, samples, router, base = made
    with_variants = (chosen, inputs | {"variants": variants}, samples, router, base)
    pioneer = taught(with_variants, tmp_path / "pioneer", system="student-pioneer")
    soda = taught(made, tmp_path / "soda", system="student-soda")
    assert pioneer["history"]["tokens"] > 1.5 * soda["history"]["tokens"]
    for name in ("pioneer", "soda"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"model", "predictions.npz"}


def test_soda_draws_by_what_the_student_fails(made, make_model, tokenizer, tmp_path):
    """The first epoch has every function once; the next one as many, by the shares that the look back left on disk.

    A process that starts anew reads them from there and draws the same rows.
    """
    chosen, inputs, samples, _, _ = made
    tokens = encode(tokenizer, [sample.func for sample in samples], 64)
    plain = lessons.plain(inputs, samples, tokens, LABELS, chosen.distill, 2)
    paced = lessons.soda(plain, tmp_path, pad_id=1, seed=0)
    assert paced.draw(0).tolist() == list(range(len(samples)))
    paced.look_back(0, make_model())
    shares = read_arrays(tmp_path / "pace-0.npz")["shares"]
    assert shares.sum() == pytest.approx(1)
    assert len(paced.draw(1)) == len(samples)
    again = lessons.soda(plain, tmp_path, pad_id=1, seed=0)
    assert again.draw(1).tolist() == paced.draw(1).tolist()
    paced.forget()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- command


def test_run_with_a_loss_of_features(tmp_path, capsys):
    """`moekd run` on the embedded functions: a mixture's states are read once, and its student learns from them."""
    config = tmp_path / "c.json"
    tree = settings(
        tmp_path / "runs",
        experts={"mode": "shared"},
        student={"shapes": ["bigru-0.75m"], "systems": ["moe"]},
        distill={"features": {"kind": "relational"}, "label_share": 0.1},
    )
    config = tmp_path / "c.toml"
    config.write_text(_toml(json.loads(tree.model_dump_json(exclude_none=True, exclude_defaults=True))))
    assert cli.main(["run", str(config), "-q", "--json"]) == 0
    rows = json.loads((_results(capsys)).read_text())["rows"]
    assert {"student-moe", "mixture"} <= {row["system"] for row in rows}
    assert len(list((tmp_path / "runs" / "features").glob("*/states.npz"))) == 1


def _results(capsys):
    from pathlib import Path

    return Path(json.loads(capsys.readouterr().out)["results"])


def _toml(tree: dict) -> str:
    """Settings as TOML; a JSON value is a TOML value but for tables, which are written inline."""

    def value(one) -> str:
        if isinstance(one, dict):
            return "{ " + ", ".join(f"{key} = {value(other)}" for key, other in one.items()) + " }"
        if isinstance(one, list):
            return "[" + ", ".join(map(value, one)) + "]"
        return json.dumps(one)

    return "\n".join(f"{key} = {value(one)}" for key, one in tree.items())
