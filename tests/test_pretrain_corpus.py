"""The pre-training corpus: every kind of source gives the same functions, and every dropped one is counted."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pyarrow as pa
import pytest
from pyarrow.parquet import read_table, write_table

from moekd.config import PretrainSettings
from moekd.data.text import normalise
from moekd.errors import DataError
from moekd.files import read_json
from moekd.pretrain import corpus


def settings(tmp_path, *paths, **changes) -> PretrainSettings:
    chosen = {"paths": [str(path) for path in paths], "workers": 1, "held_out": 0.2, **changes}
    return PretrainSettings.model_validate({"name": "x", "run": {"folder": str(tmp_path / "runs")}, "corpus": chosen})


def collected(tmp_path, *paths, **changes):
    folder = tmp_path / "out"
    folder.mkdir()
    corpus.collect(settings(tmp_path, *paths, **changes), {}, folder)
    return read_table(folder / "functions.parquet").to_pydict(), read_json(folder / "report.json")


@pytest.fixture
def files(functions) -> dict[str, bytes]:
    """40 files of one function each, after some lines that are no function."""
    texts = sorted({normalise(sample.func) for sample in functions})[::3]
    return {f"src/f{i}.c": f"#include <x.h>\n/* {i} */\n{text}\n".encode() for i, text in enumerate(texts)}


def in_folder(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "tree"


def in_tar(tmp_path, files):
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tmp_path / "a.tar.xz"


def in_zip(tmp_path, files):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return tmp_path / "a.zip"


@pytest.mark.parametrize("pack", [in_folder, in_tar, in_zip])
def test_same_functions_from_every_source(pack, files, tmp_path):
    """A folder, a compressed tar and a zip of the same files give the same functions, normalised."""
    table, report = collected(tmp_path, pack(tmp_path, files), near_duplicate_jaccard=1.0)
    wanted = {normalise(content.decode().split("*/\n")[1]) for content in files.values()}
    assert set(table["func"]) == wanted
    (counts,) = report["sources"].values()
    assert counts["files"] == counts["functions"] == len(files)


def test_archives_in_a_folder_are_found(files, tmp_path):
    in_tar(tmp_path, files)
    table, report = collected(tmp_path, tmp_path)
    assert set(report["sources"]) == {"a.tar.xz"}
    assert len(table["func"]) > 10


def test_everything_found_is_kept_or_counted(files, tmp_path):
    """kept + dropped by reason = functions found; binary and huge files are counted as such."""
    extra = {
        "twice.c": files["src/f0.c"],
        "short.c": b"int f(void) {}\n",
        "broken.c": b"int f(void) { if ( { ) }\nint g(int a, int b) { return a + b + 12345; }\n",
        "binary.c": b"int f(void) { return 0; }\0",
        "big.c": b"int a;\n" * 600_000,
        "notes.txt": b"int nothing(void) { return 1; }",
    }
    table, report = collected(tmp_path, in_folder(tmp_path, files | extra))
    (counts,) = report["sources"].values()
    assert counts["files"] == len(files) + 5
    assert counts["files dropped: binary"] == counts["files dropped: too large"] == 1
    assert counts["functions dropped: too short"] == 1
    assert counts["functions dropped: not understood by the parser"] >= 1
    assert report["dropped"]["exact duplicate"] == 1
    dropped = sum(count for reason, count in counts.items() if reason.startswith("functions dropped"))
    assert report["kept"] + dropped + sum(report["dropped"].values()) == counts["functions"]
    assert report["kept"] == len(table["func"]) == counts["functions kept"]


def test_excluded_functions_and_their_relatives_are_not_learned(files, tmp_path):
    """A function of the labelled data, reindented and with one line more, is left out."""
    func = max((content.decode().split("*/\n")[1] for content in files.values()), key=len)
    write_table(
        pa.table({"func": [func.replace("{", "{\n   int extra_name = 0;\n", 1)]}), tmp_path / "labelled.parquet"
    )
    tree = in_folder(tmp_path, files)
    table, report = collected(tmp_path, tree, exclude=[str(tmp_path / "labelled.parquet")])
    assert report["dropped"]["like an excluded function"] >= 1
    assert normalise(func) not in table["func"]


def test_held_out_by_file(files, tmp_path):
    """All functions of a file are on one side, and the share is about the wanted one."""
    both = {
        name: content + b"int second_%d(int a) { return a * %d + 1234567; }\n" % (i, i * 7919)
        for i, (name, content) in enumerate(files.items())
    }
    table, _ = collected(tmp_path, in_folder(tmp_path, both), near_duplicate_jaccard=1.0)
    sides: dict[str, set[bool]] = {}
    for file, held_out in zip(table["file"], table["held_out"], strict=True):
        sides.setdefault(file, set()).add(held_out)
    assert all(len(side) == 1 for side in sides.values())
    assert 0.05 < sum(table["held_out"]) / len(table["held_out"]) < 0.4


def test_parquet_column(files, tmp_path):
    texts = [content.decode().split("*/\n")[1] for content in files.values()]
    write_table(pa.table({"code": [*texts, None]}), tmp_path / "t.parquet")
    table, report = collected(tmp_path, tmp_path / "t.parquet", column="code")
    assert 10 < len(table["func"]) <= len(texts)
    assert report["sources"]["t.parquet"]["functions dropped: too short"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", r"the source '.*nowhere' of the corpus does not exist"),
        (lambda path: path, r"neither C or C\+\+ files nor archives"),
        (lambda path: written(path / "notes" / "empty.c", b""), r"no C or C\+\+ function in .* \(files: 1\)"),
        (
            lambda path: written(path / "notes" / "binary.c", b"\x7fELF\0\xff" * 99),
            r"no C or C\+\+ function in .*notes \(files: 1, files dropped: binary: 1\): looked for",
        ),
        (
            lambda path: written(path / "one.cc", b"int f(void) { return 1; }"),
            r"one\.cc' of the corpus is neither a folder nor an archive .*; of single C files name their folder",
        ),
        (lambda path: written(path / "a.tar.gz", b"not an archive"), r"a\.tar\.gz cannot be read as an archive"),
        (lambda path: written(path / "a.zip", b"PK not an archive"), r"a\.zip cannot be read as an archive"),
        (lambda path: written(path / "t.parquet", b"PAR1 not a table"), r"t\.parquet is no parquet file"),
        (lambda path: table(path / "t.parquet"), r"has no column 'func'; it has code"),
    ],
)
def test_bad_sources(make, message, tmp_path):
    """Each unusable source has one message that names it."""
    source = make(tmp_path)
    source = source.parent if source.suffix == ".c" else source
    with pytest.raises(DataError, match=message):
        collected(tmp_path, source)


@pytest.mark.parametrize("damage", ["header", "end"])
def test_damaged_archives(damage, files, tmp_path):
    """A damaged header in the middle is an error, not the end of the archive, and so is a missing second half."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        place = archive.getmember("src/f20.c").offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[place : place + 600] = b"\xa5" * 600
    (tmp_path / "a.tar").write_bytes(content if damage == "header" else content[: place + 100])
    with pytest.raises(DataError, match=r"a\.tar cannot be read as an archive: .*; remove it or fetch it again"):
        collected(tmp_path, tmp_path / "a.tar")


def test_archives_of_one_name_are_counted_together(files, tmp_path):
    """Two folders with an archive of the same name each: no function disappears from the report."""
    halves = [dict(list(files.items())[start::2]) for start in range(2)]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, half in zip(folders, halves, strict=True):
        folder.mkdir()
        in_tar(folder, half)
    _, report = collected(tmp_path, *folders)
    assert report["sources"]["a.tar.xz"]["functions"] == len(files)
    assert report["sources"]["a.tar.xz"]["functions kept"] == report["kept"]


def written(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def table(path):
    write_table(pa.table({"code": ["int f;"]}), path)
    return path


def test_digests_follow_the_content(files, tmp_path):
    tree = in_folder(tmp_path, files)
    chosen = settings(tmp_path, tree)
    before = corpus.source_digests(chosen)
    assert corpus.source_digests(chosen) == before
    (tree / "src" / "f0.c").write_text("int other(void) { return 7; }")
    assert corpus.source_digests(chosen) != before
