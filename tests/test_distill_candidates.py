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
from moekd.distill import candidates, published
from moekd.distill.targets import teacher_logits
from moekd.distill.variants import renamed_functions
from moekd.errors import DataError, SettingsError
from moekd.rewrite import Template, fault_of_renaming
from moekd.scorer import save_scores, scores_of
from moekd.stages import data_step
from moekd.stages.students import candidates_step
from moekd.steps import Step, run_steps
from moekd.students.ledger import read_ledger
from moekd.students.space import Configuration
from moekd.training import History


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Settings, and folders of data, of renamed functions, and of targets that know the labels."""
    folder = tmp_path_factory.mktemp("candidates")
    sources = [{"kind": "embedded", "count": 100}]
    chosen = settings(folder / "runs", data={"sources": sources}, search={"points": 2, "epochs": 1})
    data = run_steps([data_step()], chosen)["data"]
    samples = load_parts(data)["train_b"]
    save_scores(folder / "targets.npz", scores_of(samples, np.array([[-s.label, s.label] for s in samples])))
    published.rename(chosen, {"data": data}, folder, seed=0)
    return chosen, {"data": data} | dict.fromkeys(("targets", "renamed", "renamed-targets"), folder)


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
        assert one.configuration.position == "absolute"
        assert one.configuration.reference_bytes() <= 200_000
    monkeypatch.setattr(published, "fit", None)
    candidates.train_candidates(chosen, inputs, tmp_path, **arguments)
    assert read_ledger(tmp_path / "points.jsonl") == found


@pytest.mark.parametrize(
    ("search", "texts", "measures"), [("avatar", 1, {"accuracy"}), ("morph", 2, {"accuracy", "flips"})]
)
def test_candidates_of_a_published_search_are_trained_as_its_method_does(
    given, tmp_path, monkeypatch, search, texts, measures
):
    """Its own tokenizer without `<s>`, positions from noise, AdamW without decay, a full batch of the configuration at
    its rate; MORPH reads each function and its renamed variant. Only the epochs are the search's."""
    chosen, inputs = given
    seen = {}

    def fit(model, task, training, **others):
        seen.update(model=model, task=task, training=training)
        return History(measures=[0.5], best_epoch=0)

    monkeypatch.setattr(published, "fit", fit)
    one = Configuration(
        vocabulary=500,
        layers=1,
        hidden=16,
        heads=2,
        intermediate=32,
        max_length=300,
        tokenizer="wordpiece",
        activation="silu",
        learning_rate=5e-5,
        batch_size=32,
        hidden_dropout=0.3,
    )
    found = published.measure_published(one, search=search, settings=chosen, inputs=inputs, folder=tmp_path, seed=0)
    assert set(found) == measures
    training, tokens = seen["training"], seen["task"].tokens
    assert (training.epochs, training.learning_rate, training.batch_limit, training.weight_decay) == (1, 5e-5, 32, 0)
    assert training.token_budget == 32 * 300
    assert len(tokens) == texts * len(load_parts(inputs["data"])["train_b"])
    assert not set(tokens.flat.tolist()) & {0, 2}
    assert seen["task"].latest_of_equals
    config = seen["model"].config
    assert (config.hidden_act, config.hidden_dropout_prob, config.max_position_embeddings) == ("silu", 0.3, 302)


def test_each_search_learns_from_its_own_teacher():
    """A published method knows one teacher and no mixture, whose experts it need not wait for."""
    chosen = settings()
    data = data_step()
    teachers = {name: Step(name, "none:none") for name in ("teacher", "mixture")}
    needs = {
        search: candidates_step(chosen, data, search, 3_000_000, 0, teachers).needs
        for search in ("avatar", "morph", "moekd")
    }
    assert {search: one["targets"].stage for search, one in needs.items()} == {
        "avatar": "teacher",
        "morph": "teacher",
        "moekd": "mixture",
    }
    assert needs["morph"]["renamed-targets"].needs["teacher"] is teachers["teacher"]
    assert set(needs["avatar"]) == {"data", "targets"}


def test_every_kind_of_tokenizer_is_drawn(given, tmp_path, monkeypatch):
    """Of AVATAR's space all is drawn but relative positions."""
    asked = []
    monkeypatch.setattr(candidates, "evaluate_all", lambda chosen, *_, **__: asked.extend(chosen))
    many = settings(search={"points": 24})
    candidates.train_candidates(many, given[1], tmp_path, search="avatar", budget_bytes=3_000_000, seed=0)
    assert {one.tokenizer for one in asked} == {"bpe", "wordpiece", "unigram", "word"}
    assert {one.position for one in asked} == {"absolute"}


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
    renamed = renamed_functions(samples[:10], samples[10:], seed=0)
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
    assert renamed == renamed_functions(samples[:10], samples[10:], seed=0)


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


@pytest.mark.parametrize("search", ["avatar", "morph", "moekd"])
def test_a_budget_for_nothing_is_told_before_a_teacher_is_trained(tmp_path, monkeypatch, search):
    monkeypatch.setattr(stages, "run_steps", None)
    with pytest.raises(SettingsError, match=r"meets the size constraint .*<= 20,000 bytes.*Ask for --budget \d+"):
        stages.candidates(settings(tmp_path, search={"points": 10}), search, 20_000)


def test_a_budget_for_few_is_told_before_a_teacher_is_trained(tmp_path, monkeypatch):
    """The least budget for which there is a student leaves four of ours: no surrogate learns from so few."""
    monkeypatch.setattr(stages, "run_steps", None)
    with pytest.raises(SettingsError, match=r"of 10 different candidates .* only 4 .*ask for a larger --budget"):
        stages.candidates(settings(tmp_path, search={"points": 10}), "moekd", 114_868)


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
