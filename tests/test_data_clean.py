"""Cleaning: every function dropped has one reason, duplicates become one, contradictions go."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.data.clean import usable, without_duplicates
from moekd.data.tally import Tally
from moekd.data.text import digest
from moekd.records import Sample

CODE = "int f(int n, int m)\n{\nreturn g(n);\n}"


def sample(number: int, func: str = CODE, label: int = 0, dataset: str = "a", **known: str) -> Sample:
    return Sample(f"{dataset}:{number}", func, label, dataset, digest=digest(func), **known)


def clean(samples: list[Sample], *, include_fixed: bool = False) -> tuple[list[Sample], dict[str, int]]:
    tally = Tally(read=len(samples))
    kept = without_duplicates(list(usable(samples, tally, max_characters=1000, include_fixed=include_fixed)), tally)
    assert len(kept) == tally.kept
    return kept, dict(tally.dropped)


@pytest.mark.parametrize(
    ("func", "reason"),
    [
        ("", "empty"),
        ("int f() { }", "shorter than 30 characters"),
        ("int f(int some_number, int other_number);", "no function body"),
        ("int f(int some_number) { return g(1;  }", "unbalanced brackets"),
        ("int f(void) {" + "x = 1; " * 1000 + "}", "longer than data.max_characters"),
        (CODE, None),
    ],
)
def test_reasons(func, reason):
    kept, dropped = clean([sample(1, func)])
    assert dropped == ({reason: 1} if reason else {})
    assert len(kept) == (reason is None)


def test_a_function_of_five_megabytes_is_dropped_with_its_reason():
    _, dropped = clean([sample(1, "int f(void) { " + "x = 1; " * 750_000 + "}")])
    assert dropped == {"longer than data.max_characters": 1}


def test_fixed_versions_only_on_demand():
    """Without them, a fixed version that equals a vulnerable function of another fix contradicts nothing."""
    samples = [sample(1, label=1, kind="vulnerable"), sample(2, kind="fixed")]
    assert clean(samples) == ([samples[0]], {"fixed version": 1})
    assert clean(samples, include_fixed=True) == ([], {"conflicting labels": 2})


def test_the_first_of_equal_texts_learns_from_the_others():
    """Equal but for white space: the first stays and takes what it does not know, never what it knows."""
    spaced = CODE.replace("\n", " ")
    samples = [
        sample(1, label=1, project="linux"),
        sample(2, spaced, label=1, dataset="b", project="kernel", cwe="CWE-416"),
        sample(3, CODE, label=1, dataset="c", cwe="CWE-20", cve="CVE-2015-1", date="2015"),
    ]
    kept, dropped = clean(samples)
    assert kept == [replace(samples[0], cwe="CWE-416", cve="CVE-2015-1", date="2015")]
    assert dropped == {"duplicate": 2}


def test_a_text_with_both_labels_goes_in_all_copies():
    """Also across sources, and also when the contradiction comes last."""
    samples = [sample(1, label=1), sample(2, label=1, dataset="b"), sample(3, label=0, dataset="c")]
    other = sample(4, CODE.replace("g", "h"))
    assert clean([*samples, other]) == ([other], {"conflicting labels": 3})


def test_ids_become_unique():
    """Two sources may number alike; scores are tied to samples by id."""
    samples = [sample(1, CODE.replace("g", name)) for name in "pqr"]
    kept, _ = clean(samples)
    assert [s.id for s in kept] == ["a:1", "a:1#2", "a:1#3"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=30))
def test_one_label_for_each_text_that_is_left(drawn):
    """Against the definition: a text stays, once, exactly if all its copies agree."""
    samples = [sample(n, CODE.replace("g", f"g{text}"), label) for n, (text, label) in enumerate(drawn)]
    kept, _ = clean(samples)
    labels = {text: {label for t, label in drawn if t == text} for text, _ in drawn}
    agreeing = {digest(CODE.replace("g", f"g{text}")) for text, found in labels.items() if len(found) == 1}
    assert sorted(s.digest for s in kept) == sorted(agreeing)
