"""Readers: what is read, what is dropped and why, and files that must be refused."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moekd.config import Source
from moekd.data import read_samples
from moekd.data.formats import BIGVUL_COLUMNS
from moekd.data.readers import expand, read, source_digests
from moekd.data.tally import Tally
from moekd.errors import DataError, MissingExtraError, SettingsError
from moekd.records import Sample

#: The 36 columns of MSR_data_cleaned.csv in their order; the first has no name.
BIGVUL_HEADER = next(
    csv.reader(
        [
            ",Access Gained,Attack Origin,Authentication Required,Availability,CVE ID,CVE Page,CWE ID,Complexity,"
            "Confidentiality,Integrity,Known Exploits,Publish Date,Score,Summary,Update Date,"
            "Vulnerability Classification,"
            "add_lines,codeLink,commit_id,commit_message,del_lines,file_name,files_changed,func_after,func_before,lang,"
            "lines_after,lines_before,parentID,patch,project,project_after,project_before,vul,vul_func_with_fix"
        ]
    )
)


def func(name: str, body: str = "return g(1);") -> str:
    return f"int {name}(int n)\n{{\n\t{body}\n}}\n"


def bigvul_row(index: int, **values: str) -> list[str]:
    """One record; `cve="..."` stands for the column "CVE ID", and so on."""
    names = {"cve": "CVE ID", "cwe": "CWE ID", "date": "Publish Date", "commit": "commit_id"}
    by_column = {names.get(name, name): value for name, value in values.items()}
    assert set(by_column) <= set(BIGVUL_HEADER)
    return [str(index), *(by_column.get(column, "") for column in BIGVUL_HEADER[1:])]


def write_csv(path: Path, rows: list[list[str]], header: list[str] = BIGVUL_HEADER) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return path


def write_jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def read_all(path: Path, kind: str, **source: object) -> tuple[list[Sample], Tally]:
    tally = Tally()
    samples = list(read(Source(kind=kind, path=str(path), **source), tally))
    assert len(samples) == tally.kept == tally.read - sum(tally.dropped.values())
    return samples, tally


# BigVul's own CSV


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_vulnerable_record_holds_two_functions_and_another_one(tmp_path, ending):
    """`vul` 1: before the fix vulnerable, after it `fixed`, joined by a pair id. `vul` 0: one function, no CWE."""
    path = write_csv(
        tmp_path / f"msr{ending}",
        [
            bigvul_row(
                7,
                func_before=func("f"),
                func_after=func("f", 'puts("a, ""b"");\n\n\treturn g(0);'),
                vul="1",
                cwe="CWE-119",
                cve="CVE-2015-8467",
                date="2015-12-29",
                project="samba",
                commit="b000da",
                patch="@@ -1 +1 @@\n-a\n+b",
            ),
            bigvul_row(8, func_before=func("h"), func_after=func("h"), vul="0", cwe="CWE-119", cve="CVE-2015-8467"),
        ],
    )
    samples, tally = read_all(path, "bigvul-csv", name="bv")
    vulnerable, fixed, unchanged = samples
    assert tally.read == 3
    assert vulnerable == Sample(
        id="bv:7",
        func="int f(int n)\n{\nreturn g(1);\n}",
        label=1,
        dataset="bv",
        kind="vulnerable",
        cwe="CWE-119",
        cve="CVE-2015-8467",
        project="samba",
        family="samba",
        commit="b000da",
        date="2015-12-29",
        pair="bv:7",
        digest=vulnerable.digest,
    )
    assert (fixed.id, fixed.label, fixed.kind, fixed.pair) == ("bv:7:fixed", 0, "fixed", "bv:7")
    assert fixed.func.split("\n")[2] == 'puts("a, ""b"");'
    assert (unchanged.label, unchanged.kind, unchanged.cwe) == (0, "unchanged", None)
    assert unchanged.date == "2015"  # the CVE's year where there is no date


def test_a_fix_of_comments_only_teaches_nothing(tmp_path):
    rows = [
        bigvul_row(1, func_before=func("f"), func_after=func("f", "return  g(1); /* x */"), vul="1"),
        bigvul_row(2, func_before=func("f"), func_after="", vul="1"),  # the fix removed the function
    ]
    samples, tally = read_all(write_csv(tmp_path / "a.csv", rows), "bigvul-csv")
    assert [(s.id, s.pair) for s in samples] == [("a:2", None)]
    assert tally.dropped == {"fix changes only comments or white space": 2}
    assert tally.broken == []


def test_a_csv_cut_anywhere_in_its_last_record_is_refused(tmp_path):
    """In a quoted field or between fields: half a file is not a data set. The message names file and row.

    Except in the last column, which is not read: all that is wanted may be there.
    """
    path = tmp_path / "cut.csv"
    code = 'int f()\n{\n\tputs("a, ""b"");\n}'
    write_csv(path, [bigvul_row(n, func_before=code, vul="0", vul_func_with_fix="last") for n in range(3)])
    whole = path.read_bytes()
    for end in range(whole.rindex(b"\n2,") + 2, len(whole) - len("last\n")):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut\.csv, row 3.*cut off"):
            read_all(path, "bigvul-csv")


def test_a_csv_cut_inside_a_quoted_field_names_row_and_line(tmp_path):
    path = write_csv(tmp_path / "a.csv", [bigvul_row(n, func_before=func("f"), vul="0") for n in range(2)])
    path.write_bytes(path.read_bytes()[:-40])  # in the first line of the function
    with pytest.raises(DataError, match=r"a\.csv, row 2 \(line 7\): .*cut off inside a quoted field"):
        read_all(path, "bigvul-csv")


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv.gz", [bigvul_row(n, func_before=func("f"), vul="0") for n in range(200)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.csv\.gz is cut off or damaged"):
        read_all(path, "bigvul-csv")


def test_a_record_of_the_wrong_width_is_dropped_and_named(tmp_path):
    rows = [bigvul_row(n, func_before=func("f"), vul="0") for n in range(20)]
    rows[4] = rows[4][:-3]
    samples, tally = read_all(write_csv(tmp_path / "a.csv", rows), "bigvul-csv")
    assert len(samples) == 19
    assert tally.broken == [f"{tmp_path}/a.csv, row 5: wrong number of columns (33, the header has 36)"]


@pytest.mark.parametrize("missing", BIGVUL_COLUMNS)
def test_a_missing_column_of_bigvul_is_named(tmp_path, missing):
    header = [column for column in BIGVUL_HEADER if column != missing]
    with pytest.raises(DataError, match=rf"no column '{missing}'"):
        read_all(write_csv(tmp_path / "a.csv", [[""] * 35], header), "bigvul-csv")


def test_fixed_columns_cannot_be_mapped(tmp_path):
    path = write_csv(tmp_path / "a.csv", [bigvul_row(1, func_before=func("f"), vul="0")])
    with pytest.raises(SettingsError, match="fixed columns"):
        read_all(path, "bigvul-csv", columns={"func": "func_after"})


def test_memory_does_not_grow_with_the_file(tmp_path):
    """BigVul's CSV has 10 GB, mostly patches; a file of 120 MB is read within 40 MB more than one of three records."""
    patch = 'diff "a"\n' * 200_000  # 1.8 MB each
    rows = [bigvul_row(n, func_before=func(f"f{n}"), vul="0", patch=patch) for n in range(65)]
    small, large = write_csv(tmp_path / "small.csv", rows[:3]), write_csv(tmp_path / "large.csv", rows)
    assert large.stat().st_size > 120_000_000
    assert _peak_bytes(large) - _peak_bytes(small) < 40_000_000


def _peak_bytes(path: Path) -> int:
    program = (
        "import resource, sys\n"
        "from moekd.config import Source\n"
        "from moekd.data.readers import read\n"
        "from moekd.data.tally import Tally\n"
        "for sample in read(Source(kind='bigvul-csv', path=sys.argv[1]), Tally()): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return int(done.stdout)


# Parquet and JSON lines


def test_only_function_and_label_are_required(tmp_path):
    """Row numbers stand in for ids; everything else is unknown."""
    expected = [("a:1", 0, None), ("a:2", 1, None)]
    for path in (
        write_jsonl(tmp_path / "a.jsonl", [{"func": func("f"), "label": 0}, {"func": func("g"), "label": 1}]),
        write_parquet(tmp_path / "a.parquet", func=[func("f"), func("g")], label=[0, 1]),
    ):
        samples, _ = read_all(path, path.suffix[1:])
        assert [(s.id, s.label, s.project) for s in samples] == expected


def test_all_columns_and_other_names(tmp_path):
    """Columns as in shared data sets, with a column map; family defaults to the project."""
    path = write_parquet(
        tmp_path / "a.parquet",
        code=[func("f"), func("g")],
        target=pa.array([1, 0], pa.int8()),
        row_id=pa.array([5, 5], pa.int32()),
        kind=["vulnerable", "fixed"],
        cwe=["CWE-787", "CWE-787"],
        cve=["CVE-2011-0001", None],
        project=pa.array(["php", "php"]).dictionary_encode(),
        family=["php-src", None],
        commit_id=["abc", "abc"],
        pair_id=["x-5", "x-5"],
        date=["2011-02-03T00:00:00", None],
    )
    (one, two), _ = read_all(path, "parquet", columns={"func": "code", "label": "target"}, name="set")
    assert (one.id, one.label, one.cwe, one.family, one.commit) == ("set:5", 1, "CWE-787", "php-src", "abc")
    assert (one.date, two.date) == ("2011-02-03", None)
    assert (two.id, two.family, two.cve, two.pair) == ("set:5:fixed", "php", None, "set:x-5")
    assert one.pair == two.pair


@pytest.mark.parametrize(
    ("given_cwe", "expected"),
    [
        ("CWE-787,CWE-125", "CWE-787"),  # first listed
        (["CWE-416", "CWE-20"], "CWE-416"),
        ("cwe-079", "CWE-79"),
        (119, "CWE-119"),
        ("", None),
        (None, None),
        ([], None),
    ],
)
def test_cwe_values(tmp_path, given_cwe, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [{"func": func("f"), "label": 1, "cwe": given_cwe}])
    (sample,), tally = read_all(path, "jsonl")
    assert sample.cwe == expected
    assert not tally.notes


def test_an_unknown_cwe_is_kept_without_one_and_noted(tmp_path):
    cwes = ["CWE-abc", "NVD-CWE-noinfo", "CWE-abc", "CWE-20"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"func": func("f"), "label": 1, "cwe": cwe} for cwe in cwes])
    samples, tally = read_all(path, "jsonl")
    assert [sample.cwe for sample in samples] == [None, None, None, "CWE-20"]
    assert tally.notes == {"no CWE number in 'CWE-abc'": 2, "no CWE number in 'NVD-CWE-noinfo'": 1}


@pytest.mark.parametrize("label", [2, -1, None, "yes", 0.5, [1]])
def test_a_label_that_is_neither_0_nor_1_is_dropped_and_named(tmp_path, label):
    records = [{"func": func(f"f{n}"), "label": n % 2} for n in range(19)]
    path = write_jsonl(tmp_path / "a.jsonl", [*records, {"func": func("x"), "label": label}])
    samples, tally = read_all(path, "jsonl")
    assert len(samples) == 19
    assert tally.dropped == {"label is neither 0 nor 1": 1}
    assert tally.broken == [f"{path}, row 20: label is neither 0 nor 1 (got {label!r})"]


@pytest.mark.parametrize("label", [1, True, 1.0, "1", " 1 "])
def test_labels_in_other_types(tmp_path, label):
    (sample,), _ = read_all(write_jsonl(tmp_path / "a.jsonl", [{"func": func("f"), "label": label}]), "jsonl")
    assert sample.label == 1


def test_a_wrong_label_column_is_an_error(tmp_path):
    """Labels coded 1 and 2 are no broken rows: reading on would take the safe functions for vulnerable."""
    records = [{"func": func(f"f{n}"), "label": 1 + n % 2} for n in range(20)]
    with pytest.raises(DataError, match=r"10 of 20 records are broken; the first is .*row 2: label .*got 2"):
        read_all(write_jsonl(tmp_path / "a.jsonl", records), "jsonl")


def test_invalid_utf8_is_dropped_and_named(tmp_path):
    """In every kind of file; other records, also with characters beyond ASCII, are untouched."""
    good, bad = func("f", 'puts("é");'), func("f", 'puts("?");').encode().replace(b"?", b"\xe9")
    count = 11
    jsonl = tmp_path / "a.jsonl"
    lines = [json.dumps({"func": good, "label": 0}).encode()] * (count - 1)
    lines.insert(2, json.dumps({"func": bad.decode("latin-1"), "label": 0}, ensure_ascii=False).encode("latin-1"))
    jsonl.write_bytes(b"\n".join(lines) + b"\n")
    parquet = tmp_path / "a.parquet"
    texts = [good.encode()] * 2 + [bad] + [good.encode()] * (count - 3)
    pq.write_table(pa.table({"func": _unchecked_strings(texts), "label": [0] * count}), parquet)
    table = write_csv(tmp_path / "a.csv", [bigvul_row(n, func_before=good, vul="0") for n in range(count)])
    content = table.read_bytes().split("é".encode())
    table.write_bytes("é".encode().join(content[:3]) + b"\xe9" + "é".encode().join(content[3:]))
    for path, kind in ((jsonl, "jsonl"), (parquet, "parquet"), (table, "bigvul-csv")):
        samples, tally = read_all(path, kind)
        assert len(samples) == count - 1
        assert {sample.func for sample in samples} == {'int f(int n)\n{\nputs("é");\n}'}
        assert tally.broken == [f"{path}, row 3: invalid UTF-8"]


def _unchecked_strings(texts: list[bytes]) -> pa.StringArray:
    """An arrow string column of any bytes, as careless writers make them."""
    binary = pa.array(texts, pa.binary())
    return pa.StringArray.from_buffers(len(texts), binary.buffers()[1], binary.buffers()[2])


def test_lone_surrogates_of_json_are_no_text(tmp_path):
    records = [json.dumps({"func": func(f"f{n}"), "label": 0, "project": "\\ud800"}) for n in range(10)]
    records.append('{"func": "int f() { puts(\\"\\ud800\\"); }", "label": 0}')
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(records) + "\n")
    samples, tally = read_all(path, "jsonl")
    assert len(samples) == 10
    assert tally.dropped == {"invalid UTF-8": 1}


def test_lines_that_are_no_records(tmp_path):
    """Blank lines are nothing; what is not a JSON object is dropped and named by its line."""
    good = [json.dumps({"func": func("f"), "label": 0})] * 30
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*good, "", "{oops", "[1]", *good]) + "\n\n")
    samples, tally = read_all(path, "jsonl")
    assert len(samples) == 60
    assert tally.dropped == {"not JSON": 1, "not a JSON object": 1}
    assert [entry.split(":")[0] for entry in tally.broken] == [f"{path}, row 32", f"{path}, row 33"]


def test_a_cut_json_line_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"func": func("f"), "label": 0}] * 30)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"row 30: the last line is cut off"):
        read_all(path, "jsonl")


@pytest.mark.parametrize("kind", ["bigvul-csv", "parquet", "jsonl"])
def test_an_empty_file_is_refused(tmp_path, kind):
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(DataError, match="empty"):
        read_all(path, kind)


def test_files_without_records_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no records"):
        read_all(write_csv(tmp_path / "a.csv", []), "bigvul-csv")
    with pytest.raises(DataError, match="holds no records"):
        read_all(write_parquet(tmp_path / "a.parquet", func=[], label=[]), "parquet")
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no records"):
        read_all(tmp_path / "a.jsonl", "jsonl")


@pytest.mark.parametrize("kind", ["bigvul-csv", "parquet", "jsonl"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"nowhere does not exist; check data\.sources\.path"):
        read_all(tmp_path / "nowhere", kind)
    with pytest.raises(DataError, match=str(tmp_path)):
        read_all(tmp_path, kind)


def test_what_is_no_parquet_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", func=[func("f")] * 9, label=[0] * 9)
    whole = path.read_bytes()
    for content in (b"func,label\n", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet file"):
            read_all(path, "parquet")


@pytest.mark.parametrize("missing", ["func", "label"])
def test_a_missing_column_is_named_with_those_found(tmp_path, missing):
    columns: dict[str, list[object]] = {"func": [func("f")], "label": [0], "other": [1]}
    del columns[missing]
    record = {name: values[0] for name, values in columns.items()}
    match = rf"no column '{missing}'; found .*'other'.*data\.sources\.columns"
    with pytest.raises(DataError, match=match):
        read_all(write_parquet(tmp_path / "a.parquet", **columns), "parquet")
    with pytest.raises(DataError, match=match):
        read_all(write_jsonl(tmp_path / "a.jsonl", [record] * 3), "jsonl")


def test_a_mapped_column_must_exist(tmp_path):
    """A typo in the map must not make every CWE unknown."""
    path = write_parquet(tmp_path / "a.parquet", func=[func("f")], label=[0], cwe_id=["CWE-20"])
    with pytest.raises(DataError, match="no column 'cweid'"):
        read_all(path, "parquet", columns={"cwe": "cweid"})
    with pytest.raises(SettingsError, match="unknown column 'comit_id'; did you mean 'commit_id'"):
        read_all(path, "parquet", columns={"comit_id": "cwe_id"})


def test_a_function_that_is_no_text_is_dropped(tmp_path):
    records = [{"func": func("f"), "label": 0}] * 30 + [{"func": 7, "label": 0}]
    _, tally = read_all(write_jsonl(tmp_path / "a.jsonl", records), "jsonl")
    assert tally.dropped == {"func is not text": 1}


def test_five_megabytes_on_one_line_are_read(tmp_path):
    """Whether they are too long is for cleaning to say."""
    long = "int f(void) { " + "x = 1; " * 750_000 + "}"
    (sample,), _ = read_all(write_parquet(tmp_path / "a.parquet", func=[long], label=[1]), "parquet")
    assert sample.func == long


def test_only_the_first_broken_records_are_named(tmp_path):
    records = [{"func": func("f"), "label": 5 if n % 20 == 0 else 0} for n in range(1000)]
    _, tally = read_all(write_jsonl(tmp_path / "a.jsonl", records), "jsonl")
    assert tally.dropped.total() == 50
    assert len(tally.broken) == 20


# Other kinds of source


def test_a_hub_data_set_from_a_folder(tmp_path, monkeypatch):
    """What `datasets` loads by name it also loads from a folder, without a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", code=[func("f"), func("g")], target=[True, False])
    source = Source(kind="hub", path=str(folder), columns={"func": "code", "label": "target"}, name="hub")
    samples = list(read(source, Tally()))
    assert [(s.id, s.label) for s in samples] == [("hub:1", 1), ("hub:2", 0)]
    with pytest.raises(DataError, match="no column 'func'"):
        list(read(Source(kind="hub", path=str(folder)), Tally()))
    with pytest.raises(DataError, match=r"cannot load the data set .* split 'nosuch'"):
        list(read(Source(kind="hub", path=str(folder), split="nosuch"), Tally()))


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'moekd\[hub\]'"):
        list(read(Source(kind="hub", path="some/set"), Tally()))


def test_the_embedded_set_is_normalised_and_digested():
    samples = list(read(Source(kind="embedded", count=40), tally := Tally()))
    assert tally.read == len(samples) == 40
    assert all(len(sample.digest) == 16 for sample in samples)
    assert len({sample.digest for sample in samples}) == 40


# Places


def test_variables_in_paths(monkeypatch):
    monkeypatch.setenv("SOME_DATA", "/data")
    assert expand("$SOME_DATA/a.csv") == expand("${SOME_DATA}/a.csv") == Path("/data/a.csv")
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(SettingsError, match="environment variable SOME_DATA, which is not set"):
        expand("$SOME_DATA/a.csv")


def test_source_digests_follow_content(tmp_path, settings_of):
    """Another content, another digest; the file's name and place are no part of it."""
    one = write_jsonl(tmp_path / "one.jsonl", [{"func": func("f"), "label": 0}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"func": func("f"), "label": 0}])
    other = write_jsonl(tmp_path / "other.jsonl", [{"func": func("f"), "label": 1}])
    digests = source_digests(settings_of(one, two, other))
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(DataError, match="does not exist"):
        source_digests(settings_of(tmp_path / "nowhere.jsonl"))


@pytest.fixture
def settings_of(tmp_path):
    from moekd.config import Data, MoekdSettings, Run

    def make(*paths: Path) -> MoekdSettings:
        sources = tuple(Source(kind="jsonl", path=str(path)) for path in paths)
        return MoekdSettings(name="t", data=Data(sources=sources), run=Run(folder=str(tmp_path / "runs")))

    return make


def test_read_samples_tells_the_kind_by_the_ending(tmp_path):
    records = [{"func": func(f"f{n}"), "label": 0} for n in range(3)]
    loaded = read_samples(write_jsonl(tmp_path / "some.jsonl", records), name="mine")
    assert [sample.id for sample in loaded.samples] == ["mine:1", "mine:2", "mine:3"]
    assert loaded.tally.read == 3
    with pytest.raises(SettingsError, match=r"cannot tell the kind of file from '\.txt'"):
        read_samples(tmp_path / "a.txt")


# The real sample


@pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA is not set")
def test_real_rows_of_bigvul():
    """300 untouched rows of BigVul: 189 with `vul` 1, 111 with 0, 184 of the former with a CWE (the data's README)."""
    path = expand("$MOEKD_DATA/bigvul_raw_sample.csv.gz")
    samples, tally = read_all(path, "bigvul-csv")
    assert tally.broken == []
    vulnerable = [sample for sample in samples if sample.label]
    assert sum(sample.kind == "unchanged" for sample in samples) == 111
    dropped = tally.dropped["fix changes only comments or white space"]
    assert len(vulnerable) + dropped // 2 == 189
    assert tally.read == 111 + 2 * 189
    assert all(sample.project and sample.commit and sample.date for sample in samples)
