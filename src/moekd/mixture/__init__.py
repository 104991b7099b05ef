"""Stage 4: fusion of the experts' outputs into one teacher.

`score` asks every expert once and keeps the answers in a `table`; `fusion` turns answers into one teacher's logits;
`model` is router and experts as one thing to save, load and ask.
"""

from moekd.mixture.fusion import (
    calibration_temperatures,
    expert_shares,
    fuse,
    log_softmax,
    plain_ensemble,
    selected_weights,
    top_k,
)
from moekd.mixture.model import Mixture
from moekd.mixture.table import Table, fuse_table, load_table, save_table

__all__ = [
    "Mixture",
    "Table",
    "calibration_temperatures",
    "expert_shares",
    "fuse",
    "fuse_table",
    "load_table",
    "log_softmax",
    "plain_ensemble",
    "save_table",
    "selected_weights",
    "top_k",
]
