"""`moekd scan` as a user meets it: what it reports, its exit codes, and inputs made to hurt."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import interrupting
import pytest

from moekd import cli, console, processes
from moekd.data.text import normalise
from moekd.errors import SettingsError
from moekd.scan import workers
from moekd.scan.model import FILES, ScanModel
from moekd.scan.run import PACKAGED
from moekd.scan.settings import load

SAFE = "int size_of(int n)\n{\n  if (n < 0)\n    return 0;\n  return n * 4;\n}\n"


@pytest.fixture
def project(tmp_path, monkeypatch, functions):
    """A folder with three files of five functions each, and one that is not C. The scan starts in it."""
    for number in range(3):
        part = functions[5 * number : 5 * number + 5]
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{number}.c").write_text("\n".join(one.func + "\n" for one in part))
    (tmp_path / "src" / "readme.md").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    console.set_quiet(False)


@pytest.fixture
def moekd(project, exported, capsys):
    """Run a scan with the test model; returns exit code and stdout."""

    def run(*arguments: object, command: str = "scan") -> tuple[int, str]:
        code = cli.main([command, *map(str, arguments), "--model", str(exported), "-q"])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def scan(moekd):
    """Run a scan; returns its report."""

    def run(*arguments: object) -> dict:
        report = json.loads(moekd(*arguments, "--format", "json")[1])
        return report

    return run


def places(report: dict) -> list[tuple[str, int]]:
    return [(one["path"], one["first_line"]) for one in report["findings"]]


# -------------------------------------------------------------------------------------------- what is reported


def test_findings_are_the_functions_at_or_above_the_threshold(scan, exported, functions):
    """Against a slow reference: every function scored by itself, its probability compared by hand."""
    report = scan("src", "--false-alarm-rate", "0.3")
    model = ScanModel.load(exported)
    p = [model.facts.p_vulnerable(model.answer(normalise(one.func))[0]) for one in functions[:15]]
    limit = model.facts.at_false_alarm_rate(0.3).p
    expected = sorted((round(one, 6) for one in p if one >= limit), reverse=True)
    assert [one["p"] for one in report["findings"]] == expected
    assert 0 < len(expected) < 15
    assert report["threshold"]["p"] == limit
    assert report["counts"]["functions"] == 15
    assert (report["counts"]["files"], report["counts"]["other"]) == (3, 1)


def test_top_n_are_the_highest(scan):
    every = scan("src", "--top", "15")
    assert len(every["findings"]) == 15
    assert places(scan("src", "--top", "4")) == places(every)[:4]
    assert every["threshold"] is None


def test_alarms_per_kloc_choose_the_threshold(scan, exported):
    facts = ScanModel.load(exported).facts
    assert scan("src", "--max-alarms-per-kloc", "20")["threshold"]["p"] == facts.at_alarms_per_kloc(20).p


def test_lines_that_carry_the_score(scan, exported, project):
    """Leaving out the first of them lowers the margin by what the report says."""
    found = scan("src", "--top", "3", "--explain")["findings"]
    assert any(one["lines"] for one in found)
    one = next(one for one in found if one["lines"])
    rows = (project / one["path"]).read_text().split("\n")
    text = rows[one["first_line"] - 1 : one["last_line"]]
    share = one["lines"][0]
    model = ScanModel.load(exported)
    without = [row for number, row in enumerate(text, start=one["first_line"]) if number != share["line"]]
    margins = [model.answer(normalise("\n".join(part)))[0] for part in (text, without)]
    assert share["drop"] == pytest.approx(margins[0] - margins[1], abs=1e-3)
    assert share["drop"] > 0


def test_comments_and_layout_change_no_finding(scan, project):
    """Line numbers move; probabilities and fingerprints stay."""
    before = scan("src", "--top", "15")["findings"]
    for path in (project / "src").glob("*.c"):
        path.write_text("/* licence\n */\n" + path.read_text().replace("{\n", "{   // begin\n\n\t\t", 1))
    after = scan("src", "--top", "15")["findings"]
    assert sorted((one["p"], one["fingerprint"]) for one in after) == sorted(
        (one["p"], one["fingerprint"]) for one in before
    )
    assert places({"findings": after}) != places({"findings": before})


def test_half_written_code_is_scanned(scan, project):
    (project / "src" / "new.c").write_text(SAFE + "int open_one(char *name)\n{\n  if (name) {\n    strcpy(\n")
    report = scan("src/new.c", "--top", "9")
    assert {one["function"]: one["parsed_whole"] for one in report["findings"]} == {"size_of": True, "open_one": False}


def test_a_source_on_stdin(project, exported):
    """As an editor or a hook hands it over; it is called what it is told to be called."""
    command = [sys.executable, "-m", "moekd", "scan", "-", "--top", "1", "--model", str(exported), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*command, "--stdin-filename", "src/x.c", "--format", "json", "--explain"],
        input=SAFE.encode(),
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert places(json.loads(ended.stdout)) == [("src/x.c", 1)]
    ended = subprocess.run(command, input="", env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "needs --stdin-filename NAME" in ended.stderr


def test_only_functions_that_a_diff_touches(scan, project, functions):
    """The diff changes one line of the second function of one file."""
    first_line = functions[0].func.count("\n") + 4
    Path("my.diff").write_text(f"--- a/src/0.c\n+++ b/src/0.c\n@@ -{first_line} +{first_line} @@\n-x\n+y\n")
    every = [one for one in scan("src", "--top", "15")["findings"] if one["path"] == "src/0.c"]
    report = scan("src", "--top", "15", "--diff", "my.diff")
    assert len(report["findings"]) == 1
    assert places(report)[0] == sorted(places({"findings": every}))[1]
    assert report["counts"]["files"] == 1


def test_a_folder_without_sources_is_told(moekd, project):
    (project / "docs").mkdir()
    assert "note: there is no C or C++ file to scan" in moekd("docs")[1]
    assert "note:" not in moekd("src")[1]


def test_a_diff_made_elsewhere_is_told(scan, project):
    """It would touch nothing, and the report would look clean. What is no C need not be here."""
    text = "".join(f"--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-x\n+y\n" for name in ("0.c", "n.c", "0.md", "src/0.c"))
    Path("my.diff").write_text(text)
    (note,) = scan("src", "--top", "15", "--diff", "my.diff")["notes"]
    assert note["text"].startswith("the diff names 0.c and 1 more, which is not here")


def test_a_diff_on_stdin_and_a_folder_reached_through_a_link(scan, project, monkeypatch):
    """Git names files by their real path; the paths given to the scan need not."""
    (project / "link").symlink_to("src")
    text = b"--- a/src/0.c\n+++ b/src/0.c\n@@ -1 +1 @@\n-x\n+y\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert places(scan("link", "--top", "15", "--diff", "-")) == [("link/0.c", 1)]


def test_only_functions_changed_since_a_revision(scan, project):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", "src")
    git("commit", "-qm", "one")
    assert scan(".", "--top", "15", "--changed-since", "HEAD")["counts"]["functions"] == 0
    (project / "src" / "1.c").write_text((project / "src" / "1.c").read_text() + SAFE)
    (project / "src" / "new.cpp").write_text(SAFE)
    report = scan(".", "--top", "15", "--changed-since", "HEAD")
    assert sorted((one["path"], one["function"]) for one in report["findings"]) == [
        ("src/1.c", "size_of"),
        ("src/new.cpp", "size_of"),
    ]


# ---------------------------------------------------------------------------- suppressions, baseline, settings


def test_a_suppressed_finding_is_marked_in_every_output_and_fails_nothing(moekd, project):
    Path("one.c").write_text("// moekd: ignore[CWE-664] sizes are fixed\n" + SAFE)
    arguments = ["one.c", "--max-alarms-per-kloc", "1e9", "--fail-on", "0"]
    files = [f"--out={name}=out.{name}" for name in ("json", "sarif", "junit", "gitlab")]
    code, text = moekd(*arguments, *files)
    found = json.loads(Path("out.json").read_text())["findings"]
    if not found:
        pytest.fail("the model must report the function for this test to tell anything")
    assert code == 0
    assert "0 findings" in text
    assert "1 suppressed" in text
    assert "suppressed: one.c:2: size_of" in text
    for name in ("json", "sarif", "junit", "gitlab"):
        assert "sizes are fixed" in Path(f"out.{name}").read_text()
    Path("one.c").write_text("// moekd: ignore[CWE-664]\n" + SAFE)
    code, text = moekd(*arguments)
    assert code == 1
    assert "note: one.c:1: suppression without a reason has no effect" in text


def test_suppressions_of_no_function_are_told(moekd, project):
    Path("one.c").write_text("// moekd: ignore[CWE-664] reason\n\n" + SAFE)
    assert "one.c:1: suppression belongs to no function" in moekd("one.c")[1]


def test_a_suppressed_function_takes_no_place_among_the_top(scan, project):
    """Asked for one function, the user gets the best that still needs a look; the suppressed one above it is marked."""
    best = scan("src", "--top", "2")["findings"]
    path = project / best[0]["path"]
    rows = path.read_text().split("\n")
    rows[best[0]["last_line"] - 1] += " // moekd: ignore[vulnerable] reviewed"
    path.write_text("\n".join(rows))
    found = scan("src", "--top", "1")["findings"]
    assert [(one["fingerprint"], one["suppressed"]) for one in found] == [
        (best[0]["fingerprint"], "reviewed"),
        (best[1]["fingerprint"], None),
    ]


def test_where_all_are_suppressed_they_are_still_marked(scan, project):
    Path("one.c").write_text("// moekd: ignore[vulnerable] reviewed\n" + SAFE)
    assert [one["suppressed"] for one in scan("one.c", "--top", "3")["findings"]] == ["reviewed"]


def test_baseline(moekd, project, monkeypatch):
    """Known findings fail nothing, also in a file that moved; a changed function is new."""
    wide = ["--max-alarms-per-kloc", "1e9"]
    assert moekd("src", *wide)[0] == 1
    code, out = moekd("src", *wide, command="baseline")
    assert (code, out) == (0, "moekd-baseline.json\n")
    (project / "src" / "0.c").rename(project / "src" / "moved.c")
    (project / "moekd.toml").write_text("explain = true\nstability = 9\n")
    with monkeypatch.context() as patched:  # a baseline holds neither lines nor stability
        patched.setattr(ScanModel, "margins", None)
        assert moekd("src", *wide, "--out", "other.json", command="baseline")[0] == 0
    (project / "moekd.toml").unlink()
    code, text = moekd("src", *wide, "--baseline", "moekd-baseline.json")
    assert code == 0
    assert "in the baseline" in text
    (project / "src" / "new.c").write_text(SAFE)
    code, text = moekd("src", *wide, "--baseline", "moekd-baseline.json")
    assert code == 1
    assert text.startswith("src/new.c:1  size_of")


def test_settings_from_a_file(scan, project):
    """The command line wins; paths in the file are relative to it; one way to set the threshold replaces the other."""
    (project / "moekd.toml").write_text('top = 2\ncache = "kept"\n')
    os.chdir("src")
    assert len(scan(".")["findings"]) == 2
    assert len(scan(".", "--top", "3")["findings"]) == 3
    assert scan(".", "--false-alarm-rate", "0.3")["top"] is None
    assert (project / "kept").is_dir()
    (project / "moekd.toml").unlink()
    (project / "pyproject.toml").write_text("[tool.moekd]\ntop = 4\n")
    assert len(scan(".")["findings"]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("topp = 2", "unknown setting `topp` in .*moekd.toml; did you mean `top`"),
        ("top = 0", "`top` in .*moekd.toml is 0; it should be greater than or equal to 1"),
        ("top = 1\nfalse_alarm_rate = 0.1", "gives false_alarm_rate and top; give one of them"),
        ("top = [", "is not valid TOML"),
    ],
)
def test_wrong_settings(project, content, message):
    (project / "moekd.toml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        load(project, {})


def test_settings_of_another_repository_are_not_taken(project):
    (project / "moekd.toml").write_text("top = 2")
    (project / "inner" / ".git").mkdir(parents=True)
    assert load(project / "inner", {}).top is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.c"], "there is no file or folder none.c"),
        (["src", "--top", "1", "--false-alarm-rate", "0.1"], "the command line gives false_alarm_rate and top"),
        (["src", "--false-alarm-rate", "2"], "--false-alarm-rate is 2.0; it should be less than 1"),
        (["src", "--fail-on", "often"], "--fail-on is 'often'"),
        (["src", "--out", "pdf=x"], "--out wants FORMAT=FILE with one of text, json, sarif, junit, gitlab"),
        (["src", "--changed-since", "HEAD"], "git refused"),
        (["src", "--baseline", "none.json"], "cannot read the baseline"),
        (["src", "--diff", "none.diff"], "cannot read the diff"),
        (["src", "--stdin-filename", "a.c"], "--stdin-filename names a source on stdin"),
        (["-", "--stdin-filename", "a.c", "--diff", "x.diff"], "a source on stdin is scanned whole"),
        (["-", "--stdin-filename", "a.c", "--changed-since", "HEAD"], "a source on stdin is scanned whole"),
    ],
)
def test_wrong_usage(project, exported, capsys, arguments, message):
    """Exit code 2 and one message, before any work."""
    assert cli.main(["scan", *arguments, "--model", str(exported)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not PACKAGED.is_dir(), reason="this version ships no student: assets/moekd-scan is not there")
def test_the_packaged_student(project, capsys):
    """It scans without --model, fits the budget and has a card."""
    assert cli.main(["scan", "src", "--top", "3", "-q", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 3
    assert sum((PACKAGED / name).stat().st_size for name in FILES) <= 3_000_000
    assert (PACKAGED / "README.md").is_file()


def test_the_packages_model_is_the_default(project, exported, capsys, monkeypatch):
    monkeypatch.setattr("moekd.scan.run.PACKAGED", exported)
    assert cli.main(["scan", "src", "--top", "2", "-q", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["digest"] == ScanModel.load(exported).facts.digest


def test_without_a_model(project, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("moekd.scan.run.PACKAGED", tmp_path / "none")
    assert cli.main(["scan", "src"]) == 2
    assert "no model: this version ships none. Give the folder of an exported one with --model" in (
        capsys.readouterr().err
    )


def test_the_lowest_threshold_can_be_given_as_told(moekd, exported, capsys):
    """Rounded down it would be refused again."""
    assert cli.main(["scan", "src", "--model", str(exported), "--max-alarms-per-kloc", "1e-9"]) == 2
    told = re.search(r"its lowest is ([0-9.e-]+[0-9])", capsys.readouterr().err)[1]
    assert moekd("src", "--max-alarms-per-kloc", told)[0] in (0, 1)


def test_the_time_told_holds_the_explanation(scan, monkeypatch):
    def slowly(*arguments):
        time.sleep(0.05)
        return ()

    monkeypatch.setattr("moekd.scan.run.explain.carrying_lines", slowly)
    assert scan("src", "--top", "6", "--explain")["seconds"] >= 6 * 0.05


def test_nobody_is_told_of_a_scan(project, exported):
    """onnxruntime would leave an id of this machine in the user's caches, and send facts about the model."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": "here", "HOME": "home"}
    command = [sys.executable, "-m", "moekd", "scan", "src", "--top", "1", "--model", str(exported)]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert [path.name for path in Path("here").iterdir()] == ["moekd"]
    assert not Path("home").exists()


def test_fail_on(moekd):
    """A review list fails nothing unless asked to; findings fail from the given probability on, or never."""
    assert moekd("src", "--top", "3")[0] == 0
    assert moekd("src", "--top", "3", "--fail-on", "0")[0] == 1
    assert moekd("src", "--max-alarms-per-kloc", "1e9", "--fail-on", "1")[0] == 0
    assert moekd("src", "--max-alarms-per-kloc", "1e9", "--fail-on", "never")[0] == 0


# ----------------------------------------------------------------------------------------- cache and processes


def test_a_second_scan_does_no_model_work(scan, project, monkeypatch):
    first = scan("src", "--top", "15")
    assert first["counts"]["from_cache"] == 0

    def never(self, text):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(ScanModel, "answer", never)
    second = scan("src", "--top", "15")
    assert second["counts"]["from_cache"] == 15
    assert second["findings"] == first["findings"]


def test_a_cache_that_cannot_be_used_is_told_and_costs_no_finding(scan, project):
    expected = scan("src", "--top", "15", "--no-cache")["findings"]
    Path("file").touch()
    report = scan("src", "--top", "15", "--cache", "file")
    assert report["findings"] == expected
    assert "the cache in file is not used" in report["notes"][0]["text"]


def test_processes_find_what_one_finds(scan, monkeypatch):
    """Two chunks at least, so that processes are started."""
    monkeypatch.setattr(workers, "_CHUNK_FILES", 1)
    alone = scan("src", "--top", "15", "--workers", "1", "--no-cache")
    both = scan("src", "--top", "15", "--workers", "2", "--no-cache")
    assert both["findings"] == alone["findings"]
    assert both["counts"] == alone["counts"]


@pytest.fixture
def fragile_pools(exported, monkeypatch):
    """Pools of processes that one file kills, as a crash in a native library would; returns what they were given."""
    scorer = workers.Plan(exported, None, 10_000_000, 1).scorer()
    given: list[list[str]] = []

    class Pool:
        def __init__(self, plan, count):
            pass

        def submit(self, function, chunk):
            given.append([Path(task.path).name for task in chunk])
            future: Future = Future()
            if any(task.path.endswith("1.c") for task in chunk):
                future.set_exception(BrokenProcessPool("gone"))
            else:
                future.set_result(([scorer.score_file(task) for task in chunk], None))
            return future

        def shutdown(self, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(workers, "_pool", Pool)
    return given


def test_a_file_that_kills_its_worker_costs_only_itself(scan, monkeypatch, fragile_pools):
    monkeypatch.setattr(workers, "_CHUNK_FILES", 2)
    report = scan("src", "--top", "15", "--workers", "2")
    assert [one["path"] for one in report["not_scanned"]] == ["src/1.c"]
    assert "died" in report["not_scanned"][0]["reason"]
    assert report["counts"]["functions"] == 10
    assert report["exit_code"] == 4


def test_a_file_that_kills_its_worker_is_found_by_halves(scan, project, monkeypatch, fragile_pools):
    """Of 16 files in two chunks: four processes halve the chunk down to it, four take what is left; the other chunk,
    which was done when the pool broke, is not scored again."""
    for number in range(3, 16):
        (project / "src" / f"{number}x.c").write_text(SAFE)
    monkeypatch.setattr(workers, "_CHUNK_FILES", 8)
    report = scan("src", "--top", "99", "--workers", "2")
    assert [one["path"] for one in report["not_scanned"]] == ["src/1.c"]
    assert report["counts"]["functions"] == 10 + 13
    first, second, *again = fragile_pools
    assert [len(first), len(second)] == [8, 8]
    assert [len(chunk) for chunk in again if "1.c" in chunk] == [8, 4, 2, 1]
    assert sorted(len(chunk) for chunk in again if "1.c" not in chunk) == [1, 2, 4]


def test_no_module_of_the_scanned_folder_is_run(project, exported):
    """Worker processes start as `python -c`, which would take these for the standard library's."""
    for name in ("multiprocessing", "signal", "pickle", "numpy", "onnxruntime"):
        (project / f"{name}.py").write_text(f"open({str(project / 'pwned')!r}, 'a').write({name!r})\n")
    for number in range(60):  # more than one chunk, so that processes are started
        (project / "src" / f"{number}x.c").write_text(SAFE)
    program = project / "bin" / "moekd"  # as pip installs it: its own folder is searched, not the working folder
    program.parent.mkdir()
    program.write_text("import sys\nfrom moekd import cli\nif __name__ == '__main__': sys.exit(cli.main())\n")
    arguments = ["scan", ".", "--model", str(exported), "--workers", "2", "--top", "1", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(program), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (project / "pwned").exists()


def test_ctrl_c_ends_the_scan_and_its_workers(project, exported, functions):
    """Exit code 130 within seconds, one line on stderr, and no process left."""
    for number in range(400):
        (project / "src" / f"big{number}.c").write_text(
            "\n".join(one.func.replace("(", f"_{number}(", 1) for one in functions)
        )
    scan = interrupting.start("scan", "src", "--model", str(exported), "--workers", "2", "--no-cache")
    time.sleep(2.5)
    interrupting.interrupt(scan, within=3)


def test_ctrl_c_does_not_reach_a_worker_that_starts():
    """It would end with a traceback while it imports. A process inherits what is blocked where it is started."""
    blocked = []

    class Pool:
        def submit(self, function, chunk):
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    processes.submit(Pool(), len, [])
    assert signal.SIGINT in blocked[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ------------------------------------------------------------------------------------------- inputs that hurt


def test_files_that_cannot_be_scanned_are_listed_and_the_rest_is_scanned(moekd, project, monkeypatch):
    """Binary, 100 MB, a pipe nobody writes to, unreadable, not C: a reason each, and exit code 4."""
    src = project / "src"
    (src / "binary.c").write_bytes(b"\x7fELF\0\0\0")
    with (src / "huge.c").open("wb") as stream:
        stream.truncate(100_000_000)
    os.mkfifo(src / "pipe.c")
    (src / "shut.c").write_text(SAFE)
    read = Path.read_bytes

    def refuse(path):
        if path.name == "shut.c":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    code, out = moekd("src", "src/pipe.c", "src/readme.md", "--top", "1", "--format", "json", "--workers", "1")
    report = json.loads(out)
    assert code == 4
    assert {one["path"]: one["reason"] for one in report["not_scanned"]} == {
        "src/binary.c": "binary: it holds a NUL byte",
        "src/huge.c": "100,000,000 bytes, the limit is 10,000,000 (max_file_bytes)",
        "src/pipe.c": "not a regular file",
        "src/shut.c": "Permission denied",
        "src/readme.md": "neither C nor C++ by its name",
    }
    assert report["counts"]["functions"] == 15


@pytest.mark.parametrize(
    "source",
    [
        b"int f(void)\n{\n" + b"  x = x + 1;\n" * 80_000 + b"}\n",
        b"int f(void) {" + b"{" * 20_000 + b"}" * 20_000 + b"}",
        b'int f(void) { char *s = "' + b"\0" * 9000 + b'"; return 1; }',
        b"\n" * 8001 + b'int f(void) { char *s = "\0\0"; return 1; }',
        b"int f(void) { return '\xff\xfe'; }\n",
        b"\xef\xbb\xbfint f(void)\r\n{\r\n return 1;\r\n}\r\n",
    ],
    ids=["megabyte", "nested", "nul at once", "nul later", "no utf-8", "bom and crlf"],
)
def test_hostile_sources_have_a_clear_outcome(scan, project, source):
    """Each is scored, or listed with a reason; none hangs."""
    Path("one.c").write_bytes(source)
    start = time.monotonic()
    report = scan("one.c", "--top", "1", "--explain")
    assert time.monotonic() - start < 120  # seconds; it takes some, also on a busy machine
    assert len(report["findings"]) + len(report["not_scanned"]) == 1


def test_a_file_whose_name_is_no_text(moekd, project):
    name = os.fsdecode(b"x\ny \xff.c")
    Path(name).write_text(SAFE)
    code, text = moekd(name, "--top", "1", "--explain", "--out", "sarif=out.sarif")
    assert code == 0
    assert text.startswith("x\\ny \\xff.c:1  size_of")
    assert "line" in text.splitlines()[1] or "1 finding" in text.splitlines()[1]
    assert '"uri": "x%0Ay%20%FF.c"' in Path("out.sarif").read_text()


def test_a_report_that_cannot_be_written(moekd, project, capsys):
    assert cli.main(["scan", "src", "--out", "json=src/0.c/x.json", "--model", "none"]) == 2
    assert moekd("src", "--out", "json=src/0.c/x.json")[0] == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_no_internal_error(project, exported):
    command = [sys.executable, "-m", "moekd", "scan", "src", "--top", "1", "--model", str(exported), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert ended.returncode == 6
    assert ended.stderr.startswith("moekd: cannot write the report to stdout: No space left on device")


def test_a_damaged_model_is_no_internal_error(project, capsys):
    Path("bad").mkdir()
    (project / "bad" / "model.json").write_text("{")
    assert cli.main(["scan", "src", "--model", "bad"]) == 2
    assert "the model in bad is damaged" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ start


def cpu_seconds(*arguments: str) -> tuple[float, str]:
    """Processor time of a fresh process: wall time would measure what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended.stdout + ended.stderr


def test_help_and_scan_are_quick_and_import_no_training_library(project, exported):
    """Help in less than 0.4 s; the first finding of one file in less than 1.5 s."""
    code = (
        "import sys; from moekd import cli; code = cli.main(sys.argv[1:]); "
        "print([n for n in ('torch', 'transformers', 'scipy', 'sklearn', 'pyarrow') if n in sys.modules], code)"
    )
    seconds, said = cpu_seconds("-c", code, "--help")
    assert said.splitlines()[-1] == "[] 0"
    assert seconds < 0.4
    seconds, said = cpu_seconds("-c", code, "scan", "src/0.c", "--top", "1", "--model", str(exported), "--no-cache")
    assert said.splitlines()[-1] == "[] 0", said
    assert seconds < 1.5
