"""The teacher's states, read once and kept: no student waits for a teacher."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import console, numerics
from moekd.classifier import Classifier
from moekd.data import load_parts
from moekd.distill.states import PLACES, States, read, token_places
from moekd.errors import DataError, SettingsError
from moekd.experts.encoder import load_tokenizer
from moekd.files import read_arrays, read_json, write_arrays
from moekd.mixture import expert_shares, load_table
from moekd.partition import load as load_groups
from moekd.scorer import rows_of
from moekd.tokens import Tokens, token_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moekd.config import MoekdSettings
    from moekd.records import Sample

STATES_FILE = "states.npz"
#: Of one teacher's states on disk; 10,000 functions of CodeBERT take 450 MB.
MAX_BYTES = 4_000_000_000


def collect(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, system: str, seed: int
) -> dict[str, Any]:
    """Stage: the states of one teacher for half B, in half precision, tied to the functions by id and digest.

    A mixture's are the mean of its selected experts' states, by the weights of its fusion, so k encoder passes a
    function. `shared` experts are heads on one encoder: the mixture's states are that encoder's.

    Args:
        inputs: `data`, `encoder`, and `model`, a folder with the teacher as `model/`; or, for a mixture of encoders,
            `partition`, `experts`, `scores` and `mixture`.
        system: the teacher's name; `ensemble` takes all experts alike.
    Raises:
        SettingsError: the states would take more than 4 GB.
    """
    numerics.configure(settings.run.threads)
    started = time.monotonic()
    samples = load_parts(inputs["data"])["train_b"]
    tokens = Tokens.load(inputs["encoder"] / "train_b.npz")
    places = token_places(
        load_tokenizer(inputs["encoder"]), [sample.func for sample in samples], settings.encoder.max_length
    )
    if "model" in inputs:
        shares, models = np.ones((len(samples), 1)), [inputs["model"] / "model"]
    else:
        shares, models = _experts(settings, inputs, samples, ensemble=system == "ensemble")
    bf16 = settings.experts.training.bf16 and "model" not in inputs
    stored: dict[str, np.ndarray] = {}
    with console.bar(len(models), f"states of {system}") as advance:
        for share, model in zip(shares.T, models, strict=True):
            _add_states(stored, model, tokens, places, share, bf16=bf16)
            advance(1)
    write_arrays(
        folder / STATES_FILE,
        {
            "ids": np.array([sample.id for sample in samples]),
            "digests": np.array([sample.digest for sample in samples]),
            "layers": stored["layers"].astype(np.float16),
            "places": stored["places"].astype(np.float16),
            "real": stored["real"],
        },
    )
    return {
        "rows": {
            "encoder_passes_per_sample": float((shares > 0).sum(1).mean()),
            "score_seconds": time.monotonic() - started,
        },
        "layers": stored["layers"].shape[1] - 1,
        "width": stored["layers"].shape[2],
        "bytes": (folder / STATES_FILE).stat().st_size,
    }


def teacher_states(folder: Path, samples: Sequence[Sample]) -> States:
    """States of the samples in their order, half precision, from the folder of a `collect` stage.

    Raises:
        DataError: the folder holds no states, or a sample is missing or was read with another text.
    """
    import torch

    path = folder / STATES_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {STATES_FILE}: this teacher has no hidden states to learn from")
    stored = read_arrays(path)
    rows = rows_of(stored["ids"].tolist(), stored["digests"].tolist(), samples, source=str(path))
    return States(*(torch.from_numpy(stored[name][rows]) for name in ("layers", "places", "real")))


def _experts(
    settings: MoekdSettings, inputs: Mapping[str, Path], samples: Sequence[Sample], *, ensemble: bool
) -> tuple[np.ndarray, list[Path]]:
    """Share of each expert in each function's state, (samples, K), and the experts' folders."""
    names = load_groups(inputs["partition"]).names
    router, experts = load_table(inputs["scores"]).rows(samples)
    if ensemble:
        shares = np.full(router.shape, 1 / len(names))
    else:
        known = read_json(inputs["mixture"] / "manifest.json")["facts"]["temperatures"]
        temperatures = np.array([known[name] for name in names])
        wanted = settings.mixture
        shares = expert_shares(
            router, experts / temperatures[:, None], k=wanted.k, weights=wanted.weights, fusion=wanted.fusion
        )
    return shares, [inputs["experts"] / f"expert-{name}" for name in names]


def _add_states(
    stored: dict[str, np.ndarray], folder: Path, tokens: Tokens, places: Tokens, share: np.ndarray, *, bf16: bool
) -> None:
    """Add one model's states to the sums, each times the model's share, (texts,); texts of share 0 are not read."""
    import torch

    asked = np.flatnonzero(share)
    if not len(asked):
        return
    classifier = Classifier.from_pretrained(folder)
    with torch.inference_mode(), numerics.autocast(bf16):
        for batch in token_batches(tokens.lengths[asked], budget=4096, limit=128):
            rows = asked[batch]
            _, states = read(classifier.model, tokens, places, rows, classifier.tokenizer.pad_token_id)
            if not stored:
                _allocate(stored, len(tokens), states)
            weight = share[rows, None, None].astype(np.float32)
            stored["layers"][rows] += weight * states.layers.cpu().numpy()
            stored["places"][rows] += weight * states.places.cpu().numpy()
            stored["real"][rows] = states.real.cpu().numpy()


def _allocate(stored: dict[str, np.ndarray], count: int, like: States) -> None:
    layers, width = like.layers.shape[1:]
    wanted = 2 * count * width * (layers + PLACES)
    if wanted > MAX_BYTES:
        raise SettingsError(
            f"the teacher's states of {count:,} functions would take {wanted / 1e9:.1f} GB; the limit is "
            f"{MAX_BYTES / 1e9:g} GB. Set data.limit, choose a smaller encoder, or leave distill.features out"
        )
    stored["layers"] = np.zeros((count, layers, width), dtype=np.float32)
    stored["places"] = np.zeros((count, PLACES, width), dtype=np.float32)
    stored["real"] = np.zeros((count, PLACES), dtype=bool)
