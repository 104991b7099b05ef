"""Attacks from the command line and as stages of a run."""

from __future__ import annotations

import json
import time

import interrupting
import numpy as np
import pytest
import torch
from micro import settings
from transformers import RobertaConfig, RobertaForMaskedLM

from moekd import cli, console, stages
from moekd.attack import Names, read_results, runner, stage, substitutes
from moekd.classifier import Classifier
from moekd.config import ATTACK_READS, Attack
from moekd.data.leaks import BagOfTokens
from moekd.records import Sample
from moekd.rewrite import Template
from moekd.steps import key_of, read_manifest, run_steps


@pytest.fixture(autouse=True)
def loud():
    yield
    console.set_quiet(False)


@pytest.fixture
def data(functions, tmp_path):
    path = tmp_path / "functions.jsonl"
    lines = [json.dumps({"func": one.func, "label": one.label}) for one in functions[:60]]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def model(functions, tmp_path):
    """The bag of tokens: learned in a moment, and easily fooled."""
    (tmp_path / "bag").mkdir()
    BagOfTokens.fit(functions, 10.0).save(tmp_path / "bag")
    return tmp_path / "bag"


def moekd(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


# -------------------------------------------------------------------------------------------- command line


def test_command_prints_a_table_and_the_file(model, data, tmp_path, capsys):
    """Each attack has a row; the file holds a result for each function and attack; a success is no error."""
    out = tmp_path / "a.jsonl"
    arguments = ("attack", model, "--data", data, "--samples", 12, "--budget", 60, "--out", out)
    assert moekd(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| mhm", "| wir-random"]
    assert lines[-1] == str(out)
    results = read_results(out)
    assert len(results) == 24
    assert max(one.queries for one in results) <= 60
    assert {one.outcome for one in results} >= {"fooled"}
    content = out.read_bytes()
    out.write_bytes(content[: len(content) // 2])
    assert moekd(*arguments, "--quiet") == 0
    assert out.read_bytes() == content


def test_command_as_json(model, data, tmp_path, capsys):
    out = tmp_path / "a.jsonl"
    code = moekd(
        "attack", model, "--data", data, "--samples", 4, "--attack", "mhm", "--budget", 1, "--out", out, "--json", "-q"
    )
    assert code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["attacks"]["mhm"]["measures"]["asr"]["value"] == 0.0
    assert shown["attacks"]["mhm"]["measures"]["queries_fooled"]["value"] is None
    assert shown["attacks"]["mhm"]["counts"]["withstood: budget spent"] > 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--attack", "mmh"], 2, "did you mean `mhm`?"),
        (["--attack", "alert", "--masked-lm", "nowhere"], 2, "attack.masked_lm = 'nowhere' could not be loaded"),
        (["--budget", "-1"], 2, "`budget` is -1"),
        (["--samples", "0"], 2, "`samples` is 0"),
    ],
)
def test_wrong_options(options, code, message, model, data, tmp_path, capsys):
    assert moekd("attack", model, "--data", data, "--out", tmp_path / "a.jsonl", *options) == code
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_the_attacks_and_their_processes(model, data, tmp_path):
    """Exit code 130, one line on stderr, no process left; the file holds what was found."""
    out = tmp_path / "a.jsonl"
    options = ["--data", str(data), "--out", str(out), "--budget", "400", "--quiet"]
    process = interrupting.start("attack", str(model), *options)
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    interrupting.interrupt(process, within=10)
    assert read_results(out)


def test_exit_codes_of_bad_input(model, data, tmp_path, capsys):
    """No model: usage. No data: bad input. A file of other work: usage, and it is left as it was."""
    out = tmp_path / "a.jsonl"
    assert moekd("attack", tmp_path, "--data", data, "--out", out) == 2
    assert moekd("attack", model, "--data", tmp_path / "none.jsonl", "--out", out) == 5
    assert moekd("attack", model, "--data", data, "--samples", 2, "--budget", 2, "--out", out, "-q") == 0
    content = out.read_bytes()
    assert moekd("attack", model, "--data", data, "--samples", 2, "--budget", 3, "--out", out) == 2
    assert "holds results of other work (its settings differ)" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_functions_that_cannot_be_used_are_told(model, data, tmp_path, capsys):
    """What reading leaves out has no result, so how many and why is said."""
    with data.open("a") as stream:
        stream.write(json.dumps({"func": "int f(", "label": 1}) + "\n")
    assert moekd("attack", model, "--data", data, "--samples", 1, "--budget", 1, "--out", tmp_path / "a.jsonl") == 0
    assert "60 of 61 functions can be used; left out: 1 shorter than 30 characters" in capsys.readouterr().err


def test_samples_are_drawn_by_seed(functions):
    """The same functions for every model; another seed draws others; all where there are too few."""
    first, again = (stage.attacked_samples(functions, Attack(samples=10)) for _ in range(2))
    assert first == again
    assert len(first) == 10
    assert stage.attacked_samples(functions, Attack(samples=10, seed=1)) != first
    assert stage.attacked_samples(functions[:5], Attack(samples=10)) == list(functions[:5])


# --------------------------------------------------------------------------------------------------- stages


def labels_of(chosen) -> set[str]:
    return {step.label for step in stages.plan(chosen)}


def test_plan_with_attacks():
    """Bag of tokens once, teacher, mixture and students of each seed; nothing unless asked for."""
    plain = settings(run={"seeds": [0, 1]}, student={"systems": ["moe"]})
    asked = settings(run={"seeds": [0, 1]}, student={"systems": ["moe"]}, attack={"attacks": ["mhm"]})
    assert labels_of(asked) - labels_of(plain) == {
        "attack[mhm, bag-of-tokens]",
        *(f"attack[mhm, {name}, seed {seed}]" for name in ("teacher", "mixture") for seed in (0, 1)),
        *(f"attack[mhm, student-moe, compact-3mb, seed {seed}]" for seed in (0, 1)),
        *(f"transfer[seed {seed}]" for seed in (0, 1)),
    }
    assert not [label for label in labels_of(plain) if label.startswith("attack")]


def test_attacks_change_no_other_key():
    """What was computed before attacks were asked for is reused; so are attacks when a system or an attack is added."""
    found = [{}]
    for attack in (
        {},
        {"attacks": ["mhm"], "systems": ["teacher"]},
        {"attacks": ["mhm"]},
        {"attacks": ["alert", "mhm"], "context": 64, "genetic": False},
    ):
        chosen = settings(attack=attack)
        keys = {step.label: key_of(step, chosen) for step in stages.plan(chosen)[:-1] if step.stage != "transfer"}
        assert keys.items() >= found[-1].items()
        found.append(keys)
    assert "attack[alert, mixture, seed 0]" in found[-1]


@pytest.mark.parametrize("name", ATTACK_READS)
def test_settings_that_an_attack_reads(name, functions):
    """Those of its key and no others; the stage itself reads samples, precision and the size of the vocabulary."""
    read = set()

    class Noting(Attack):
        def __getattribute__(self, setting):
            if setting in Attack.model_fields:
                read.add(setting)
            return super().__getattribute__(setting)

    stubborn = [Sample(one.id, one.func, 1, "toy") for one in functions[:2]]
    names = Names(("p", "q", "total"), lambda one: {own.name: ["p", "q"] for own in Template.of(one.func).identifiers})
    results = runner.attack(
        lambda texts: np.array([0.9 - len(text) % 7 / 100 for text in texts]),
        stubborn,
        Noting(attacks=(name,), iterations=3, generations=1, children=3),
        names,
    )
    assert {one.outcome for one in results} == {"withstood"}
    assert read - {"attacks"} == set(ATTACK_READS[name]) - {"samples", "bf16", "vocabulary"}


def test_a_mixture_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match='leave "mixture" out'):
        settings(experts={"mode": "shared"}, attack={"attacks": ["mhm"]})
    settings(experts={"mode": "shared"}, attack={"attacks": ["mhm"], "systems": ["teacher", "students"]})


@pytest.fixture(scope="module")
def language_model(tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **shape)
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_substitutes_are_shared_by_models(language_model, model, data, tmp_path, monkeypatch):
    """A second model attacked in the same folder needs no language model any more; other settings have another file."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "bag-of-tokens.npz").write_bytes((model / "bag-of-tokens.npz").read_bytes())
    options = ("--data", data, "--samples", 3, "--budget", 9, "--attack", "alert", "--masked-lm", language_model, "-q")
    assert moekd("attack", model, *options, "--out", tmp_path / "a.jsonl") == 0
    monkeypatch.setattr(substitutes, "_propose", None)
    assert moekd("attack", other, *options, "--out", tmp_path / "b.jsonl") == 0
    assert len(list(tmp_path.glob("substitutes-*.jsonl"))) == 1
    assert read_results(tmp_path / "a.jsonl") == read_results(tmp_path / "b.jsonl")


def test_a_run_with_attacks(language_model, tmp_path):
    """Teacher, bag of tokens and two students in one run: rows and comparisons in the table, all on equal functions."""
    chosen = settings(
        tmp_path / "runs",
        experts={"mode": "shared"},
        student={"systems": ["moe", "single"]},
        attack={
            "attacks": ["alert", "mhm"],
            "systems": ["bag-of-tokens", "teacher", "students"],
            "samples": 8,
            "budget": 40,
            "masked_lm": language_model,
            "ranks": 5,
            "candidates": 5,
        },
    )
    folder = stages.run(chosen)
    found = json.loads((folder / "results.json").read_text())
    rows = [row for row in found["rows"] if row["part"].startswith("attack/")]
    systems = {"bag-of-tokens", "teacher", "student-moe", "student-single"}
    assert {(row["part"], row["system"]) for row in rows} == {
        (f"attack/{name}", system) for name in ("alert", "mhm") for system in systems
    }
    assert all(row["n"] == 8 for row in rows if row["metric"] == "accuracy")
    assert {(one["first"], one["second"]) for one in found["comparisons"] if one["part"] == "attack/mhm"} <= {
        ("student-moe", "student-single"),
        ("student-moe", "bag-of-tokens"),
        ("teacher", "bag-of-tokens"),
    }
    table = (folder / "results.md").read_text()
    assert "## Under attack" in table
    assert "## Paired comparisons under attack" in table
    assert "## Validity of the attacks" in table
    assert {(one["system"], one["part"]) for one in found["validity"]} == {
        (system, f"attack/{name}") for name in ("alert", "mhm") for system in systems
    }
    assert len(found["transfer"]) == 2 * 4 * 3  # two attacks, each model's texts scored by the three others
    assert all(one["n"] or one["value"] is None for one in found["transfer"])
    assert "## Transfer of adversarial functions, mhm" in table
    folders = run_steps(stages.plan(chosen), chosen)
    ids = [
        tuple(one.id for one in read_results(path / "results.jsonl"))
        for label, path in folders.items()
        if label.startswith("attack[")
    ]
    assert len(ids) == 2 * 4
    assert len(set(ids)) == 1
    outcomes = read_manifest(folders["attack[mhm, teacher, seed 0]"])["facts"]["outcomes"]
    assert sum(outcomes[name] for name in outcomes if ":" not in name) == 8


def test_bag_of_tokens_is_the_baseline(tmp_path):
    """Fitted again for the attack, it answers as the baseline's predictions have it."""
    from moekd.data import load_parts
    from moekd.scorer import aligned, load_scores

    chosen = settings(tmp_path / "runs")
    data = stages.data_step()
    step = stages._baseline(data, "bag-of-tokens")
    folders = run_steps([data, step], chosen)
    parts = load_parts(folders["data"])
    victim = stage._bag_of_tokens(folders[step.label], [*parts["train_a"], *parts["train_b"]])
    wanted = aligned(load_scores(folders[step.label] / "predictions.npz"), parts["test"])
    p = 1 / (1 + np.exp(-wanted[:, 1].astype(float)))
    np.testing.assert_allclose(victim([one.func for one in parts["test"]]), p, atol=1e-5)


def test_help_of_the_command_needs_no_model_library(capsys):
    assert moekd("attack", "--help") == 0
    assert "--budget" in capsys.readouterr().out


def test_classifier_folder_from_the_command_line(make_model, tokenizer, data, tmp_path):
    Classifier(make_model().eval(), tokenizer, 64).save_pretrained(tmp_path / "classifier")
    out = tmp_path / "a.jsonl"
    assert (
        moekd("attack", tmp_path / "classifier", "--data", data, "--samples", 3, "--budget", 9, "--out", out, "-q") == 0
    )
    assert len(read_results(out)) == 6
