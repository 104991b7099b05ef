"""Every expert's answers, once, in one table on disk: fusion, k and temperature are then free to change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.classifier import Classifier, predict
from moekd.experts.corpus import ANSWERED, Corpus
from moekd.experts.shared import load_features, score_heads
from moekd.files import read_arrays, write_arrays
from moekd.mixture.fusion import top_k
from moekd.mixture.table import Table, save_table
from moekd.partition import load as load_groups
from moekd.scorer import aligned, load_scores
from moekd.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.records import Sample


def score_experts(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, partition: str, seed: int
) -> dict[str, Any]:
    """Stage: fill the score table of half B, validation and test.

    Args:
        inputs: `data`, `encoder`, `partition`, `experts`, and `router` or, in `shared` mode, `shared`: a folder with
            the router's logits.
    Returns:
        Seconds, and encoder passes a sample: 1 + K for a complete table, 1 + k for one of selected experts only, one
        less each with a router that is no encoder; 1 in `shared` mode, where the heads work on the features that the
        shared encoder's one pass left.
    """
    numerics.configure(settings.run.threads)
    started = time.monotonic()
    corpus = Corpus.load(inputs)
    names = load_groups(inputs["partition"]).names
    samples = [sample for part in ANSWERED for sample in corpus.samples[part]]
    shared = settings.experts.mode == "shared"
    router = _router_logits(inputs["shared" if shared else "router"], samples)
    if shared:
        values = np.concatenate([load_features(inputs["shared"], part) for part in ANSWERED])
        experts = score_heads(inputs["experts"], values)
        passes = 1.0
    else:
        experts = _ask_experts(settings, inputs["experts"], folder, corpus, names, router)
        passes = (settings.router.model == "encoder") + float(np.isfinite(experts[:, :, 0]).sum(1).mean())
    parts = tuple(part for part in ANSWERED for _ in corpus.samples[part])
    digests = tuple(sample.digest for sample in samples)
    save_table(folder, Table(tuple(s.id for s in samples), digests, parts, router, experts))
    return {"rows": {"encoder_passes_per_sample": passes, "score_seconds": time.monotonic() - started}}


def _router_logits(folder: Path, samples: list[Sample]) -> np.ndarray:
    targets, judged = (load_scores(folder / name) for name in ("targets.npz", "predictions.npz"))
    half_b = set(targets.ids)
    return np.concatenate(
        [
            aligned(targets, [s for s in samples if s.id in half_b], source=str(folder.name)),
            aligned(judged, [s for s in samples if s.id not in half_b], source=str(folder.name)),
        ]
    )


def _ask_experts(
    settings: MoekdSettings,
    experts: Path,
    folder: Path,
    corpus: Corpus,
    names: tuple[str, ...],
    router: np.ndarray,
) -> np.ndarray:
    """Logits of the experts, (samples, K, 2); NaN where the table needs no answer."""
    tokens = Tokens.of(
        corpus.tokens[part].flat[start:end]
        for part in ANSWERED
        for start, end in zip(corpus.tokens[part].offsets[:-1], corpus.tokens[part].offsets[1:], strict=True)
    )
    asked = np.ones(router.shape, dtype=bool)
    if settings.mixture.table == "selected":
        asked[:] = False
        np.put_along_axis(asked, top_k(router, settings.mixture.k), True, axis=1)
    table = np.full((*router.shape, 2), np.nan, dtype=np.float32)
    bf16 = settings.experts.training.bf16
    with console.bar(len(names), "scores of the experts") as advance:
        for index, name in enumerate(names):
            rows = np.flatnonzero(asked[:, index])
            answered = folder / f"expert-{name}.npz"  # so that a killed run does not ask again
            if len(rows) and not answered.exists():
                model = Classifier.from_pretrained(experts / f"expert-{name}").model
                logits = predict(model, tokens.take(rows), pad_id=corpus.pad_id, bf16=bf16)
                write_arrays(answered, {"logits": logits})
            if len(rows):
                table[rows, index] = read_arrays(answered)["logits"]
            advance(1)
    for name in names:
        (folder / f"expert-{name}.npz").unlink(missing_ok=True)
    return table
