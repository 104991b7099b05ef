"""The encoders that the package ships: small, free of pickles, loadable by name, and better than nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moekd import classifier
from moekd.config import Encoder
from moekd.data.text import normalise
from moekd.files import sha256_file
from moekd.pretrain.architectures import masked_token_logits
from moekd.pretrain.objectives import Masking
from moekd.tokens import SPECIALS

#: Name and most bytes of all its files.
SHIPPED = [("moekd-mini", 16_000_000), ("moekd-mini-student", 3_000_000)]


def folder_of(name: str) -> Path:
    return Path(classifier.place_of(name))


def test_every_asset_is_tested():
    assert {name for name, _ in SHIPPED} == set(classifier.ASSETS)


@pytest.mark.parametrize(("name", "limit"), SHIPPED)
def test_files(name, limit):
    """Within its size, weights as safetensors in half precision, with a model card and nothing else."""
    from safetensors.torch import load_file

    files = [path for path in folder_of(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= limit
    assert {path.name for path in files} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    weights = load_file(folder_of(name) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


@pytest.mark.parametrize(("name", "first"), [("moekd-mini", "moekd-mini-first"), ("moekd-mini-student", None)])
def test_the_card_says_what_the_result_file_says(name, first):
    """Weights, tokens, steps, accuracy and loss are those of the recorded run, and the limits are named."""
    results = Path(__file__).parent.parent / "docs" / "results"
    run, *earlier = (json.loads((results / f"{one}.json").read_text()) for one in (name, first) if one)
    card = " ".join((folder_of(name) / "README.md").read_text().split())
    assert run["files"]["model/model.safetensors"]["sha256"] == sha256_file(folder_of(name) / "model.safetensors")
    trained = [one["facts"]["history"]["tokens"] for one in (run, *earlier)]
    budget = run["settings"]["pretrain.training.token_budget"]
    held_out = run["facts"]["held_out"]
    for figure in (
        f"{sum(trained) / 1e6:.0f} million tokens",
        f"{sum(trained) // budget:,} steps of {budget:,}",
        f"accuracy {held_out['masked_accuracy_model']:.3f} (loss {held_out['masked_loss_nats']:.2f} nats",
        f"the most frequent token has {held_out['masked_accuracy_unigram']:.3f}",
        f"one after two others {held_out['masked_accuracy_trigram']:.3f}",
        f"between its neighbours {held_out['masked_accuracy_both_neighbours']:.3f}",
        "**What it is not.**",
    ):
        assert figure in card


def test_the_recorded_corpus():
    """Every archive with its digest, of a listed package; kept + dropped = found."""
    root = Path(__file__).parent.parent
    corpus = json.loads((root / "docs" / "results" / "pretraining-corpus.json").read_text())
    listed = (root / "scripts" / "debian_corpus.txt").read_text().split("\n")
    assert all(len(one["sha256"]) == 64 and one["package"] in listed for one in corpus["archives"])
    assert corpus["kept"] == sum(one["kept"] for one in corpus["archives"])
    total = corpus["total"]
    dropped = sum(count for reason, count in total.items() if reason.startswith("functions dropped"))
    assert corpus["kept"] + dropped + sum(corpus["dropped"].values()) == total["functions"]
    # An archive of which nothing is kept is not listed.
    assert total["functions"] >= sum(one["functions"] for one in corpus["archives"])


@pytest.mark.parametrize(("name", "limit"), SHIPPED)
def test_it_starts_a_classifier_by_name(name, limit):
    """In fp32, with the wanted classes; equal seeds give equal heads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    one, same = (
        classifier.build(Encoder(name=name), tokenizer, labels=("a", "b", "c"), seed=3, dropout=0.0) for _ in range(2)
    )
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}
    assert one.config.num_labels == 3
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(("name", "least"), [("moekd-mini", 0.4), ("moekd-mini-student", 0.3)])
def test_it_has_learned_c(name, least, functions):
    """Masked tokens of functions that are in no corpus: far more are guessed than the most frequent token would be."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    model = AutoModelForMaskedLM.from_pretrained(classifier.language_model_of(name), dtype=torch.float32).eval()
    right = frequent = total = 0
    torch.manual_seed(0)
    for sample in functions[:40]:
        ids = tokenizer(normalise(sample.func), truncation=True, max_length=256, return_tensors="pt")["input_ids"]
        chosen = Masking(0.15, None, None).draw(ids)
        hidden = torch.where(chosen, torch.full_like(ids, SPECIALS.index("<mask>")), ids)
        with torch.inference_mode():
            guesses = masked_token_logits(model, {"input_ids": hidden}, chosen).argmax(-1)
        right += int((guesses == ids[chosen]).sum())
        frequent += int((ids[chosen] == ids.flatten().mode().values).sum())
        total += int(chosen.sum())
    assert right / total > least
    assert right > 2 * frequent
