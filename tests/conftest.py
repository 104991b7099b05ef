"""Small things that several test files share: one thread, no network, a few functions, a tokenizer and a model.

Heavy libraries are imported inside the fixtures, so that a file that needs none stays quick.
"""

from __future__ import annotations

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: results are equal on equal numbers of threads
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that import onnxruntime themselves; moekd sets it


@pytest.fixture(scope="session")
def functions():
    """120 embedded functions, vulnerable ones and their safe twins."""
    from moekd.data.embedded import generate

    return generate(120, 0)


@pytest.fixture(scope="session")
def tokenizer(functions):
    from moekd.tokens import train_bpe

    return train_bpe([sample.func for sample in functions], vocabulary=400, max_length=64)


@pytest.fixture
def make_model(tokenizer):
    """1 layer x 32 from random weights; equal seeds give equal weights."""
    import torch

    from moekd.classifier import roberta

    def make(seed: int = 0, *, dropout: float = 0.0, labels=("not_vulnerable", "vulnerable")):
        torch.manual_seed(seed)
        return roberta(
            tokenizer=tokenizer,
            max_length=64,
            layers=1,
            hidden=32,
            heads=2,
            intermediate=32,
            dropout=dropout,
            labels=labels,
        )

    return make


@pytest.fixture(scope="session")
def student(tokenizer, tmp_path_factory):
    """Folder of a saved student, 1 layer x 32 from random weights, scaled up so that scores differ."""
    import torch

    from moekd.classifier import Classifier, roberta

    torch.manual_seed(0)
    model = roberta(
        tokenizer=tokenizer, max_length=64, layers=1, hidden=32, heads=2, intermediate=32, dropout=0.0
    ).eval()
    with torch.no_grad():
        for weight in (*model.roberta.encoder.parameters(), *model.classifier.parameters()):
            if weight.ndim == 2:
                weight.mul_(8)
        model.classifier.out_proj.weight.mul_(10)
    folder = tmp_path_factory.mktemp("student")
    Classifier(model, tokenizer, 64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """400 embedded functions as a file: enough for a threshold at the default false-alarm rate."""
    import json

    from moekd.data.embedded import generate

    path = tmp_path_factory.mktemp("labelled") / "valid.jsonl"
    path.write_text("".join(json.dumps({"func": one.func, "label": one.label}) + "\n" for one in generate(400, 1)))
    return path


@pytest.fixture(autouse=True)
def loud():
    """A test that runs a command with --quiet must not silence the next one."""
    from moekd import console

    yield
    console.set_quiet(False)


@pytest.fixture(scope="session")
def exported(student, labelled, tmp_path_factory):
    """Folder of that student as `moekd scan` loads it."""
    from moekd import console
    from moekd.export import export

    console.set_quiet(True)
    folder = tmp_path_factory.mktemp("exported")
    export(student, folder, data=labelled)
    console.set_quiet(False)
    return folder
