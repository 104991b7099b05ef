"""Data of the tasks beyond binary detection: classes found by name, and pairs split by function."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moekd.config import Data, MoekdSettings, Source
from moekd.data import describe, load_classes, load_parts, prepare
from moekd.data.classes import by_cwe_group, common_classes
from moekd.data.pairs import split_pairs
from moekd.data.readers import read
from moekd.data.tally import Tally
from moekd.data.text import digest, normalise
from moekd.errors import DataError
from moekd.files import read_json
from moekd.records import PAIR_MARK, PARTS, Sample

JAVA = """
    @Override
    public static <T extends Comparable<T>> int[] sort(int... a) throws IOException {
        // char '{' in a literal and a comment with a }
        char open = '{';
        Map<String, List<Integer>> seen = new HashMap<>();
        for (int i = 0; i < a.length - 1; i++) { Runnable r = () -> { swap(a, i); }; r.run(); }
        String url = "http://example.org/{";
        return a;
    }
"""


def settings_of(path: Path, **data: object) -> MoekdSettings:
    source = {"kind": "jsonl", "path": str(path)}
    return MoekdSettings.model_validate(
        {
            "name": "t",
            "data": {"sources": [source], "balance": False, **data},
            "student": {"systems": ["single", "hard"]},
        }
    )


def written(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def func(n: int) -> str:
    """Functions that are no near-duplicates of each other."""
    calls = " ".join(f"g{n}_{i}(x{n * 7 + i});" for i in range(5))
    return f"int f{n}(int x) {{ {calls} }}"


def stage(settings: MoekdSettings, folder: Path) -> dict[str, object]:
    folder.mkdir()
    return prepare(settings, {}, folder)


# ---------------------------------------------------------------------------------------------- multi-class


def test_classes_are_found_and_ordered_by_name(tmp_path):
    """Names in any order in the file; numbers as numbers; the label is the place in the order."""
    names = ["timeout", "10", "9", "IOError"]
    records = [{"func": func(n), "label": names[n % 4] if n % 4 else " timeout "} for n in range(80)]
    chosen = settings_of(written(tmp_path / "a.jsonl", records), task="multi-class")
    facts = stage(chosen, tmp_path / "data")
    assert facts["classes"] == ["9", "10", "IOError", "timeout"]
    assert load_classes(chosen, tmp_path / "data") == ("9", "10", "IOError", "timeout")
    by_text = {normalise(str(record["func"])): str(record["label"]).strip() for record in records}
    for samples in load_parts(tmp_path / "data").values():
        assert all(facts["classes"][sample.label] == by_text[sample.func] for sample in samples)


def test_every_class_is_in_every_part_in_its_share(tmp_path):
    """Of a class of 20 two are validation, two test and eight in each half, whatever the others' sizes."""
    names = ["common"] * 300 + ["rare"] * 20
    records = [{"func": func(n), "label": name} for n, name in enumerate(names)]
    facts = stage(settings_of(written(tmp_path / "a.jsonl", records), task="multi-class"), tmp_path / "data")
    rare = {part: by_class["rare"] for part, by_class in facts["parts"].items()}
    assert rare == {"train_a": 8, "train_b": 8, "valid": 2, "test": 2}
    assert facts["parts"]["test"]["common"] == 30


def test_a_rare_class_is_dropped_and_named(tmp_path):
    """19 functions are one too few; what is left is numbered without a gap, and the sums agree."""
    names = ["a"] * 40 + ["b"] * 19 + ["c"] * 40
    records = [{"func": func(n), "label": name} for n, name in enumerate(names)]
    facts = stage(settings_of(written(tmp_path / "a.jsonl", records), task="multi-class"), tmp_path / "data")
    assert facts["classes"] == ["a", "c"]
    assert facts["dropped"] == {"rare class: b": 19}
    assert facts["read"] == facts["kept"] + 19
    labels = {sample.label for samples in load_parts(tmp_path / "data").values() for sample in samples}
    assert labels == {0, 1}


def test_too_few_classes_is_an_error():
    samples = [Sample(str(n), func(n), n % 5, "a", digest=str(n)) for n in range(40)]
    tally = Tally(read=40, classes={name: n for n, name in enumerate("abcde")})
    with pytest.raises(DataError, match=r"0 of 5 classes have 9 functions.*largest: a: 8, b: 8"):
        common_classes(samples, tally, least=9)


def test_a_class_that_a_split_by_project_cannot_serve_is_named(tmp_path):
    """All functions of class c are of one project, which can be in one part only."""
    names = ["c" if n % 10 == 0 else "ab"[n % 2] for n in range(400)]
    records = [
        {"func": func(n), "label": name, "project": "p" if name == "c" else f"p{n % 40}"}
        for n, name in enumerate(names)
    ]
    chosen = settings_of(written(tmp_path / "a.jsonl", records), task="multi-class", split="project")
    with pytest.raises(DataError, match=r"of split 'project' has \d+ functions, but none of c; .*class_min_samples"):
        stage(chosen, tmp_path / "data")


def test_a_record_without_a_class_is_broken(tmp_path):
    source = Source(
        kind="jsonl",
        path=str(
            written(
                tmp_path / "a.jsonl",
                [{"func": func(n), "label": "a"} for n in range(20)] + [{"func": func(20), "label": None}],
            )
        ),
    )
    tally = Tally()
    assert len(list(read(source, tally, "multi-class"))) == 20
    assert tally.dropped == {"no label": 1}


def test_groups_of_cwes_by_hand():
    """CWE-125 is under pillar 664, CWE-399 a category of its own; others are dropped with a reason."""
    rows = [(1, "CWE-125"), (1, "CWE-399"), (1, None), (0, "CWE-125"), (1, "CWE-787")]
    tally = Tally(read=5)
    kept = by_cwe_group([Sample(str(n), "f", label, "a", cwe=cwe) for n, (label, cwe) in enumerate(rows)], tally)
    assert [(sample.id, sample.label) for sample in kept] == [("0", 0), ("1", 1), ("4", 0)]
    assert tally.classes == {"CWE-664": 0, "CWE-399": 1}
    assert tally.dropped == {"CWE unknown": 1, "not vulnerable": 1}


def test_shuffled_labels_keep_the_classes_of_each_part(tmp_path):
    records = [{"func": func(n), "label": "abc"[n % 3]} for n in range(120)]
    path = written(tmp_path / "a.jsonl", records)
    straight = stage(settings_of(path, task="multi-class"), tmp_path / "straight")
    dealt = stage(settings_of(path, task="multi-class", shuffle_labels=True), tmp_path / "dealt")
    assert straight["parts"] == dealt["parts"]


# ------------------------------------------------------------------------------------------------- pairs


def pair(n: int, one: int, other: int, label: int) -> Sample:
    texts = [normalise(func(one)), normalise(func(other))]
    return Sample(f"p:{n}", PAIR_MARK.join(texts), label, "p", digest=f"{n}")


def pair_data(**changes: object) -> Data:
    source = Source(kind="jsonl", path="pairs.jsonl")
    return Data.model_validate({"sources": [source], "task": "pair", "balance": False, **changes})


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), min_size=200, max_size=400),
    seed=st.integers(0, 99),
    limit=st.none() | st.just(40),
)
def test_no_function_stands_on_two_sides(edges, seed, limit):
    """Whatever the pairs are: no function of one part is in another, and kept + dropped = read."""
    samples = [pair(n, one, other, n % 2) for n, (one, other) in enumerate(edges)]
    tally = Tally(read=len(samples))
    try:
        rows = split_pairs(samples, pair_data(limit=limit), tally, Random(seed))
    except DataError as error:  # a part of a dozen pairs may lack a label, and says so
        assert "both classes are needed" in str(error)  # noqa: PT017
        return
    sides: dict[str, set[str]] = {}
    for sample, part, _ in rows:
        for text in sample.func.split(PAIR_MARK):
            sides.setdefault(text, set()).add(part)
    assert all(len(parts) == 1 for parts in sides.values())
    assert {part for _, part, _ in rows} == set(PARTS)
    assert tally.kept == len(rows)


def test_near_duplicates_are_on_one_side():
    """Sixty functions and a near-copy of each: a function and its copy are never parted."""
    rng = Random(0)
    long = {n: f"int f{n}(int x) {{ {' '.join(f'g{n}_{i}(x{n * 31 + i});' for i in range(30))} }}" for n in range(60)}
    texts = [text for n in long for text in (long[n], long[n].replace(f"g{n}_3", "other"))]
    samples = []
    for n in range(1500):
        one, other = rng.sample(range(120), 2)
        samples.append(Sample(f"p:{n}", f"{texts[one]}{PAIR_MARK}{texts[other]}", n % 2, "p", digest=str(n)))
    rows = split_pairs(samples, pair_data(), Tally(read=1500), Random(0))
    part_of = {text: part for sample, part, _ in rows for text in sample.func.split(PAIR_MARK)}
    assert len(part_of) > 100
    for one, other in zip(texts[::2], texts[1::2], strict=True):
        assert len({part_of[text] for text in (one, other) if text in part_of}) <= 1


def test_pairs_from_end_to_end(tmp_path):
    """Shares: 30, 30, 20 and 20 % of 100 functions, so 9, 9, 4 and 4 % of 3,000 pairs."""
    rng = Random(0)
    records = [
        {"one": func(a), "two": func(b), "label": n % 2}
        for n, (a, b) in enumerate(rng.sample([(a, b) for a in range(100) for b in range(a)], 3000))
    ]
    path = written(tmp_path / "pairs.jsonl", [*records, {"one": func(1), "two": "", "label": 0}])
    source = {"kind": "jsonl", "path": str(path), "columns": {"func": "one", "other_func": "two"}}
    chosen = settings_of(path, task="pair", sources=[source])
    facts = stage(chosen, tmp_path / "data")
    assert facts["classes"] == ["not_clone", "clone"]
    assert facts["dropped"]["empty"] == 1
    assert facts["read"] == 3001 == facts["kept"] + sum(facts["dropped"].values())
    sizes = {part: sum(by_label.values()) for part, by_label in facts["parts"].items()}
    assert sizes == {part: pytest.approx(3000 * share**2 * 0.97, rel=0.2) for part, share in
                     {"train_a": 0.3, "train_b": 0.3, "valid": 0.2, "test": 0.2}.items()}  # fmt: skip
    report = read_json(tmp_path / "data" / "report.json")
    assert report["functions"] == {"train_a": 30, "train_b": 30, "valid": 20, "test": 20}
    assert describe.render(report).startswith("3,001 pairs read")


def test_a_pair_in_the_other_order_is_the_same_pair(tmp_path):
    """The digest is of both functions in any order, so the copy is dropped; conflicting labels drop both."""
    records = [
        {"func": func(n), "other_func": func(n + 1), "label": n % 2} for n in range(20)
    ] + [{"func": func(1), "other_func": func(0), "label": 0}]  # fmt: skip
    source = Source(kind="jsonl", path=str(written(tmp_path / "pairs.jsonl", records)))
    samples = list(read(source, Tally(), "pair"))
    assert samples[0].digest == samples[-1].digest
    assert samples[0].func == PAIR_MARK.join(normalise(func(n)) for n in (0, 1))
    assert len({sample.digest for sample in samples}) == 20


def test_a_source_without_the_second_function_is_refused(tmp_path):
    source = Source(kind="jsonl", path=str(written(tmp_path / "a.jsonl", [{"func": func(0), "label": 1}])))
    with pytest.raises(DataError, match=r"no column 'other_func'; found 'func', 'label'.*data.sources.columns"):
        list(read(source, Tally(), "pair"))


def test_java_is_read_as_it_is(tmp_path):
    """Annotations, generics, lambdas and braces in literals: nothing is lost but comments and layout."""
    records = [{"func": JAVA, "other_func": func(n), "label": 1} for n in range(3)]
    source = Source(kind="jsonl", path=str(written(tmp_path / "java.jsonl", records)))
    tally = Tally()
    from moekd.data.clean import usable

    kept = list(usable(read(source, tally, "pair"), tally, max_characters=40_000, include_fixed=False))
    assert len(kept) == 3
    assert not tally.dropped
    text = kept[0].func.split(PAIR_MARK)[0]
    assert text.startswith("@Override\npublic static <T extends Comparable<T>> int[] sort(int... a)")
    assert "char open = '{';" in text
    assert '"http://example.org/{"' in text
    assert "comment" not in text


@pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA is not set")
def test_no_function_of_bigclonebench_is_dropped_as_broken(tmp_path):
    """4,000 pairs of 911 Java functions (859 without layout and comments): only copies and the split drop pairs."""
    path = Path(os.environ["MOEKD_DATA"]) / "bcb_pairs.parquet"
    source = {"kind": "parquet", "path": str(path), "columns": {"func": "func1", "other_func": "func2"}}
    facts = stage(settings_of(path, task="pair", sources=[source]), tmp_path / "data")
    assert facts["read"] == 4000
    assert set(facts["dropped"]) == {"duplicate", "functions on two sides of the split"}
    assert facts["dropped"]["duplicate"] == 54
    sides: dict[str, set[str]] = {}
    for part, samples in load_parts(tmp_path / "data").items():
        for sample in samples:
            for text in sample.func.split(PAIR_MARK):
                sides.setdefault(digest(text), set()).add(part)
    assert Counter(map(len, sides.values())).keys() == {1}
