"""Settings of the smallest runs: 300 embedded functions, encoders of 1 layer x 32, an epoch or two."""

from __future__ import annotations

from pathlib import Path

from moekd.config import MoekdSettings


def settings(folder: Path | str = "runs", **sections) -> MoekdSettings:
    """`sections` go on top, setting by setting: `settings(mixture={"k": 3})`."""
    training = {"epochs": 1, "checkpoint_seconds": 0.05}
    tree = {
        "name": "micro",
        "data": {"sources": [{"kind": "embedded", "count": 300}]},
        "partition": {"min_samples": 5},
        "encoder": {"vocabulary": 400, "max_length": 64, "layers": 1, "hidden": 32, "heads": 2, "intermediate": 32},
        "teacher": {"training": {**training, "epochs": 2, "learning_rate": 1e-3}},
        "experts": {"training": training, "head_epochs": 3},
        "router": {"training": training},
        "student": {"shapes": ["compact-3mb"], "training": training},
        "evaluate": {"bootstrap": 100},
        "run": {"folder": str(folder), "threads": 1},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return MoekdSettings.model_validate(tree)
