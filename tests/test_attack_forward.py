"""The fast forward passes against the library's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.attack.forward import RobertaForward, forward_of
from moekd.attack.victims import ClassifierVictim
from moekd.classifier import Classifier, roberta
from moekd.data.embedded import generate
from moekd.students.shapes import SHAPES, build_student
from moekd.tokens import train_bpe

TEXTS = [sample.func for sample in generate(40, 3)]
TOKENIZER = train_bpe(TEXTS, vocabulary=400, max_length=400)


def model_of(shape: str):
    """A shape with weights, pre-trained or large, so that attention prefers some tokens and answers differ."""
    model = build_student(SHAPES[shape], TOKENIZER, seed=0, dropout=0.0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ngrams" in name:
                weight.normal_(std=0.1)
            elif weight.ndim == 2 and "embeddings" not in name and not SHAPES[shape].start:
                weight.mul_(4)
    return model


MODELS = {shape: model_of(shape) for shape in ("compressor-3mb", "avatar-3mb", "compact-3mb", "rotary-3mb", "wide-3mb")}
FORWARDS = {shape: forward_of(model) for shape, model in MODELS.items()}


def wanted(model, row: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(row).long()[None]).logits[0].numpy()


@pytest.mark.parametrize("shape", MODELS)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(2, 350), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_same_logits_as_the_library(shape, lengths, seed):
    """Any number of rows of any lengths in one batch: the logits of each row alone, to 1e-6 of their size."""
    rng = np.random.default_rng(seed)
    rows = [np.array([0, *rng.integers(5, 400, length - 2), 2], dtype=np.int32) for length in lengths]
    found = FORWARDS[shape].logits(rows)
    expected = np.array([wanted(MODELS[shape], row) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))


def test_scores_that_exponentials_cannot_hold():
    """Attention scores in the hundreds: the short cut says so instead of giving NaN, and the victim asks the model."""
    torch.manual_seed(0)
    model = roberta(
        tokenizer=TOKENIZER, max_length=64, layers=2, hidden=32, heads=2, intermediate=32, dropout=0.0
    ).eval()
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.attention.self.query.weight.mul_(500)
            layer.attention.self.key.weight.mul_(500)
    classifier = Classifier(model, TOKENIZER, 64)
    assert RobertaForward(model).logits([classifier.encode(TEXTS[:1]).flat]) is None
    logits = torch.from_numpy(classifier.logits(TEXTS[:4]))
    np.testing.assert_allclose(ClassifierVictim(classifier)(TEXTS[:4]), logits.softmax(1)[:, 1].numpy(), atol=1e-6)


def test_a_text_that_spells_out_padding():
    """`<pad>` in a text takes no position in the library's model: the victim asks it."""
    classifier = Classifier(MODELS["compact-3mb"], TOKENIZER, 384)
    text = "int f(int a) { return a <pad> a; }"
    assert RobertaForward(classifier.model).logits([classifier.encode([text]).flat]) is None
    logits = torch.from_numpy(classifier.logits([text]))
    np.testing.assert_allclose(ClassifierVictim(classifier)([text]), logits.softmax(1)[:, 1].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ("compact-3mb", {"hidden_act": "relu"}),
        ("rotary-3mb", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
        ("rotary-3mb", {"classifier_pooling": "cls"}),
    ],
)
def test_only_what_it_computes_is_taken(shape, change, monkeypatch):
    """Another activation, layers that see a window only or another pooling are left to the library, as a BiGRU is."""
    assert all(FORWARDS.values())
    for name, value in change.items():
        monkeypatch.setattr(MODELS[shape].config, name, value)
    assert forward_of(MODELS[shape]) is None
    assert forward_of(build_student(SHAPES["bigru-0.75m"], TOKENIZER, seed=0, dropout=0.0)) is None
