"""The student's second answer: a linear head that learns the router, and what scan and export make of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from micro import settings
from pydantic import ValidationError

from moekd import cli
from moekd.classifier import Classifier
from moekd.distill.group_head import GroupHead, divergence, fit_head, pooled_layer, pooled_states
from moekd.errors import SettingsError
from moekd.export import export
from moekd.files import sha256_file
from moekd.scan.model import ScanModel
from moekd.stages import plan
from moekd.steps import key_of, read_manifest, run_steps


def test_a_router_that_is_a_linear_function_is_learned():
    """Targets made by a linear head: with a tiny penalty the divergence falls to nearly nothing."""
    rng = np.random.default_rng(0)
    states = rng.normal(3.0, 2.0, (400, 5)).astype(np.float32)
    logits = states @ rng.normal(size=(5, 3))
    targets = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    head = fit_head(states, targets, ("a", "b", "c"), penalty=1e-7)
    assert divergence(targets, head.logits(states)) < 1e-3
    assert divergence(targets, np.log(targets.mean(0, keepdims=True))) > 0.3


def test_a_strong_penalty_leaves_the_mean():
    """With no weight left, the best bias answers the mean of the targets."""
    targets = np.array([[0.5, 0.5], [0.9, 0.1]])
    head = fit_head(np.array([[1.0], [-1.0]], dtype=np.float32), targets, ("a", "b"), penalty=1e6)
    powers = np.exp(head.logits(np.zeros((1, 1), dtype=np.float32))[0])
    np.testing.assert_allclose(powers / powers.sum(), [0.7, 0.3], atol=1e-4)


def test_divergence_by_hand():
    """Targets (3/4, 1/4) against even odds: 0.75 ln 1.5 + 0.25 ln 0.5 nats."""
    assert divergence(np.array([[0.75, 0.25]]), np.zeros((1, 2))) == pytest.approx(0.130812, abs=1e-6)


def test_leaving_a_group_out_renormalises_the_others():
    head = GroupHead(("a", "unknown", "b"), np.zeros((3, 1), dtype=np.float32), np.log([0.2, 0.7, 0.1]))
    powers = np.exp(head.without("unknown").logits(np.zeros((1, 1))))
    np.testing.assert_allclose(powers / powers.sum(), [[2 / 3, 1 / 3]])
    assert head.without("unknown").names == ("a", "b")


def test_pooled_states_are_what_the_head_reads(make_model, tokenizer, functions):
    """Through the rest of the head they give the student's own logits."""
    model = make_model().eval()
    tokens = Classifier(model, tokenizer, 64).encode([one.func for one in functions[:7]])
    states = pooled_states(model, tokens, pad_id=tokenizer.pad_token_id)
    with torch.no_grad():
        rest = model.classifier.out_proj(torch.tanh(model.classifier.dense(torch.from_numpy(states))))
    found = Classifier(model, tokenizer, 64).logits([one.func for one in functions[:7]])
    np.testing.assert_allclose(rest.numpy(), found, atol=1e-5)


def test_a_model_without_a_pooled_state_is_refused():
    with pytest.raises(SettingsError, match="Linear has no pooled state"):
        pooled_layer(torch.nn.Linear(2, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A micro run with a group head: folders of the steps by stage."""
    wanted = settings(tmp_path_factory.mktemp("runs"), student={"group_head": True, "systems": ["moe"]})
    heads = [step for step in plan(wanted) if step.stage == "group-head"]
    folders = run_steps(heads, wanted)
    (head,) = heads
    return {"head": folders[head.label], "student": folders[head.needs["student"].label], "settings": wanted}


def test_the_head_changes_nothing_of_the_student(run):
    """The student's step has the key and the files that it has in a run without heads."""
    without = run["settings"].model_copy(
        update={"student": run["settings"].student.model_copy(update={"group_head": False})}
    )
    (student,) = [step for step in plan(without) if step.stage == "student"]
    assert key_of(student, without) == run["student"].name
    manifest = read_manifest(run["student"])
    weights = manifest["files"]["model/model.safetensors"]["sha256"]
    assert weights == sha256_file(run["student"] / "model" / "model.safetensors")
    assert not [step for step in plan(without) if step.stage == "group-head"]


def test_the_head_is_nearer_to_the_router_than_its_mean(run):
    measures = read_manifest(run["head"])["facts"]["measures"]
    assert set(measures) == {"train_b", "valid", "test"}
    assert measures["train_b"]["nats"] <= measures["train_b"]["nats_of_mean"] + 1e-6
    assert all(one["vulnerable_with_group"] <= one["functions"] for one in measures.values())


@pytest.fixture(scope="module")
def with_groups(run, labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("with-groups")
    export(run["student"] / "model", folder, data=labelled, min_agreement=0.5)
    return folder


def test_export_takes_the_head_of_the_run(run, with_groups, functions):
    """The exported groups are the head's on the student's pooled states; `unknown` is left out, the logits stay."""
    head = GroupHead.load(run["head"])
    known = [index for index, name in enumerate(head.names) if name != "unknown"]
    model = ScanModel.load(with_groups)
    assert model.facts.groups == tuple(head.names[index] for index in known)
    classifier = Classifier.from_pretrained(run["student"] / "model")
    texts = [one.func for one in functions[:12]]
    states = pooled_states(classifier.model, classifier.encode(texts), pad_id=classifier.tokenizer.pad_token_id)
    powers = np.exp(head.logits(states)[:, known].astype(np.float64))
    p = powers / powers.sum(axis=1, keepdims=True)
    answers = [model.answer(text) for text in texts]
    np.testing.assert_allclose([one.p_group for one in answers], p.max(axis=1), atol=1e-4)
    assert [one.group for one in answers] == p.argmax(axis=1).tolist()
    np.testing.assert_allclose(model.logits(texts), classifier.logits(texts), atol=1e-4)


def test_a_student_outside_its_run_has_no_groups(run, labelled, tmp_path):
    shutil.copytree(run["student"] / "model", tmp_path / "student")
    assert export(tmp_path / "student", tmp_path / "out", data=labelled, min_agreement=0.5)["cwe_groups"] == []


def test_scan_tells_the_kind_in_every_report(with_groups, functions, tmp_path, monkeypatch, capsys):
    """Group with probability in text, JSON and SARIF, where rule, tags and taxonomy carry it; twice, from the cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.c").write_text("\n".join(one.func for one in functions[:8]))
    shutil.copytree(with_groups, tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    facts["cwe_groups"] = [f"CWE-{600 + index}" for index in range(len(facts["cwe_groups"]))]  # no "other" among them
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    scan = ["scan", "a.c", "--model", "model", "--top", "3", "-q", "--cache", "cache", "--workers", "1"]
    reports = []
    for _ in range(2):
        assert cli.main([*scan, "--format", "json"]) == 0
        reports.append(json.loads(capsys.readouterr().out)["findings"])
    assert reports[0] == reports[1]
    assert all(one["cwe_group"].startswith("CWE-6") and 0 < one["p_group"] <= 1 for one in reports[0])
    assert cli.main([*scan, "--format", "text"]) == 0
    first = reports[0][0]
    assert f"{first['cwe_group']} ({first['p_group']:.2f})" in capsys.readouterr().out
    assert cli.main([*scan, "--format", "sarif"]) == 0
    log = json.loads(capsys.readouterr().out)["runs"][0]
    rule = log["tool"]["driver"]["rules"][log["results"][0]["ruleIndex"]]
    assert f"external/cwe/{first['cwe_group'].lower()}" in rule["properties"]["tags"]
    assert log["results"][0]["properties"]["pGroup"] == pytest.approx(first["p_group"])


def test_other_is_no_kind(with_groups, functions, tmp_path, monkeypatch, capsys):
    """A function whose most probable group is `other` is reported without a CWE."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.c").write_text(functions[0].func)
    shutil.copytree(with_groups, tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    facts["cwe_groups"] = ["other"] * len(facts["cwe_groups"])
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    assert cli.main(["scan", "a.c", "--model", "model", "--top", "1", "-q", "--no-cache", "--format", "json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["cwe_group"], finding["p_group"]) == (None, None)


def test_groups_of_clusters_are_refused():
    with pytest.raises(ValidationError, match=r"student\.group_head needs groups that are CWE groups"):
        settings(student={"group_head": True}, partition={"scheme": "random"})
