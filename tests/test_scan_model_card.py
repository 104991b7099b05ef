"""The packaged student's card: made of the result files, and of nothing that belongs to another model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

_path = Path(__file__).parent.parent / "scripts" / "scan_model_card.py"
_spec = importlib.util.spec_from_file_location("scan_model_card", _path)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def results(**changes) -> dict:
    row = {"data": "d", "split": "project", "seed": 0, "system": "student-moe", "student": "s", "part": "test"}
    row |= {"metric": "f1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9} | changes
    return {"rows": [row], "provenance": {"commit": "a" * 40, "seeds": [0, 1]}}


def test_numbers_come_from_the_files(exported):
    facts = json.loads((exported / "model.json").read_text())
    text = script.card(facts, 1234, results(), ("student-moe", "s"), None)
    assert "| f1 | 0.500 | 0.400 to 0.600 |" in " ".join(text.split())
    assert "1,234 bytes" in text
    assert "split project, training seeds 0, 1" in text
    assert "it proves nothing" in text


def test_another_student_is_refused(exported):
    facts = json.loads((exported / "model.json").read_text())
    with pytest.raises(SystemExit, match="no rows of student-hard, s"):
        script.card(facts, 1, results(), ("student-hard", "s"), None)
    with pytest.raises(SystemExit, match="of another model"):
        script.card(facts, 1, results(), ("student-moe", "s"), {"model": {"digests": {}}})
