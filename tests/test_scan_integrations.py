"""The hook, the action and the GitLab template, their commands run as the service would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SAFE = "int size_of(int n)\n{\n  if (n < 0)\n    return 0;\n  return n * 4;\n}\n"


@pytest.fixture
def shell(tmp_path, exported, monkeypatch):
    """Run a shell script in a project where `moekd` is on the PATH and the model is named in moekd.toml."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "moekd"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moekd "$@"\n')
    program.chmod(0o755)
    project = tmp_path / "project; touch pwned"
    project.mkdir()
    (project / "a.c").write_text(SAFE)
    (project / "moekd.toml").write_text(f'model = "{exported}"\nmax_alarms_per_kloc = 1e9\ncache = false\n')
    monkeypatch.chdir(project)

    def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = os.environ | variables
        environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script, "script", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_hook(shell):
    """pre-commit calls the entry with the names of changed files behind it; exit code 1 stops the commit."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["types_or"] == ["c", "c++"]
    ended = shell(f'{hook["entry"]} "$@"', "a.c")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.startswith("a.c:1  size_of")


def action_step(name: str) -> dict:
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    return next(step for step in steps if step.get("name") == name)


def test_action_scans_and_leaves_the_verdict_to_the_last_step(shell, tmp_path):
    """Findings must not end the job before the upload; its inputs are data, whatever they hold."""
    output = tmp_path / "output"
    variables = dict.fromkeys(action_step("Scan")["env"], "") | {"MOEKD_PATH": ".", "GITHUB_OUTPUT": str(output)}
    ended = shell(action_step("Scan")["run"], **variables)
    assert ended.returncode == 0, ended.stderr
    assert output.read_text() == "code=1\n"
    begin, *_, end = ended.stdout.splitlines()
    assert begin == f"::stop-commands::{end.strip(':')}", "file names in between are no commands to the runner"
    assert len(end) > 30
    assert json.loads(Path("moekd.sarif").read_text())["runs"][0]["results"]
    assert shell(action_step("Verdict")["run"], MOEKD_CODE="1").returncode == 1
    shell(action_step("Scan")["run"], **variables | {"MOEKD_PATH": "$(touch pwned)", "MOEKD_FAIL_ON": "; touch pwned"})
    assert not Path("pwned").exists()


def test_action_uploads_what_asks_for_attention(shell, tmp_path):
    """GitHub would open an alert for a suppressed result."""
    Path("b.c").write_text("// moekd: ignore[vulnerable] reviewed\n" + SAFE.replace("size_of", "other"))
    variables = dict.fromkeys(action_step("Scan")["env"], "") | {"GITHUB_OUTPUT": str(tmp_path / "output")}
    shell(action_step("Scan")["run"], **variables | {"MOEKD_PATH": "."})
    Path("json.py").write_text("open('pwned', 'w')\n")  # a module of the checkout is not run
    ended = shell(action_step("Alerts")["run"], PYTHONPATH="")
    assert ended.returncode == 0, ended.stderr
    assert not Path("pwned").exists()
    files = [json.loads(Path(f"moekd{name}.sarif").read_text())["runs"][0]["results"] for name in ("", "-alerts")]
    assert [len(results) for results in files] == [2, 1]
    assert files[1][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a.c"


def test_no_module_of_the_checkout_is_run():
    """`python -m` and `python -` look into the working folder first, which whoever opens a pull request fills."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    job = yaml.safe_load((ROOT / "templates" / "moekd.gitlab-ci.yml").read_text())["moekd"]
    lines = "\n".join([*(step.get("run", "") for step in steps), *job["script"]]).splitlines()
    calls = [line for line in lines if "python" in line.split()]
    assert len(calls) == 3  # pip twice, and the alerts
    assert all("python -I " in line for line in calls)


def test_action_stops_at_once_where_there_is_no_report(shell, tmp_path):
    variables = dict.fromkeys(action_step("Scan")["env"], "") | {"GITHUB_OUTPUT": str(tmp_path / "output")}
    assert shell(action_step("Scan")["run"], **variables | {"MOEKD_PATH": "none"}).returncode == 2


def test_action_pastes_no_expression_into_a_script():
    for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_gitlab_template(shell):
    """Its command writes the reports that it names as artifacts; findings are allowed to fail."""
    job = yaml.safe_load((ROOT / "templates" / "moekd.gitlab-ci.yml").read_text())["moekd"]
    ended = shell(job["script"][1], MOEKD_OPTIONS="--fail-on 0", MOEKD_PATH=".")
    assert ended.returncode in job["allow_failure"]["exit_codes"], ended.stderr
    reports = job["artifacts"]["reports"]
    assert json.loads(Path(reports["sast"]).read_text())["vulnerabilities"]
    assert "<failure" in Path(reports["junit"]).read_text()
