"""Token ids kept ragged, cut into batches of similar length, and the byte-level BPE they come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.records import PAIR_MARK
from moekd.tokens import SPECIALS, Tokens, encode, functions_of, token_batches, train_bpe

ROWS = st.lists(st.lists(st.integers(0, 60_000), min_size=1, max_size=9), min_size=1, max_size=12)


@given(rows=ROWS, data=st.data())
def test_padding_against_a_loop(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
    ids, mask = Tokens.of(rows).padded(np.array(chosen), pad_id=7)
    longest = max(len(rows[row]) for row in chosen)
    assert ids.tolist() == [rows[row] + [7] * (longest - len(rows[row])) for row in chosen]
    assert mask.tolist() == [[1] * len(rows[row]) + [0] * (longest - len(rows[row])) for row in chosen]
    assert ids.dtype == mask.dtype == np.int64


@given(rows=ROWS, data=st.data())
def test_taking_rows(rows, data):
    """In the order asked for, repeated ones too."""
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    taken = Tokens.of(rows).take(np.array(chosen, dtype=np.int64))
    assert taken.lengths.tolist() == [len(rows[row]) for row in chosen]
    assert taken.flat.tolist() == [token for row in chosen for token in rows[row]]


def test_saved_and_loaded(tmp_path):
    tokens = Tokens.of([[1, 2, 3], [4], [5, 60_000]])
    tokens.save(tmp_path / "tokens.npz")
    loaded = Tokens.load(tmp_path / "tokens.npz")
    assert (loaded.flat.tolist(), loaded.offsets.tolist()) == ([1, 2, 3, 4, 5, 60_000], [0, 3, 4, 6])
    assert len(loaded) == 3


def test_no_rows():
    tokens = Tokens.of(())
    assert (len(tokens), tokens.lengths.tolist()) == (0, [])
    assert list(token_batches(tokens.lengths, budget=10, limit=2)) == []


# ---------------------------------------------------------------------------------------------- batches


@given(
    lengths=st.lists(st.integers(0, 50), max_size=40),
    budget=st.integers(1, 120),
    limit=st.integers(1, 9),
    seed=st.none() | st.integers(0, 99),
)
def test_batches(lengths, budget, limit, seed):
    """Each row exactly once; padded size within the budget, or one row alone; never more rows than the limit."""
    lengths = np.array(lengths, dtype=np.int64)

    def cut() -> list[list[int]]:
        rng = None if seed is None else np.random.default_rng(seed)
        return [rows.tolist() for rows in token_batches(lengths, budget=budget, limit=limit, rng=rng)]

    batches = cut()
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) <= limit
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget
    assert cut() == batches


def test_longest_first_without_a_generator():
    """A lack of memory shows at once."""
    lengths = np.array([3, 9, 1, 9, 4])
    batches = [rows.tolist() for rows in token_batches(lengths, budget=18, limit=9)]
    assert batches == [[1, 3], [4, 0, 2]]


def test_a_row_over_the_budget_is_alone():
    assert [rows.tolist() for rows in token_batches(np.array([2, 99, 2]), budget=10, limit=9)] == [[1], [0, 2]]


def test_seeds_change_order_and_neighbours():
    """Rows of equal length meet others in each epoch, and batches come in another order."""
    lengths = np.repeat([4, 8, 12], 20)
    one, other = (
        [frozenset(rows.tolist()) for rows in token_batches(lengths, budget=48, limit=64, rng=np.random.default_rng(s))]
        for s in (0, 1)
    )
    assert set(one) != set(other)
    longest = [[lengths[list(rows)].max() for rows in batches] for batches in (one, other)]
    assert longest[0] != longest[1]
    assert longest[0] != sorted(longest[0], reverse=True)


# --------------------------------------------------------------------------------------------- tokenizer


def test_special_tokens_and_bytes(tokenizer):
    """`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` 4, and each of the 256 bytes: nothing is unknown."""
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIALS)
    names = ("cls", "bos", "pad", "sep", "eos", "unk", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 0, 1, 2, 2, 3, 4]
    strange = "int ř = '\x01'; // \N{SNOWMAN} 你好 \U0001f600\t"
    ids = tokenizer(strange)["input_ids"]
    assert ids[0] == 0
    assert ids[-1] == 2
    assert 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == strange.strip()


def test_vocabulary_is_as_asked_or_as_the_text_allows(functions):
    texts = [sample.func for sample in functions]
    assert len(train_bpe(texts, vocabulary=700, max_length=64)) == 700
    assert len(train_bpe(["ab ab"], vocabulary=700, max_length=64)) < 270  # 5 specials, 256 bytes, few pairs


def test_lower_case_on_demand():
    texts = ["int Foo(Char *X);"] * 9
    lower, plain = (train_bpe(texts, vocabulary=300, max_length=64, lowercase=flag) for flag in (True, False))
    assert lower("INT FOO")["input_ids"] == lower("int foo")["input_ids"]
    assert plain("INT FOO")["input_ids"] != plain("int foo")["input_ids"]


@pytest.mark.parametrize("limit", [3, 10, 64])
def test_encoding_cuts_and_keeps_the_frame(tokenizer, functions, limit):
    """Specials count; what is cut is the end of the text."""
    texts = [sample.func for sample in functions[:30]] + [""]
    tokens = encode(tokenizer, texts, limit)
    for row, text in enumerate(texts):
        found = tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        whole = tokenizer(text, truncation=True, max_length=10_000)["input_ids"]
        assert found == (whole if len(whole) <= limit else [*whole[: limit - 1], 2])


def test_encoding_in_parts_changes_nothing(tokenizer):
    """Texts are handed to the library a thousand at a time."""
    texts = [f"int f{number};" for number in range(2003)]
    tokens = encode(tokenizer, texts, 64)
    assert len(tokens) == 2003
    for row in (0, 999, 1000, 1999, 2000, 2002):
        expected = tokenizer(texts[row])["input_ids"]
        assert tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]].tolist() == expected


def test_encoding_nothing(tokenizer):
    assert len(encode(tokenizer, [], 64)) == 0


# ---------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((3, 4), (3, 4)), ((9, 9), (5, 5)), ((2, 20), (2, 8)), ((20, 2), (8, 2)), ((20, 5), (5, 5)), ((6, 20), (5, 5))],
)
def test_a_pair_is_cut_fairly(lengths, kept):
    """13 tokens hold 10 of the functions: half each, and what a short one leaves is the other's."""
    bpe = train_bpe(["a b " * 50], vocabulary=300, max_length=13)
    one, other = ("a " * lengths[0]).strip(), ("b " * lengths[1]).strip()
    tokens = encode(bpe, [f"{one}{PAIR_MARK}{other}"], 13)
    a, b = (encode(bpe, [text], 3).flat[1] for text in "ab")
    start, end = SPECIALS.index("<s>"), SPECIALS.index("</s>")
    assert tokens.flat.tolist() == [start, *[a] * kept[0], end, *[b] * kept[1], end]


def test_functions_of_pairs_and_of_single_texts():
    """What a tokenizer learns from: never the mark."""
    assert functions_of(["x", f"y{PAIR_MARK}z"]) == ["x", "y", "z"]
