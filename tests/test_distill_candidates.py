"""Candidates of a search: trained from soft targets, measured on validation, renamed for flips."""

from __future__ import annotations

import json

import numpy as np
import pytest
from micro import settings

from moekd import cli, stages
from moekd.cli import models
from moekd.config import MoekdSettings
from moekd.data import load_parts
from moekd.data.embedded import generate
from moekd.distill import candidates
from moekd.distill.targets import teacher_logits
from moekd.errors import DataError, SettingsError
from moekd.rewrite import Template, fault_of_renaming
from moekd.scorer import save_scores, scores_of
from moekd.stages import data_step
from moekd.steps import run_steps
from moekd.students.ledger import read_ledger
from moekd.students.space import Configuration


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Settings, and folders of data and of targets that know the labels."""
    folder = tmp_path_factory.mktemp("candidates")
    chosen = settings(folder / "runs", search={"points": 2, "epochs": 1})
    data = run_steps([data_step()], chosen)["data"]
    samples = load_parts(data)["train_b"]
    save_scores(folder / "targets.npz", scores_of(samples, np.array([[-s.label, s.label] for s in samples])))
    return chosen, {"data": data, "targets": folder}


def test_candidates_are_trained_once_and_measured(given, tmp_path, monkeypatch):
    """MORPH's measures are shares, the ledger is whole, checkpoints are gone, and a second call trains nothing."""
    chosen, inputs = given
    arguments = {"search": "morph", "budget_bytes": 200_000, "seed": 0}
    assert candidates.train_candidates(chosen, inputs, tmp_path, **arguments)["points"] == 2
    found = read_ledger(tmp_path / "points.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["points.jsonl"]
    for one in found:
        assert set(one.values) == {"accuracy", "flips"}
        assert all(0 <= value <= 1 for value in one.values.values())
        assert (one.configuration.tokenizer, one.configuration.position) == ("bpe", "absolute")
        assert one.configuration.reference_bytes() <= 200_000
    monkeypatch.setattr(candidates, "fit", None)
    candidates.train_candidates(chosen, inputs, tmp_path, **arguments)
    assert read_ledger(tmp_path / "points.jsonl") == found


def test_a_teacher_of_other_classes_is_refused(given, tmp_path):
    """Three classes against two: a clear error before any training, not a shape error in the first step."""
    samples = load_parts(given[1]["data"])["train_b"]
    save_scores(tmp_path / "targets.npz", scores_of(samples, np.zeros((len(samples), 3))))
    with pytest.raises(DataError, match=r"targets\.npz tells 3 classes apart, its student 2 \(not_vulnerable"):
        teacher_logits(tmp_path, samples)
    assert teacher_logits(given[1]["targets"], samples[:3]).shape == (3, 2)


def test_all_locals_get_names_of_other_functions():
    """Each renaming passes the check that proves it, and equal seeds rename alike."""
    samples = generate(30, 0)
    renamed = candidates.renamed_functions(samples[:10], samples[10:], seed=0)
    pool = {one.name for sample in samples[10:] for one in Template.of(sample.func).identifiers}
    changed = 0
    for sample, text in zip(samples[:10], renamed, strict=True):
        before, after = (Template.of(one).identifiers for one in (sample.func, text))
        if text != sample.func:
            changed += 1
            assert {one.name for one in after} <= pool
            renaming = dict(zip(names_by_place(before), names_by_place(after), strict=True))
            assert fault_of_renaming(Template.of(sample.func), renaming) is None
            assert all(old != new for old, new in renaming.items())
    assert changed >= 8
    assert renamed == candidates.renamed_functions(samples[:10], samples[10:], seed=0)


def names_by_place(found) -> list[str]:
    return [one.name for one in sorted(found, key=lambda one: one.spans[0])]


def test_nothing_is_trained_unless_asked(tmp_path, capsys):
    for points in (0, 9):  # nine would be trained for nothing
        with pytest.raises(SettingsError, match=rf"search\.points is {points}, .*set search\.points to 10 or more"):
            stages.candidates(settings(tmp_path, search={"points": points}), "avatar", 3_000_000)
    config = tmp_path / "c.toml"
    config.write_text('name = "x"\n[[data.sources]]\nkind = "embedded"\n')
    assert cli.main(["search", "avatar", "--config", str(config)]) == 2
    assert "search.points is 0" in capsys.readouterr().err


def test_a_search_from_a_config_to_its_pick(tmp_path, capsys, monkeypatch):
    """`moekd search avatar --config`: teacher side, ten candidates in two processes, surrogate, front and pick; the
    second call trains nothing and finds the same."""
    chosen = settings(
        tmp_path / "runs",
        data={"sources": [{"kind": "embedded", "count": 80}]},
        partition={"min_samples": 2},
        search={"points": 10, "epochs": 1, "workers": 2},
    )
    monkeypatch.setattr(models, "load_settings", lambda config, overrides: chosen)
    arguments = [
        "search",
        "avatar",
        "--config",
        "x.toml",
        "--budget",
        "150kB",
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["surrogates"]["accuracy"]["points"] == 10
    assert found["picked"]["configuration"]["position"] == "absolute"
    assert Configuration(**found["picked"]["configuration"]).reference_bytes() <= 150_000
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"front.png", "search.json"}
    (folder,) = (path for path in (tmp_path / "runs" / "candidates").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "points.jsonl"}
    monkeypatch.setattr(candidates, "evaluate_all", None)
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["picked"] == found["picked"]


def test_a_search_section_changes_no_stage_of_a_run():
    """Existing results stay fresh."""
    from moekd.steps import key_of

    one, other = settings(), settings(search={"points": 20, "epochs": 3})
    assert isinstance(other, MoekdSettings)
    for first, second in zip(stages.plan(one), stages.plan(other), strict=True):
        assert key_of(first, one) == key_of(second, other)
