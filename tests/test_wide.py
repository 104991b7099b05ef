"""The n-gram table beside an encoder: its hashes, its logits, and models that have one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig

from moekd.classifier import Classifier, build, ngrams, place_of, roberta
from moekd.config import Encoder, Training
from moekd.config.students import Student
from moekd.errors import SettingsError
from moekd.experts.training import _start_from
from moekd.export.graph import graph_of
from moekd.records import LABELS
from moekd.students.shapes import SHAPES, build_student
from moekd.training import make_optimizer
from moekd.wide import NGramTable, ngram_buckets, widened

_BUCKETS = 64


def slow_buckets(ids: list[int], buckets: int) -> list[int]:
    """The hash as its definition says, number by number."""
    factors, prime = (1_103_515_245, 1_640_531_527, 1_013_904_223), 2**31 - 1
    found = []
    for order in (1, 2, 3):
        for start in range(len(ids) - order + 1):
            gram = ids[start : start + order]
            hashed = sum(factor * token for factor, token in zip(factors, gram, strict=False))
            found.append((hashed + order * 374_761_393) % prime % buckets)
    return sorted(found)


@given(
    texts=st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=12), min_size=1, max_size=4),
)
@hypothesis_settings(max_examples=50, deadline=None)
def test_buckets_are_those_of_the_definition(texts):
    """In a padded batch every text has the buckets that a loop over its n-grams finds, and no others."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [1] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    for text, row in zip(texts, ngram_buckets(ids, mask, buckets=_BUCKETS).tolist(), strict=True):
        expected = slow_buckets(text, _BUCKETS)
        assert row == expected + [_BUCKETS] * (len(row) - len(expected))


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_by_hand(classes):
    """Each distinct bucket counts once; the sum is divided by the square root of their number and multiplied by 16.

    Of two classes the table holds the difference, of more it treats all alike.
    """
    table = NGramTable(_BUCKETS, classes)
    columns = 1 if classes == 2 else classes
    with torch.no_grad():
        table.weight.copy_(torch.arange(_BUCKETS * columns, dtype=torch.float32).reshape(_BUCKETS, columns) / 100)
    ids = [7, 7, 7]  # one single token, one pair, one triple
    distinct = sorted(set(slow_buckets(ids, _BUCKETS)))
    assert len(distinct) == 3
    sums = [16 / math.sqrt(3) * sum((columns * bucket + c) / 100 for bucket in distinct) for c in range(columns)]
    expected = [0.0, *sums] if classes == 2 else sums
    np.testing.assert_allclose(table(torch.tensor([ids])).detach()[0], expected, rtol=1e-6)


def test_an_untrained_table_says_nothing(tokenizer):
    """It starts at zero: the classifier's logits are those of the encoder alone."""
    encoder = Encoder(layers=1, hidden=16, heads=2, intermediate=16, max_length=32)
    plain = build(encoder, tokenizer, seed=1, dropout=0.0)
    wide = build(encoder.model_copy(update={"ngram_buckets": _BUCKETS}), tokenizer, seed=1, dropout=0.0)
    wide.load_state_dict(plain.state_dict(), strict=False)
    texts = ["int f(void) { return 1; }", "void g(char *p) { free(p); }"]
    np.testing.assert_array_equal(
        Classifier(plain.eval(), tokenizer, 32).logits(texts), Classifier(wide.eval(), tokenizer, 32).logits(texts)
    )


def test_saved_and_loaded(tokenizer, tmp_path):
    """The folder holds the table; the loaded model answers the same, in a padded batch as for a single text."""
    model = build(
        Encoder(layers=1, hidden=16, heads=2, intermediate=16, max_length=32, ngram_buckets=_BUCKETS),
        tokenizer,
        seed=0,
        dropout=0.0,
    )
    torch.nn.init.normal_(model.ngrams.weight)
    classifier = Classifier(model.eval(), tokenizer, 32)
    classifier.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    texts = ["int f(void) { return 1; }", "void g(char *p, int n) { for (;;) free(p); }"]
    assert loaded.max_length == 32
    np.testing.assert_array_equal(loaded.logits(texts), classifier.logits(texts))
    np.testing.assert_allclose(
        np.concatenate([loaded.logits([text]) for text in texts]), loaded.logits(texts), atol=1e-5
    )


def test_a_pre_trained_encoder_keeps_its_weights():
    """The shape `wide-3mb` has moekd-mini-student's weights, a table of zeros, and as many parameters as it says."""
    tokenizer = AutoTokenizer.from_pretrained(place_of("moekd-mini-student"))
    shape = SHAPES["wide-3mb"]
    model = build_student(shape, tokenizer, seed=0, dropout=0.0)
    plain = build_student(replace(shape, ngram_buckets=0), tokenizer, seed=0, dropout=0.0)
    assert model.num_parameters() == shape.parameters()
    assert not model.ngrams.weight.any()
    for name, weight in plain.base_model.state_dict().items():
        assert torch.equal(weight, model.base_model.state_dict()[name])


def test_the_default_student_and_its_control_differ_in_the_start_alone():
    """Pre-trained by default; the references' random start is a setting, `wide-3mb-random`, of the same sizes."""
    (default,) = Student().shapes
    assert SHAPES[default].start == "moekd-mini-student"
    control = SHAPES[f"{default}-random"]
    assert control == replace(SHAPES[default], start=None)
    tokenizer = AutoTokenizer.from_pretrained(place_of("moekd-mini-student"))
    one, other = (build_student(shape, tokenizer, seed=0, dropout=0.0) for shape in (SHAPES[default], control))
    assert {name: weight.shape for name, weight in one.state_dict().items()} == {
        name: weight.shape for name, weight in other.state_dict().items()
    }
    assert not torch.equal(
        one.base_model.embeddings.tok_embeddings.weight, other.base_model.embeddings.tok_embeddings.weight
    )


@pytest.mark.parametrize("whole", [True, False])
def test_starting_from_a_wide_teacher(tokenizer, tmp_path, whole):
    """An expert takes over the table with everything else; a router, of other classes, the encoder only."""
    encoder = Encoder(layers=1, hidden=16, heads=2, intermediate=16, max_length=32, ngram_buckets=_BUCKETS)
    teacher = build(encoder, tokenizer, seed=0, dropout=0.0)
    labels = LABELS if whole else ("a", "b", "c")
    started = build(encoder, tokenizer, labels=labels, seed=1, dropout=0.0)
    torch.nn.init.normal_(teacher.ngrams.weight)
    Classifier(teacher, tokenizer, 32).save_pretrained(tmp_path)
    _start_from(started, tmp_path, whole=whole)
    assert bool(started.ngrams.weight.any()) == whole
    for name, weight in teacher.base_model.state_dict().items():
        assert torch.equal(weight, started.base_model.state_dict()[name])


@pytest.mark.parametrize(
    ("shape", "precision"), [("wide-3mb", "float32"), ("wide-3mb", "int8"), ("wide-3mb-int8", "int8")]
)
def test_exported_within_three_megabytes(tmp_path, shape, precision):
    """Graphs of wide shapes hash and sort as torch does: same logits, and the files stay under 3,000,000 bytes."""
    import onnxruntime

    tokenizer = AutoTokenizer.from_pretrained(place_of("moekd-mini-student"))
    model = build_student(SHAPES[shape], tokenizer, seed=0, dropout=0.0).eval()
    torch.nn.init.normal_(model.ngrams.weight, generator=torch.Generator().manual_seed(0))
    classifier = Classifier(model, tokenizer, 384)
    graph = graph_of(classifier, precision)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for text in ("int f(void) { return 1; }", "void g(char *p, int n) { for (;;) free(p); }" * 12):
        ids = np.array([tokenizer(text)["input_ids"]], dtype=np.int64)
        (found,) = session.run(["logits"], {"input_ids": ids})
        np.testing.assert_allclose(found, classifier.logits([text]), atol=1e-5 if precision == "float32" else 0.6)
    tokenizer_bytes = len(tokenizer.backend_tokenizer.to_str(pretty=False).encode())
    assert len(graph) + tokenizer_bytes < 2_990_000  # and model.json


def test_the_table_learns(tokenizer):
    """Trained alone, it tells apart texts that differ in one token."""
    model = roberta(
        tokenizer=tokenizer, max_length=32, layers=1, hidden=8, heads=1, intermediate=8, dropout=0.0,
        ngram_buckets=2**12,
    )  # fmt: skip
    ids = torch.tensor([[0, 20, 21, 22, 2], [0, 20, 23, 22, 2]])
    optimizer = torch.optim.AdamW(model.ngrams.parameters(), lr=1e-2)
    for _ in range(20):
        loss = model(input_ids=ids, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        model.zero_grad()
    assert float(loss.detach()) < 0.1


def test_the_table_has_a_rate_of_its_own(tokenizer):
    """The optimiser moves the table at `ngram_learning_rate` and all else at `learning_rate`, each parameter once."""
    model = roberta(
        tokenizer=tokenizer, max_length=32, layers=1, hidden=8, heads=1, intermediate=8, dropout=0.0,
        ngram_buckets=2**12,
    )  # fmt: skip
    groups = make_optimizer(model, Training(learning_rate=1e-4, ngram_learning_rate=3e-3)).param_groups
    rates = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(model.parameters()))
    assert rates.pop(id(model.ngrams.weight)) == 3e-3
    assert set(rates.values()) == {1e-4}


def test_the_table_alone_is_a_saved_classifier(tokenizer, tmp_path):
    """As its own model it gives the table's logits, padded or not, and is read back as what was written."""
    model = ngrams(tokenizer=tokenizer, max_length=32, buckets=_BUCKETS, labels=("a", "b", "c"))
    with torch.no_grad():
        model.ngrams.weight.copy_(torch.arange(_BUCKETS * 3, dtype=torch.float32).reshape(_BUCKETS, 3) / 100)
    texts = ["int f(int n) { return n; }", "void g() {}"]
    classifier = Classifier(model.eval(), tokenizer, 32)
    classifier.save_pretrained(tmp_path)
    read = Classifier.from_pretrained(tmp_path)
    assert read.max_length == 32
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    alone = torch.cat([model.ngrams(row) for row in rows]).detach().numpy()
    np.testing.assert_allclose(read.logits(texts), alone, rtol=1e-6)


def test_other_architectures_are_refused():
    with pytest.raises(SettingsError, match=r"n-gram table .* modernbert, roberta; this one is a bert"):
        widened(BertConfig(), 64)
