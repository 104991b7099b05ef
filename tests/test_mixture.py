"""Fusion against hand calculations, the score table, the fusing stage and the mixture as a saved model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moekd import mixture
from moekd.config import MoekdSettings
from moekd.errors import DataError, SettingsError
from moekd.files import write_json
from moekd.mixture import (
    Mixture,
    Table,
    calibration_temperatures,
    expert_shares,
    fuse,
    plain_ensemble,
    selected_weights,
    top_k,
)
from moekd.records import Sample
from moekd.scorer import aligned, load_scores

LN = math.log
FINITE = st.floats(-30, 30, width=32)


# ------------------------------------------------------------------------------------------ pure functions


def test_top_k_takes_the_lower_index_of_equal_values():
    """Two equal router outputs: the lower index first (methods.md 6.7)."""
    assert top_k(np.array([[0.2, 0.4, 0.4], [0.3, 0.3, 0.3]]), 2).tolist() == [[1, 2], [0, 1]]


def test_weights_by_hand():
    """r = (0.9, 0.05, 0.05), k = 2: 0.947 and 0.053 renormalised; MoEVD's softmax of them 0.70 and 0.30."""
    router, selected = np.array([[0.05, 0.9, 0.05]]), np.array([[1, 0]])
    renormalised = selected_weights(router, selected, rule="renormalised")
    softmax = selected_weights(router, selected, rule="softmax-of-probabilities")
    assert renormalised[0] == pytest.approx([0.9 / 0.95, 0.05 / 0.95])
    assert softmax[0] == pytest.approx([0.7006, 0.2994], abs=1e-4)  # 1 / (1 + e^-0.85)


#: Router probabilities 1/2, 3/8, 1/8: the two selected have the weights 4/7 and 3/7.
ROUTER = np.log([[0.5, 0.375, 0.125]])
#: Experts' probabilities of "vulnerable": 1/4, 1/2 and, never selected for k = 2, 9/10.
EXPERTS = np.array([[[LN(3), 0.0], [0.0, 0.0], [0.0, LN(9)]]])


def test_shares_by_hand():
    """4/7 and 3/7 of the two selected; under `maximum` the second is surest of "vulnerable" and has all."""
    shares = expert_shares(ROUTER, EXPERTS, k=2, weights="renormalised", fusion="probabilities")
    np.testing.assert_allclose(shares, [[4 / 7, 3 / 7, 0]])
    assert expert_shares(ROUTER, EXPERTS, k=2, weights="renormalised", fusion="maximum").tolist() == [[0, 1, 0]]


@given(arrays(np.float32, (4, 3), elements=FINITE), arrays(np.float32, (4, 3, 2), elements=FINITE), st.integers(1, 3))
def test_shares_are_those_of_the_fusion(router, experts, k):
    """Mixing logits by the shares is what `fuse` does, so states are mixed as the logits are."""
    for fusion in ("logits", "maximum"):
        shares = expert_shares(router, experts, k=k, weights="renormalised", fusion=fusion)
        np.testing.assert_allclose(shares.sum(1), 1)
        mixed = (shares[:, :, None] * experts).sum(1)
        np.testing.assert_allclose(
            mixed, fuse(router, experts, k=k, weights="renormalised", fusion=fusion), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("logits", [4 / 7 * LN(3), 0.0]),
        ("probabilities", [LN(4 / 7 * 3 / 4 + 3 / 7 * 1 / 2), LN(4 / 7 * 1 / 4 + 3 / 7 * 1 / 2)]),
        ("maximum", [0.0, 0.0]),  # the second expert, surer of "vulnerable" than the first
    ],
)
def test_fusion_by_hand(fusion, expected):
    """Equation 3 and the two alternatives, k = 2 of 3."""
    fused = fuse(ROUTER, EXPERTS, k=2, weights="renormalised", fusion=fusion)
    assert fused[0] == pytest.approx(expected)


def test_maximum_prefers_the_routers_choice_of_equally_sure_experts():
    """Experts 0 and 1 are equally sure; the router puts 1 first, whose larger logits show which was taken."""
    experts = np.array([[[0.0, 1.0], [5.0, 6.0]]])
    fused = fuse(np.array([[0.0, 1.0]]), experts, k=2, weights="renormalised", fusion="maximum")
    assert fused.tolist() == [[5.0, 6.0]]


def test_ensemble_is_the_mean_of_all():
    """(ln 3 + 0 + 0) / 3 and (0 + 0 + ln 9) / 3."""
    assert plain_ensemble(EXPERTS)[0] == pytest.approx([LN(3) / 3, LN(9) / 3])


def slow_fuse(router, experts, k, weights, fusion):
    """One sample at a time in plain Python, as the equations read."""
    rows = []
    for r_logits, z in zip(router.tolist(), experts.tolist(), strict=True):
        total = sum(math.exp(v - max(r_logits)) for v in r_logits)
        r = [math.exp(v - max(r_logits)) / total for v in r_logits]
        chosen = sorted(range(len(r)), key=lambda i: (-r_logits[i], i))[:k]
        raw = [r[i] if weights == "renormalised" else math.exp(r[i]) for i in chosen]
        w = [value / sum(raw) for value in raw]
        if fusion == "maximum":
            best = chosen[0]
            for i in chosen:
                best = i if z[i][1] - z[i][0] > z[best][1] - z[best][0] else best
            rows.append(z[best])
        elif fusion == "logits":
            rows.append([sum(wi * z[i][c] for wi, i in zip(w, chosen, strict=True)) for c in (0, 1)])
        else:
            p = [1 / (1 + math.exp(z[i][0] - z[i][1])) for i in chosen]
            mixed = sum(wi * pi for wi, pi in zip(w, p, strict=True))
            inverse = sum(wi * (1 - pi) for wi, pi in zip(w, p, strict=True))
            rows.append([math.log(inverse), math.log(mixed)])
    return np.array(rows)


@pytest.mark.parametrize("fusion", ["logits", "probabilities", "maximum"])
@pytest.mark.parametrize("weights", ["renormalised", "softmax-of-probabilities"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_fusion_agrees_with_the_slow_reference(k, weights, fusion):
    """Random logits, every rule."""
    rng = np.random.default_rng(k)
    router, experts = rng.normal(size=(30, 4)), 3 * rng.normal(size=(30, 4, 2))
    fused = fuse(router, experts, k=k, weights=weights, fusion=fusion)
    assert fused == pytest.approx(slow_fuse(router, experts, k, weights, fusion), abs=1e-9)


@given(
    arrays(np.float32, (5, 3), elements=FINITE),
    arrays(np.float32, (5, 3, 2), elements=FINITE),
    st.permutations(range(5)),
)
def test_samples_do_not_influence_each_other(router, experts, order):
    """Fusing shuffled rows is shuffling fused rows, and mixed probabilities add up to one."""
    whole = fuse(router, experts, k=2, weights="renormalised", fusion="probabilities")
    shuffled = fuse(router[order], experts[order], k=2, weights="renormalised", fusion="probabilities")
    np.testing.assert_allclose(shuffled, whole[order])
    np.testing.assert_allclose(np.exp(whole).sum(axis=1), 1.0)


@given(arrays(np.float32, (4, 3, 2), elements=FINITE), st.sampled_from(["logits", "probabilities"]))
def test_identical_experts_are_one_expert(experts, fusion):
    """If all experts agree, routing and weights change nothing: the mixture decides as the one does."""
    same = np.repeat(experts[:, :1], 3, axis=1)
    router = np.random.default_rng(0).normal(size=(4, 3))
    fused = fuse(router, same, k=2, weights="renormalised", fusion=fusion)
    margin = same[:, 0, 1].astype(float) - same[:, 0, 0]
    np.testing.assert_allclose(fused[:, 1] - fused[:, 0], margin, atol=1e-5)


def test_extreme_logits_stay_finite():
    """exp(-2000) is 0 in every float; its log must not reach the students' loss."""
    experts = np.array([[[2000.0, 0.0], [2000.0, 0.0]]])
    fused = fuse(np.array([[5.0, 0.0]]), experts, k=2, weights="renormalised", fusion="probabilities")
    assert fused[0] == pytest.approx([0.0, -2000.0])


def test_more_selected_than_experts_is_a_settings_error():
    """k larger than the number of experts (methods.md 6.7)."""
    with pytest.raises(SettingsError, match=r"mixture.k is 4, but there are 3 experts"):
        fuse(ROUTER, EXPERTS, k=4, weights="renormalised", fusion="logits")


def test_unasked_experts_are_refused():
    """A table of selected experts holds NaN; a larger k or the ensemble would quietly average over it."""
    partial = EXPERTS.copy()
    partial[0, 1] = np.nan
    fuse(ROUTER, partial, k=1, weights="renormalised", fusion="logits")
    with pytest.raises(DataError, match=r'1 of 1 samples .* mixture.table = "complete"'):
        fuse(ROUTER, partial, k=2, weights="renormalised", fusion="logits")
    with pytest.raises(DataError, match=r'all experts.* mixture.table = "complete"'):
        plain_ensemble(partial)


def test_misshapen_logits_are_refused():
    """(n, K, 1) would broadcast into a plausible result."""
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 3, 1\)"):
        fuse(ROUTER, EXPERTS[:, :, :1], k=2, weights="renormalised", fusion="logits")


# --------------------------------------------------------------------------------------------- calibration


def test_temperature_by_hand():
    """Margin 2 ln 3 and right 3 times of 4: the best T halves the margin, so that p = 3/4. T = 2."""
    logits = np.array([[[0.0, 2 * LN(3)]]] * 4)
    labels = np.array([1, 1, 1, 0])
    assert calibration_temperatures(logits, labels) == pytest.approx([2.0], rel=1e-4)


def test_calibration_recovers_a_known_temperature_and_keeps_decisions():
    """Labels drawn from softmax(z), logits shown as 3 z: T is 3 up to sampling error."""
    rng = np.random.default_rng(0)
    margin = rng.normal(scale=2, size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-margin))).astype(int)
    logits = np.stack([np.zeros_like(margin), 3 * margin], axis=1)[:, None]
    temperature = calibration_temperatures(logits, labels)
    assert temperature[0] == pytest.approx(3.0, rel=0.05)


def test_experts_without_evidence_keep_their_logits():
    """No row, or rows of one class only: any temperature would be made up."""
    logits = np.full((4, 3, 2), np.nan)
    logits[:, 1] = [0.0, 5.0]
    logits[:, 2] = [[0.0, 2 * LN(3)]] * 4
    labels = np.array([1, 1, 1, 0])
    logits[3, 1] = np.nan  # leaves expert 1 with label 1 only
    assert calibration_temperatures(logits, labels) == pytest.approx([1.0, 1.0, 2.0], rel=1e-4)


# --------------------------------------------------------------------------------------- table and stage


def samples(part: str, count: int) -> list[Sample]:
    return [Sample(f"{part}:{i}", f"int {part}{i};", i % 2, "toy", digest=f"{part}{i}") for i in range(count)]


PARTS = {part: samples(part, 40) for part in ("train_a", "train_b", "valid", "test")}
GROUPS = ("CWE-664", "other", "unknown")


def settings(**fields: object) -> MoekdSettings:
    return MoekdSettings.model_validate({"name": "toy", "data": {"sources": [{"kind": "embedded"}]}, "mixture": fields})


def table(seed: int = 0) -> Table:
    """Scores for all but half A, in an order of their own; the experts know the label, more or less."""
    rng = np.random.default_rng(seed)
    everyone = [(part, s) for part in ("test", "train_b", "valid") for s in PARTS[part][::-1]]
    labels = np.array([s.label for _, s in everyone])
    experts = rng.normal(size=(len(everyone), 3, 2))
    experts[:, :, 1] += 2.0 * (labels[:, None] - 0.5)
    return Table(
        tuple(s.id for _, s in everyone),
        tuple(s.digest for _, s in everyone),
        tuple(part for part, _ in everyone),
        rng.normal(size=(len(everyone), 3)).astype(np.float32),
        experts.astype(np.float32),
    )


@pytest.fixture
def inputs(monkeypatch, tmp_path) -> dict[str, Path]:
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: PARTS, raising=False)
    folders = {name: tmp_path / name for name in ("data", "scores", "partition")}
    for folder in folders.values():
        folder.mkdir()
    write_json(folders["partition"] / "partition.json", {"groups": list(GROUPS), "group_of": {}, "scheme": "cwe"})
    mixture.save_table(folders["scores"], table())
    return folders


def test_table_round_trip(tmp_path):
    """What is read is what was written, NaN included."""
    written = table()
    written.experts[0, 1] = np.nan
    mixture.save_table(tmp_path, written)
    read = mixture.load_table(tmp_path)
    assert (read.ids, read.digests, read.parts) == (written.ids, written.digests, written.parts)
    np.testing.assert_array_equal(read.experts, written.experts)
    np.testing.assert_array_equal(read.router, written.router)


def test_misaligned_table_is_refused():
    """A missing digest or a repeated id would pair scores with other samples."""
    whole = table()
    for damaged in ({"digests": whole.digests[1:]}, {"ids": (whole.ids[1], *whole.ids[1:])}):
        with pytest.raises(DataError, match="misaligned"):
            dataclasses.replace(whole, **damaged)


def test_stage_fuses_by_id(inputs, tmp_path):
    """The table's order is not the samples'; targets hold half B, predictions validation and test."""
    facts = mixture.fuse_table(settings(k=2), inputs, tmp_path, rule="top-k", seed=0)
    targets, predictions = (load_scores(tmp_path / name) for name in ("targets.npz", "predictions.npz"))
    assert targets.ids == tuple(s.id for s in PARTS["train_b"])
    assert predictions.ids == tuple(s.id for s in (*PARTS["valid"], *PARTS["test"]))

    whole = table()
    row = whole.ids.index("train_b:7")
    expected = slow_fuse(whole.router[[row]], whole.experts[[row]], 2, "renormalised", "logits")
    assert aligned(targets, [PARTS["train_b"][7]])[0] == pytest.approx(expected[0], abs=1e-6)

    valid = aligned(predictions, PARTS["valid"])
    right = [(z[1] > z[0]) == (s.label == 1) for z, s in zip(valid, PARTS["valid"], strict=True)]
    assert facts["valid_accuracy"] == sum(right) / 40
    assert facts["temperatures"] == dict.fromkeys(GROUPS, 1.0)
    assert sum(facts["half_b_first_choice_benign"].values()) == 20
    assert sum(facts["half_b_first_choice_vulnerable"].values()) == 20
    assert 0.5 <= facts["first_expert_mean_weight"] <= 1.0
    json.dumps(facts, allow_nan=False)


def test_stage_ensemble(inputs, tmp_path):
    """The control uses no router: mean of the experts, and no routing facts."""
    facts = mixture.fuse_table(settings(k=2), inputs, tmp_path, rule="ensemble")
    whole = table()
    row = whole.ids.index("test:3")
    predictions = load_scores(tmp_path / "predictions.npz")
    assert aligned(predictions, [PARTS["test"][3]])[0] == pytest.approx(whole.experts[row].mean(axis=0), abs=1e-6)
    assert set(facts) == {"valid_accuracy", "temperatures"}


def test_calibration_is_the_same_for_a_complete_and_a_selected_table(inputs, tmp_path):
    """Temperatures are fitted on the samples the router sends; the other answers must not matter."""
    wanted = settings(k=1, calibration="temperature")
    complete = mixture.fuse_table(wanted, inputs, tmp_path, rule="top-k")
    partial = table()
    unused = np.ones(partial.router.shape, dtype=bool)
    np.put_along_axis(unused, top_k(partial.router, 1), False, axis=1)
    partial.experts[unused] = np.nan
    mixture.save_table(inputs["scores"], partial)
    selected = mixture.fuse_table(wanted, inputs, tmp_path, rule="top-k")
    assert selected == complete
    assert len(set(complete["temperatures"].values())) == 3


def test_calibration_reaches_the_targets(inputs, tmp_path):
    """Half B's logits are divided by the temperature fitted on validation."""
    facts = mixture.fuse_table(settings(calibration="temperature"), inputs, tmp_path, rule="ensemble")
    whole = table()
    row = whole.ids.index("train_b:5")
    divided = whole.experts[row] / np.array(list(facts["temperatures"].values()))[:, None]
    targets = load_scores(tmp_path / "targets.npz")
    assert aligned(targets, [PARTS["train_b"][5]])[0] == pytest.approx(divided.mean(axis=0), abs=1e-5)


def test_scores_of_another_partition_are_refused(inputs, tmp_path):
    """Two groups now, three experts in the table."""
    write_json(inputs["partition"] / "partition.json", {"groups": ["other", "unknown"], "group_of": {}})
    with pytest.raises(DataError, match="3 experts, but the partition has 2 groups"):
        mixture.fuse_table(settings(), inputs, tmp_path, rule="top-k")


def test_stage_refuses_k_above_the_number_of_experts(inputs, tmp_path):
    """Also with calibration, which routes first; nothing is written."""
    for calibration in ("none", "temperature"):
        with pytest.raises(SettingsError, match=r"mixture.k is 4, but there are 3"):
            mixture.fuse_table(settings(k=4, calibration=calibration), inputs, tmp_path, rule="top-k")
    assert not (tmp_path / "targets.npz").exists()


# --------------------------------------------------------------------------------------- mixture as a model


class FixedScorer:
    """Logits by text, and a record of what it was asked; saves as JSON."""

    def __init__(self, answers: dict[str, list[float]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def logits(self, texts):
        self.asked += texts
        return np.array([self.answers[text] for text in texts], dtype=np.float32)

    def save_pretrained(self, folder):
        write_json(Path(folder) / "answers.json", self.answers)

    @classmethod
    def from_pretrained(cls, folder):
        return cls(json.loads((Path(folder) / "answers.json").read_text()))


TEXTS = ["int a;", "int b;", "int c;"]


def toy_mixture(**fields) -> Mixture:
    rng = np.random.default_rng(5)
    router = FixedScorer(dict(zip(TEXTS, [[9.0, 1.0, 0.0], [0.0, 1.0, 9.0], [8.0, 9.0, 0.0]], strict=True)))
    experts = [FixedScorer(dict(zip(TEXTS, rng.normal(size=(3, 2)).tolist(), strict=True))) for _ in GROUPS]
    return Mixture(router, experts, groups=GROUPS, **{"k": 1} | fields)


def test_mixture_asks_only_selected_experts():
    """1 + k passes a text: expert 0 sees the first text, 1 the third, 2 the second."""
    model = toy_mixture(k=1)
    logits = model.logits(TEXTS)
    assert [expert.asked for expert in model.experts] == [["int a;"], ["int c;"], ["int b;"]]
    assert logits.dtype == np.float32
    assert logits[2] == pytest.approx(model.experts[1].answers["int c;"])


@pytest.mark.parametrize("fusion", ["logits", "probabilities", "maximum"])
def test_mixture_is_the_fused_table(fusion):
    """Scoring on the fly and fusing a complete, calibrated table give the same logits."""
    temperatures = (0.5, 2.0, 1.0)
    model = toy_mixture(k=2, fusion=fusion, weights="softmax-of-probabilities", temperatures=temperatures)
    complete = np.stack([expert.logits(TEXTS) for expert in model.experts], axis=1)
    calibrated = complete / np.array(temperatures)[:, None]
    router = model.router.logits(TEXTS)
    expected = fuse(router, calibrated, k=2, weights="softmax-of-probabilities", fusion=fusion)
    assert model.logits(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_saved_mixture_is_the_same_model(monkeypatch, tmp_path):
    """One sub-folder an expert, `router/` and `moe.json`; reading them back gives the same answers."""
    monkeypatch.setattr("moekd.classifier.Classifier", FixedScorer)
    model = toy_mixture(k=2, fusion="probabilities", temperatures=(0.5, 2.0, 1.0))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"moe.json", "router", *GROUPS}
    again = Mixture.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.logits(TEXTS), model.logits(TEXTS))


def test_exchanged_expert_is_noticed(monkeypatch, tmp_path):
    """Experts of two mixtures mixed up by a copy would load and score nonsense."""
    monkeypatch.setattr("moekd.classifier.Classifier", FixedScorer)
    toy_mixture().save_pretrained(tmp_path)
    (tmp_path / "other" / "answers.json").write_text("{}")
    with pytest.raises(DataError, match=r"other is not what was saved"):
        Mixture.from_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no saved mixture"):
        Mixture.from_pretrained(tmp_path / "other")


def test_mixture_refuses_what_it_cannot_be(tmp_path):
    """A missing expert, a group name that is no folder name, an expert that cannot be saved."""
    model = toy_mixture()
    with pytest.raises(ValueError, match="2 experts, 3 groups"):
        Mixture(model.router, model.experts[:2], groups=GROUPS, k=1)
    for name in ("router", "a/b"):
        with pytest.raises(ValueError, match="cannot be the name of an expert's folder"):
            Mixture(model.router, model.experts[:1], groups=(name,), k=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no save_pretrained"):
        Mixture(object(), model.experts, groups=GROUPS, k=1).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"mixture.k is 4"):
        toy_mixture(k=4).logits(TEXTS)


def test_mixture_of_real_classifiers_survives_saving(tmp_path):
    """Encoders, not stand-ins: saved and loaded, every text gets the same logits, from its own experts only."""
    import torch

    from moekd.classifier import Classifier, roberta
    from moekd.tokens import train_bpe

    torch.manual_seed(0)
    texts = [f"int f{i}(int a) {{ return a + {i * 7}; }}" for i in range(6)]
    tokenizer = train_bpe(texts, vocabulary=300, max_length=32)

    def classifier(labels):
        shape = {"max_length": 32, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 16}
        model = roberta(tokenizer=tokenizer, dropout=0.0, labels=labels, **shape)
        model.classifier.out_proj.weight.data.normal_(std=1.0)  # so that texts are routed differently
        return Classifier(model.eval(), tokenizer, 32)

    experts = [classifier(("not_vulnerable", "vulnerable")) for _ in GROUPS]
    model = Mixture(classifier(GROUPS), experts, groups=GROUPS, k=2)
    model.save_pretrained(tmp_path)
    logits = model.logits(texts)
    np.testing.assert_allclose(Mixture.from_pretrained(tmp_path).logits(texts), logits, atol=1e-5)
    complete = np.stack([expert.logits(texts) for expert in experts], axis=1)
    fused = fuse(model.router.logits(texts), complete, k=2, weights="renormalised", fusion="logits")
    np.testing.assert_allclose(logits, fused, atol=1e-5)
