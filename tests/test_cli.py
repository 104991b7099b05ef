"""The command line: what is on stdout, what on stderr, and which exit code."""

import json
import os
import subprocess
import sys
import types

import pytest

from moekd import cli, console, stages
from moekd.errors import DataError
from moekd.steps import Step

CONFIG = """
name = "small"

[[data.sources]]
kind = "embedded"

[run]
folder = "RUNS"
"""

STAGES = """
import json

def prepare(settings, inputs, folder):
    (folder / "report.json").write_text(json.dumps({"kept": 3}))
    return {}

def results(settings, inputs, folder):
    (folder / "results.md").write_text("| system | F1 |\\n|---|---|\\n")
    (folder / "results.json").write_text("{}")
    return {}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config, and a plan of two quick steps in the place of the real one."""
    (tmp_path / "quick_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(tmp_path)
    data = Step("data", "quick_stages:prepare", reads=("data",))
    last = Step("results", "quick_stages:results", reads=("evaluate",), needs={"data": data, "partition": data})
    use_plan(monkeypatch, lambda settings: [data, last])
    describe = types.ModuleType("moekd.data.describe")
    describe.render = lambda report: f"{report['kept']} functions kept"
    monkeypatch.setitem(sys.modules, "moekd.data.describe", describe)
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.replace("RUNS", str(tmp_path / "runs")))
    yield path
    sys.modules.pop("quick_stages", None)
    console.set_quiet(False)


def use_plan(monkeypatch, plan) -> None:
    monkeypatch.setattr(stages, "plan", plan)
    monkeypatch.setattr(stages, "data_step", lambda: plan(None)[0])
    monkeypatch.setattr(stages, "_require_experts", lambda settings, partition: None)


def moekd(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# ------------------------------------------------------------------------------------------------ commands


def test_run_prints_the_table_and_last_the_folder(config, capsys):
    assert moekd("run", config) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "| system | F1 |"
    assert (config.parent / "runs" / "results") == type(config)(lines[-1]).parent
    assert (type(config)(lines[-1]) / "results.json").exists()
    assert "data: started" in output.err


def test_run_as_json_prints_nothing_else(config, capsys):
    assert moekd("run", config, "--json", "--quiet") == 0
    output = capsys.readouterr()
    value = json.loads(output.out)
    assert value["results"] == value["folder"] + "/results.json"
    assert output.err == ""


def test_status_before_and_after(config, capsys):
    """The setting that made a step stale is named."""
    assert moekd("status", config) == 0
    assert capsys.readouterr().out.split() == ["missing", "data", "missing", "results"]
    moekd("run", config, "-q")
    capsys.readouterr()
    assert moekd("status", config, "--set", "evaluate.bootstrap=200") == 0
    assert capsys.readouterr().out.splitlines() == [
        "fresh    data",
        "stale    results evaluate.bootstrap: 1000 -> 200",
    ]
    assert moekd("status", config, "--json") == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["fresh", "fresh"]


def test_data_describe_runs_the_data_step_only(config, capsys):
    assert moekd("data", "describe", config, "-q") == 0
    assert capsys.readouterr().out == "3 functions kept\n"
    assert not (config.parent / "runs" / "results").exists()
    assert moekd("data", "describe", config, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"kept": 3}


def test_config_show_tells_values_and_origins(config, capsys):
    assert moekd("config", "show", config, "--set", "mixture.k=3") == 0
    lines = {line.split(" = ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["mixture.k"].endswith("# --set")
    assert lines["name"].endswith(f"# {config}")
    assert lines["distill.temperature"].split() == ["distill.temperature", "=", "10.0", "#", "default"]
    assert moekd("config", "show", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["mixture.k"] == {"value": 2, "origin": "default"}


def test_version(capsys):
    assert moekd("--version") == 0
    assert capsys.readouterr().out.startswith("moekd 0.")


# ------------------------------------------------------------------------------------------------ errors


def test_wrong_settings_are_usage_errors(config, capsys):
    assert moekd("run", config, "--set", "distill.temprature=2") == 2
    output = capsys.readouterr()
    assert output.err == ("moekd: unknown setting `distill.temprature` in --set; did you mean `distill.temperature`?\n")
    assert output.out == ""


def test_wrong_arguments_are_usage_errors(capsys):
    assert moekd("run") == 2
    assert moekd("rnu") == 2
    assert moekd() == 2
    assert "CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("x.csv: row 3 has no label"), 5, "moekd: x.csv: row 3 has no label\n"),
        (
            ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm"),
            7,
            "moekd: this needs sklearn, which is not installed: pip install 'moekd[train]'\n",
        ),
        (
            ModuleNotFoundError("No module named 'datasets'", name="datasets"),
            7,
            "moekd: this needs datasets, which is not installed: pip install 'moekd[hub]'\n",
        ),
        (KeyboardInterrupt(), 130, "moekd: interrupted; the same command continues from here\n"),
    ],
)
def test_errors_and_exit_codes(config, capsys, monkeypatch, error, code, message):
    """One message without a traceback, and the code of the error's kind."""

    def plan(settings):
        raise error

    use_plan(monkeypatch, plan)
    assert moekd("run", config) == code
    assert capsys.readouterr().err == message


def test_defects_of_ours_say_how_to_see_more(config, capsys, monkeypatch):
    def plan(settings):
        raise KeyError("lost")

    use_plan(monkeypatch, plan)
    assert moekd("run", config) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("moekd: internal error, a defect of moekd: KeyError: 'lost'\n")
    assert "Traceback" not in shown
    monkeypatch.setenv("MOEKD_DEBUG", "1")
    assert moekd("run", config) == 3
    assert "Traceback" in capsys.readouterr().err


def test_output_in_the_way_of_a_file(config, capsys):
    (config.parent / "runs").touch()
    assert moekd("run", config) == 6
    assert "runs is a file; choose a folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ start


def test_help_imports_no_heavy_library():
    """`moekd --help` is fast, and works where the `train` extra is not installed."""
    heavy = ["torch", "transformers", "numpy", "sklearn", "pyarrow", "scipy", "moekd.config"]
    code = f"""
import sys
from moekd import cli
code = cli.main(["run", "--help"])
print([name for name in {heavy} if name in sys.modules], code)
"""
    ended = python(code)
    assert ended.stdout.splitlines()[-1] == "[] 0", ended.stderr


def test_help_documents_the_exit_codes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert moekd("--help") == 0
    shown = capsys.readouterr().out
    for meaning in (
        "0 done",
        "2 wrong usage",
        "3 internal",
        "5 bad input",
        "6 the output",
        "7 an optional",
        "130",
    ):
        assert meaning in shown


def test_no_color(config):
    """With NO_COLOR set nothing that the command prints has a colour."""
    ended = python("from moekd import cli; cli.main(['run'])", NO_COLOR="1", FORCE_COLOR="1")
    assert "Missing argument" in ended.stderr
    assert "\x1b[3" not in ended.stderr
