"""Functions that thresholds are set by: of projects that neither the student nor its test knows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from moekd.records import Sample

_path = Path(__file__).parent.parent / "scripts" / "natural_functions.py"
_spec = importlib.util.spec_from_file_location("natural_functions", _path)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def sample(name: str, project: str | None, label: int = 0, family: str | None = None) -> Sample:
    return Sample(name, f"int {name};", label, "d", project=project, family=family)


PARTS = {
    "train_a": [sample("a", "curl")],
    "train_b": [sample("b", "mpv", family="players")],
    "valid": [sample("c", "zlib"), sample("d", "vlc", family="players"), sample("e", None)],
    "test": [sample("f", "git")],
}


def test_only_projects_of_the_validation_part_alone():
    """zlib is; vlc is a sister of a training project; a function without a project stands for itself."""
    everything = [sample("c", "zlib"), sample("g", "zlib", 1), sample("h", "vlc", 1, "players"), sample("i", None, 1)]
    everything += [sample("j", "curl", 1), sample("e", None)]
    assert [one.id for one in script.natural(everything, PARTS)] == ["c", "g", "e"]


def test_a_split_that_shares_projects_is_refused():
    parts = PARTS | {"valid": [sample("c", "curl")]}
    with pytest.raises(SystemExit, match=r"no vulnerable function of the 0 projects"):
        script.natural([sample("k", "curl", 1)], parts)
