"""Students without attention: padding, saving, exporting, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.bigru import ends
from moekd.classifier import Classifier, bigru, predict
from moekd.export import export
from moekd.scan.model import ScanModel
from moekd.tokens import Tokens, encode
from moekd.training import Task, fit


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    made = bigru(tokenizer=tokenizer, max_length=64, layers=2, hidden=16, dropout=0.0).eval()
    for weight in made.parameters():
        weight.data.mul_(3)  # so that scores differ
    return made


def test_ends_by_hand():
    """Texts of 2 and 1 tokens, one value a direction: forward at the last real token, backward at the first."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [0.0, 0.0]]])
    assert ends(states, torch.tensor([2, 1])).tolist() == [[3, 2], [5, 6]]
    assert ends(states[:1], None).tolist() == [[3, 2]]


def test_padding_changes_no_logit(model, tokenizer, functions):
    """Alone, with neighbours of other lengths, and with other ids behind the mask: the same logits and states."""
    texts = [sample.func[:length] for sample in functions[:8] for length in (1, 10, 40, 400)]
    classifier = Classifier(model, tokenizer, 64)
    together = classifier.logits(texts)
    np.testing.assert_allclose(together, np.concatenate([classifier.logits([text]) for text in texts]), atol=1e-5)
    assert np.ptp(together[:, 1] - together[:, 0]) > 0.1
    ids, mask = (torch.from_numpy(values) for values in classifier.encode(texts[:4]).padded(np.arange(4), 1))
    asked = {"attention_mask": mask, "output_hidden_states": True}
    with torch.inference_mode():
        one, other = (model(filled, **asked) for filled in (ids, torch.where(mask == 1, ids, 7)))
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.hidden_states[-1], other.hidden_states[-1])


def test_training_and_reading_give_the_same(model, tokenizer, functions):
    """In training another recurrence runs than in evaluation; without dropout logits and states are equal."""
    tokens = encode(tokenizer, [sample.func[:length] for sample in functions[:2] for length in (1, 40, 200)], 64)
    ids, mask = (torch.from_numpy(values) for values in tokens.padded(np.arange(6), 1))
    asked = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    training, reading = model.train()(**asked), model.eval()(**asked)
    assert type(training.hidden_states[1].grad_fn) is not type(reading.hidden_states[1].grad_fn)
    for one, other in zip(training.hidden_states, reading.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(training.logits, reading.logits, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_as_any_other(model, tokenizer, functions, tmp_path):
    """config.json and safetensors, found through transformers' own Auto classes, with the same answers."""
    Classifier(model, tokenizer, 64).save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert (loaded.max_length, loaded.model.config.id2label[1]) == (64, "vulnerable")
    texts = [sample.func for sample in functions[:5]]
    np.testing.assert_array_equal(loaded.logits(texts), Classifier(model, tokenizer, 64).logits(texts))


def test_exported_for_every_length(model, tokenizer, labelled, functions, tmp_path):
    """ONNX answers as torch does on texts of any length, the empty one included, far within 0.005."""
    Classifier(model, tokenizer, 64).save_pretrained(tmp_path / "student")
    export(tmp_path / "student", tmp_path / "out", data=labelled)
    texts = [sample.func[:length] for sample in functions[:10] for length in (10, 60, 1000)] + [""]
    expected = Classifier.from_pretrained(tmp_path / "student").logits(texts)
    np.testing.assert_allclose(ScanModel.load(tmp_path / "out").logits(texts), expected, atol=1e-4)


def test_it_learns(tokenizer, tmp_path):
    """Two texts that differ in their first token alone, at both lengths of a padded batch: learned from 40 steps."""
    from moekd.config import Training

    torch.manual_seed(0)
    made = bigru(tokenizer=tokenizer, max_length=64, layers=1, hidden=16, dropout=0.0)
    tokens = Tokens.of([[0, 10, *[30] * n, 2] for n in (5, 20)] + [[0, 11, *[30] * n, 2] for n in (5, 20)])
    labels = torch.tensor([0, 0, 1, 1])
    task = Task(
        name="first token",
        tokens=tokens,
        draw=lambda epoch: np.arange(4),
        loss=lambda logits, rows: torch.nn.functional.cross_entropy(logits, labels[rows]),
        measure=None,
    )
    fit(made, task, Training(epochs=40, learning_rate=0.02), pad_id=1, seed=0, folder=tmp_path)
    assert predict(made, tokens, pad_id=1).argmax(1).tolist() == [0, 0, 1, 1]
