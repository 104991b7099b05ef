"""The short form of scripts/fuzz_scan.py: a few hundred made-up inputs for each reader and writer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzz_scan", Path(__file__).parent.parent / "scripts" / "fuzz_scan.py")
fuzz_scan = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_scan)


@pytest.mark.parametrize("name", fuzz_scan.TARGETS)
def test_no_crash_and_no_hang(name):
    assert fuzz_scan.fuzz(name, 200) >= 100


def test_a_crash_would_be_seen(monkeypatch):
    """The harness itself lets a failure through."""

    def broken(text):
        assert "+++" not in text

    strategies = fuzz_scan.TARGETS["diffs"][1]
    monkeypatch.setitem(fuzz_scan.TARGETS, "diffs", (broken, strategies))
    with pytest.raises(AssertionError):
        fuzz_scan.fuzz("diffs", 500)
