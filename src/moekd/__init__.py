"""MoEKD: a vulnerability detector of under 3 MB, taught by a mixture of experts.

Names are loaded when they are asked for; importing the package changes no logging, seed or environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekd.classifier import Classifier
    from moekd.data import read_samples
    from moekd.distill.losses import soft_target_loss
    from moekd.errors import MoekdError
    from moekd.evaluate import measure
    from moekd.mixture import Mixture, fuse
    from moekd.records import Sample
    from moekd.settings_loading import load_settings
    from moekd.stages import run

_HOME = {
    "Classifier": "moekd.classifier",
    "Mixture": "moekd.mixture",
    "MoekdError": "moekd.errors",
    "Sample": "moekd.records",
    "measure": "moekd.evaluate",
    "fuse": "moekd.mixture",
    "load_settings": "moekd.settings_loading",
    "read_samples": "moekd.data",
    "run": "moekd.stages",
    "soft_target_loss": "moekd.distill.losses",
}

__all__ = [
    "Classifier",
    "Mixture",
    "MoekdError",
    "Sample",
    "fuse",
    "load_settings",
    "measure",
    "read_samples",
    "run",
    "soft_target_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
