"""Router and experts as one model with the habits of Hugging Face."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from moekd.errors import DataError
from moekd.files import read_json, sha256_file, sha256_text, write_json, writing
from moekd.mixture.fusion import Fusion, Weights, fuse, top_k
from moekd.partition import load as load_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.records import Scorer

_CONFIG = "moe.json"
_ROUTER = "router"


@runtime_checkable
class SavedScorer(Protocol):
    """A scorer that can write itself into a folder, as `moekd.classifier.Classifier` does."""

    def logits(self, texts: Sequence[str]) -> np.ndarray: ...

    def save_pretrained(self, folder: str | Path) -> None: ...


class Mixture:
    """Router and experts as one model: texts in, fused logits out; 1 + k encoder passes a text.

    Attributes:
        router: logits over groups, (texts, K).
        experts: one scorer of two classes for each group.
        groups: their names, in the order of the router's classes; also the names of the experts' folders.
        k, weights, fusion: see `fuse`.
        temperatures: calibration, one positive number an expert; 1.0 leaves its logits as they are.
    """

    def __init__(
        self,
        router: Scorer,
        experts: Sequence[Scorer],
        *,
        groups: Sequence[str],
        k: int,
        weights: Weights = "renormalised",
        fusion: Fusion = "logits",
        temperatures: Sequence[float] | None = None,
    ) -> None:
        self.router = router
        self.experts = tuple(experts)
        self.groups = tuple(groups)
        self.k = k
        self.weights: Weights = weights
        self.fusion: Fusion = fusion
        self.temperatures = tuple(temperatures or (1.0,) * len(self.groups))
        if not len(self.experts) == len(self.groups) == len(self.temperatures):
            raise ValueError(
                f"{len(self.experts)} experts, {len(self.groups)} groups and {len(self.temperatures)} "
                "temperatures: there must be one of each for every group"
            )

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, 2), in the order of the texts; only the selected experts are asked.

        Raises SettingsError if k is larger than the number of experts.
        """
        return self.fused(len(texts), lambda scorer, rows: scorer.logits([texts[row] for row in rows]))

    def fused(self, count: int, ask: Callable[[Scorer, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the fused logits of `count` texts, whatever they are, of which `ask` tells a scorer's for some."""
        router = ask(self.router, np.arange(count))
        selected = top_k(router, self.k)
        answers = np.full((*router.shape, 2), np.nan)
        for index, expert in enumerate(self.experts):
            rows = np.flatnonzero((selected == index).any(axis=1))
            if len(rows):
                answers[rows, index] = ask(expert, rows) / self.temperatures[index]
        fused = fuse(router, answers, k=self.k, weights=self.weights, fusion=self.fusion)
        return fused.astype(np.float32)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `moe.json`, `router/` and one sub-folder an expert; `moe.json` comes last.

        Raises ValueError if a group's name cannot be a folder or a scorer cannot save itself.
        """
        folder = Path(folder)
        scorers = dict(zip((_ROUTER, *self.groups), (self.router, *self.experts), strict=True))
        for name in self.groups:
            if name == _ROUTER or Path(name).name != name:
                raise ValueError(f"the group name {name!r} cannot be the name of an expert's folder")
        for name, scorer in scorers.items():
            if not isinstance(scorer, SavedScorer):
                raise ValueError(f"{name!r} is a {type(scorer).__name__}, which has no save_pretrained")
            scorer.save_pretrained(folder / name)
        _write_config(
            folder,
            groups=self.groups,
            k=self.k,
            weights=self.weights,
            fusion=self.fusion,
            temperatures=self.temperatures,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Mixture:
        """Load what `save_pretrained` wrote.

        Raises DataError if `moe.json` is missing or a sub-folder is not the one that was saved.
        """
        from moekd.classifier import Classifier

        folder = Path(folder)
        if not (folder / _CONFIG).is_file():
            raise DataError(f"{folder} is no saved mixture: it has no {_CONFIG}")
        stored = read_json(folder / _CONFIG)
        for name, digest in stored.pop("digests").items():
            if _digest_of(folder / name) != digest:
                raise DataError(
                    f"{folder / name} is not what was saved with this mixture: its files differ from the "
                    f"digest in {_CONFIG}; copy the whole folder again or save the mixture again"
                )
        router, *experts = (Classifier.from_pretrained(folder / name) for name in (_ROUTER, *stored["groups"]))
        return cls(router, experts, **stored)


def save_mixture(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, seed: int) -> dict[str, Any]:
    """Stage: router and experts of a run as one saved mixture, `model/`, to be loaded by `Mixture.from_pretrained`.

    The weights are hard links where the file system has them, so that ten experts are not stored twice.

    Args:
        inputs: `partition`, `router`, `experts` in `full` mode, and `mixture` for the temperatures.
    """
    groups = load_groups(inputs["partition"]).names
    model = folder / "model"
    _link(inputs["router"] / "model", model / _ROUTER)
    for name in groups:
        _link(inputs["experts"] / f"expert-{name}", model / name)
    temperatures = read_json(inputs["mixture"] / "manifest.json")["facts"]["temperatures"]
    wanted = settings.mixture
    _write_config(
        model,
        groups=groups,
        k=wanted.k,
        weights=wanted.weights,
        fusion=wanted.fusion,
        temperatures=[temperatures[name] for name in groups],
    )
    return {"experts": len(groups)}


def _link(source: Path, target: Path) -> None:
    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # another file system, or one without links
            shutil.copyfile(one, other)

    with writing(target):
        shutil.rmtree(target, ignore_errors=True)  # of a killed attempt
        shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns("history.json"))


def _write_config(folder: Path, *, groups: Sequence[str], temperatures: Sequence[float], **settings: Any) -> None:
    """Write `moe.json`, last, with the digests of the sub-folders it belongs to."""
    digests = {name: _digest_of(folder / name) for name in (_ROUTER, *groups)}
    write_json(
        folder / _CONFIG,
        {"groups": list(groups), **settings, "temperatures": list(temperatures), "digests": digests},
    )


def _digest_of(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_text("\n".join(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files))
