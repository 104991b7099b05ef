"""Near-duplicates: found by MinHash, checked exactly, joined transitively."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.data.duplicates import Union, join_near_duplicates, similarity
from moekd.data.text import ngrams, tokens


def sets_of(functions: list[str], jaccard: float = 0.7) -> list[int]:
    union = Union(len(functions))
    join_near_duplicates(functions, union, jaccard=jaccard)
    return union.sets()


def slow_sets_of(functions: list[str], jaccard: float) -> list[int]:
    """Every pair, with Python's sets of token tuples."""
    shingles = []
    for func in functions:
        words = tokens(func)
        shingles.append({tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))})
    union = Union(len(functions))
    for one, other in combinations(range(len(functions)), 2):
        a, b = shingles[one], shingles[other]
        if len(a & b) >= jaccard * len(a | b):
            union.join(one, other)
    return union.sets()


def long_function(rng: np.random.Generator, words: int = 80) -> list[str]:
    return [f"w{rng.integers(1000)}" for _ in range(words)]


def test_a_renamed_variable_is_found_a_different_function_is_not():
    base = " ".join(f"call{n}(x{n % 7});" for n in range(60))
    renamed = base.replace("call30", "other")
    different = " ".join(f"run{n}(y{n % 5});" for n in range(60))
    assert sets_of([base, different, renamed, different + " z"]) == [0, 1, 0, 1]


@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.9])
def test_against_all_pairs(jaccard):
    """200 functions, each with copies changed in 1 to 8 places: the same sets as comparing all pairs exactly."""
    rng = np.random.default_rng(3)
    functions = []
    for _ in range(40):
        base = long_function(rng)
        for changes in (0, 1, 2, 4, 8):
            copy = list(base)
            for place in rng.choice(len(base), changes, replace=False):
                copy[place] = "changed"
            functions.append(" ".join(copy))
    assert sets_of(functions, jaccard) == slow_sets_of(functions, jaccard)


def test_short_functions_have_one_shingle():
    """Fewer than five tokens: equal or not."""
    assert sets_of(["a b", "a  b", "a c", ""]) == [0, 0, 2, 3]


def test_many_copies_cost_no_square():
    """3,000 equal functions are 4.5 million pairs; each is checked against one."""
    assert set(sets_of(["int f ( ) { return 1 ; }"] * 3000)) == {0}


def test_similarity_by_hand():
    """{1, 2, 3} and {2, 3, 4}: two shared of four."""
    one = np.unique(ngrams(["a", "b", "c"], 1))
    other = np.unique(ngrams(["b", "c", "d"], 1))
    assert similarity(one, other) == 0.5


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_union_is_the_connected_components(pairs):
    """Against scipy."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    union = Union(10)
    for one, other in pairs:
        union.join(one, other)
    rows, columns = [p[0] for p in pairs], [p[1] for p in pairs]
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(10, 10))
    _, expected = connected_components(graph, directed=False)
    sets = union.sets()
    assert all((sets[i] == sets[j]) == (expected[i] == expected[j]) for i in range(10) for j in range(10))
    assert all(s <= i for i, s in enumerate(sets))  # a set is named by its smallest member


def test_none_is_no_key():
    union = Union(4)
    union.join_equal(["a", None, None, "a"])
    assert union.sets() == [0, 1, 2, 0]
