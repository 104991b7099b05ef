"""The data stage as a whole: from files to parts, and its report."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from moekd.config import MoekdSettings
from moekd.data import describe, load_parts, prepare, read_samples
from moekd.data.text import digest
from moekd.errors import DataError
from moekd.files import read_json
from moekd.records import PARTS


def settings_of(*sources: dict[str, object], **data: object) -> MoekdSettings:
    return MoekdSettings.model_validate({"name": "test", "data": {"sources": list(sources), **data}})


def records(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Functions of 4 to 8 lines of random calls, a quarter vulnerable, in 30 projects."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        calls = "\n".join(f"  call{rng.integers(500)}(x{rng.integers(500)});" for _ in range(rng.integers(2, 7)))
        made.append(
            {
                "func": f"int f{seed}_{n}(int x)\n{{\n{calls}\n}}\n",
                "label": int(n % 4 == 0),
                "project": f"p{n // 4 % 30}",
                "cwe": "CWE-119" if n % 8 == 0 else None,
                "commit_id": f"c{n // 4}",
                "date": f"20{n * 20 // count:02}-02-03",
            }
        )
    return made


@pytest.fixture
def source(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(1200)))
    return {"kind": "jsonl", "path": str(path)}


def stage(settings: MoekdSettings, folder: Path) -> dict[str, object]:
    folder.mkdir(exist_ok=True)
    return prepare(settings, {}, folder)


def test_kept_and_dropped_add_up_to_read(tmp_path, source):
    """900 candidates for 300 vulnerable functions: 600 of them are not drawn, and nothing else is lost."""
    facts = stage(settings_of(source), tmp_path / "data")
    assert (facts["read"], facts["kept"], facts["dropped"]) == (1200, 600, {"not drawn by balancing": 600})
    parts = load_parts(tmp_path / "data")
    assert {part: len(samples) for part, samples in parts.items()} == {
        "train_a": 240,
        "train_b": 240,
        "valid": 60,
        "test": 60,
    }
    everyone = [sample for part in PARTS for sample in parts[part]]
    assert len({sample.id for sample in everyone}) == len({sample.digest for sample in everyone}) == 600
    assert sum(sample.label for sample in everyone) == 300
    assert all(digest(sample.func) == sample.digest for sample in everyone)


def test_samples_come_back_as_they_were(tmp_path, source):
    """Every field survives the file, unknown ones as None."""
    original = {sample.id: sample for sample in read_samples(str(source["path"])).samples}
    stage(settings_of(source), tmp_path / "data")
    parts = load_parts(tmp_path / "data")
    assert all(sample == original[sample.id] for part in PARTS for sample in parts[part])


def test_the_same_settings_give_the_same_file(tmp_path, source):
    for name in "ab":
        stage(settings_of(source), tmp_path / name)
    stage(settings_of(source, seed=1), tmp_path / "c")
    a, b, c = ((tmp_path / name / "samples.parquet").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("scheme", ["random", "commit", "project", "family", "time"])
def test_every_split_runs(tmp_path, source, scheme):
    facts = stage(settings_of(source, split=scheme), tmp_path / "data")
    assert facts["kept"] == 600
    assert all(min(by_label.values()) > 0 for by_label in facts["parts"].values())


def test_limit_keeps_pairs(tmp_path, source):
    facts = stage(settings_of(source, limit=101), tmp_path / "data")
    assert facts["kept"] == 100
    assert facts["dropped"] == {"not drawn by balancing": 600, "over data.limit": 500}
    assert sum(by_label["vulnerable"] for by_label in facts["parts"].values()) == 50


def test_without_balancing_all_are_kept(tmp_path, source):
    assert stage(settings_of(source, balance=False), tmp_path / "data")["kept"] == 1200
    facts = stage(settings_of(source, balance=False, limit=400), tmp_path / "limited")
    assert (facts["kept"], facts["dropped"]) == (400, {"over data.limit": 800})


def test_sources_are_deduplicated_across(tmp_path, source):
    """The same function, indented and commented otherwise, in a second file is one function."""
    path = tmp_path / "other.jsonl"
    copies = [r | {"func": "/* again */ " + str(r["func"]).replace("\n", "\n\t")} for r in records(1200)[:80]]
    new = records(40, seed=1)
    path.write_text("".join(json.dumps(record) + "\n" for record in copies + new))
    facts = stage(settings_of(source, {"kind": "jsonl", "path": str(path)}), tmp_path / "data")
    assert facts["read"] == 1320
    assert facts["dropped"]["duplicate"] == 80
    names = {sample.dataset for samples in load_parts(tmp_path / "data").values() for sample in samples}
    assert names == {"some", "other"}


def test_shuffled_labels_keep_the_counts_of_each_part(tmp_path, source):
    """The control has the same functions and as many of each label in each part, but who has which is chance."""
    stage(settings_of(source), tmp_path / "plain")
    stage(settings_of(source, shuffle_labels=True), tmp_path / "shuffled")
    plain, shuffled = load_parts(tmp_path / "plain"), load_parts(tmp_path / "shuffled")
    agreeing = 0
    for part in PARTS:
        assert [s.id for s in plain[part]] == [s.id for s in shuffled[part]]
        assert sum(s.label for s in plain[part]) == sum(s.label for s in shuffled[part])
        agreeing += sum(a.label == b.label for a, b in zip(plain[part], shuffled[part], strict=True))
    assert 240 < agreeing < 360  # of 600; the standard deviation is 12


def test_one_class_is_refused(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps(r | {"label": 1}) + "\n" for r in records(60)))
    with pytest.raises(DataError, match=r"both labels are needed, but of 60 read and 60 usable all 60 have label 1"):
        stage(settings_of({"kind": "jsonl", "path": str(path)}), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []  # nothing half written


def test_nothing_usable_is_refused_with_reasons(tmp_path):
    path = tmp_path / "stubs.jsonl"
    path.write_text("".join(json.dumps({"func": "int f();", "label": n % 2}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match=r"there is none.*'shorter than 30 characters': 9"):
        stage(settings_of({"kind": "jsonl", "path": str(path)}), tmp_path / "data")


def test_the_embedded_set_runs(tmp_path):
    facts = stage(settings_of({"kind": "embedded", "count": 400}), tmp_path / "data")
    assert facts["kept"] == 400


def test_the_report_by_hand(tmp_path):
    """Two data sets, a known set of drops and lengths: every count of the report, and its text."""
    first = [
        {"func": f"int first_{n}(int a)\n{{\n  return {n};\n}}\n", "label": n % 2, "project": "p"} for n in range(60)
    ]
    first += [{"func": "int stub();", "label": 0}, {"func": first[0]["func"], "label": 0}]
    second = [{"func": f"int second_{n}(int a) {{ return {n}; }} ", "label": 1, "cwe": "CWE-20"} for n in range(20)]
    second[0]["cwe"] = "CWE-abc"
    second.append({"func": "int h() { return 1; } /* no label */", "label": "x"})
    sources = []
    for name, rows in (("first", first), ("second", second)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"kind": "jsonl", "path": str(tmp_path / f"{name}.jsonl")})
    settings = settings_of(*sources, balance=False, near_duplicate_jaccard=1.0)
    facts = stage(settings, tmp_path / "data")
    report = read_json(tmp_path / "data" / "report.json")
    assert {name: report[name] for name in facts} == facts
    assert (report["read"], report["kept"]) == (83, 80)
    assert report["dropped"] == {
        "label is neither 0 nor 1": 1,
        "shorter than 30 characters": 1,
        "duplicate": 1,
    }
    assert report["datasets"] == {
        "first": {"not_vulnerable": 30, "vulnerable": 30},
        "second": {"not_vulnerable": 0, "vulnerable": 20},
    }
    assert report["projects"] == {
        "p": {"not_vulnerable": 30, "vulnerable": 30},
        "unknown": {"not_vulnerable": 0, "vulnerable": 20},
    }
    assert report["cwes"] == {"unknown": 31, "CWE-20": 19}
    assert report["lengths"]["not_vulnerable"]["lines"] == dict.fromkeys(["p5", "p25", "p50", "p75", "p95"], 4)
    assert report["lengths"]["vulnerable"]["lines"] == {"p5": 1, "p25": 1, "p50": 4, "p75": 4, "p95": 4}
    assert report["notes"] == {"no CWE number in 'CWE-abc'": 1}
    assert report["clusters"] == {"count": 0, "functions": 0, "largest": 0}
    text = describe.render(report)
    assert text.startswith("83 functions read = 80 kept + 3 dropped\n")
    assert "second.jsonl, row 21: label is neither 0 nor 1 (got 'x')" in text
    assert f"\nsecond  {0:>16}{20:>12}\n" in text
    assert "balanced by" not in text  # no table without a row


def test_long_lists_of_projects_are_summed():
    """20 are named; what the others hold is one row, and no function is missing."""
    from moekd.data.tally import Tally
    from moekd.records import Sample

    rows = [
        (Sample(f"{p}:{n}", "int f;", n % 2, "a", project=f"p{p}"), "test", n) for p in range(25) for n in range(30 - p)
    ]
    projects = describe.report(rows, Tally(read=len(rows)), {})["projects"]
    assert list(projects)[:2] == ["p0", "p1"]
    assert list(projects)[20:] == ["5 others"]
    assert sum(sum(by_label.values()) for by_label in projects.values()) == len(rows)


needs_data = pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA is not set")


@needs_data
def test_real_csv_rows_run(tmp_path):
    """300 untouched rows of BigVul: commits with 30 functions, PHP macros, HTML in fields; all accounted for."""
    settings = settings_of({"kind": "bigvul-csv", "path": "$MOEKD_DATA/bigvul_raw_sample.csv.gz"}, include_fixed=True)
    facts = stage(settings, tmp_path / "data")
    assert facts["read"] == 111 + 2 * 189
    assert facts["kept"] > 250


@needs_data
@pytest.mark.slow
def test_the_whole_of_bigvul(tmp_path):
    """Rows of the file as its README counts them; 6,731 vulnerable ones but for a few unbalanced."""
    facts = stage(settings_of({"kind": "parquet", "path": "$MOEKD_DATA/bigvul.parquet"}), tmp_path / "data")
    assert facts["read"] == 157_724
    assert facts["dropped"]["fixed version"] == 6_934
    assert 6_720 <= sum(by_label["vulnerable"] for by_label in facts["parts"].values()) <= 6_731
    assert "conflicting labels" not in facts["dropped"]


def test_a_csv_that_is_cut_leaves_no_result(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerow(["CVE ID", "CWE ID", "Publish Date", "commit_id", "func_after", "func_before"])
    with pytest.raises(DataError, match="no column 'project'"):
        stage(settings_of({"kind": "bigvul-csv", "path": str(path)}), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
