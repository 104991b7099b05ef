"""The lexer: normal form, digest, tokens, brackets."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.data.text import blank_comments, comments, count_lines, digest, ngrams, normalise, structural_fault, tokens

# What a lexer trips over: quotes, escapes, comment marks, line ends, odd blanks, digit separators, raw strings.
nasty = st.text(st.sampled_from(list("\"'\\/*\n\r\t \u00a0ab1R(){}u8")), max_size=60)

words = st.lists(
    st.sampled_from(
        ["int", "x1", "0x1F", "1e-5", "1'000", '"a // b"', r'"\""', "'\"'", r"'\\'", "/", "*", "(", "}", "->", ";"]
    ),
    min_size=1,
    max_size=20,
)
separators = st.sampled_from(  # none begins with a slash: it would make a comment of a `/` before it
    [" ", "\n", "\t ", "\r\n", "\f/* it's */", " // don't \"\n", " /* \n\n */ ", "\n\n\n"]
)


def test_normal_form_by_hand():
    """Comments, indentation, empty lines and runs of blanks go; what is inside literals stays."""
    func = (
        "/* copies\n   text */\nint copy(char  *to)\r\n"
        '{\r\n\r\n\tif (!to)   // don\'t\n        return  1; /* "a" */\n'
        '\tputs("//  no /* comment");\n}\n'
    )
    assert normalise(func) == ('int copy(char *to)\n{\nif (!to)\nreturn 1;\nputs("//  no /* comment");\n}')


def test_indentation_leaves_no_trace():
    """Indentation tells BigVul's labels apart (AUROC 0.64): texts that differ only in it become equal."""
    assert normalise("int f()\n {\n   return 0;\n }") == normalise("int f()\n{\n\treturn 0;\n}\n")


def test_doubled_line_ends_are_undone():
    """Devign's rows have them: after normalisation both copies have as many lines as the function."""
    func = "int f()\n{\nreturn 0;\n}"
    assert normalise(func.replace("\n", "\n\n")) == normalise(func.replace("\n", "\r\n")) == func
    assert count_lines(func) == 4


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        ("a/**/b", "a b"),  # a comment separates, as the standard says
        ("x = 1'000'000; // a", "x = 1'000'000;"),  # separators open no literal
        ("c = '\"'; // a", "c = '\"';"),
        ("c = u8'\"'; // a", "c = u8'\"';"),
        ('s = R"x(a // b" )x"; // c', 's = R"x(a // b" )x";'),  # raw strings know no escapes
        ('sR"(a" // b', 'sR"(a"'),  # sR is a name: an ordinary string follows
        (r's = "\\"; // a', r's = "\\";'),
        ("a // b \\\n c\nd", "a\nd"),  # a continued comment
        ("a /* b", "a"),  # never closed
        ('"a // b\nc // d', '"a // b\nc'),  # an unclosed string ends with its line
    ],
)
def test_comments_and_literals(func, expected):
    assert normalise(func) == expected


@given(nasty)
def test_normalising_twice_changes_nothing(func):
    once = normalise(func)
    assert normalise(once) == once


@given(nasty)
def test_lines_are_stripped_and_not_empty(func):
    assert all(line and line == line.strip() for line in normalise(func).split("\n") if normalise(func))


@given(words, st.data())
def test_digest_ignores_comments_and_white_space(code, data):
    """The same tokens with any comments and white space between them have one digest."""
    spaced = "".join(word + data.draw(separators) for word in code)
    assert digest(normalise(spaced)) == digest(normalise(" ".join(code)))


@given(words, st.data())
def test_tokens_do_not_depend_on_spacing(code, data):
    spaced = "".join(word + data.draw(separators) for word in code)
    assert tokens(spaced) == tokens(normalise(spaced)) == code


def test_digest_tells_different_code_apart():
    assert digest("int a = 1;") != digest("int a = 2;")
    assert len(digest("int a;")) == 16


def test_tokens_by_hand():
    """Longest operators first; a literal is one token; numbers keep suffix and exponent."""
    assert tokens('p->len <<= 0x1FUL+1.5e-3f; /* c */ puts("a b" "\\"");') == [
        *("p", "->", "len", "<<=", "0x1FUL", "+", "1.5e-3f", ";"),
        *("puts", "(", '"a b"', '"\\""', ")", ";"),
    ]


@pytest.mark.parametrize(
    ("func", "fault"),
    [
        ("int f(void) { return g[0]; }", None),
        ("int f(void);", "no function body"),
        ("int f(void) { puts(\"{\"); char c = '{'; }", None),  # brackets in literals do not count
        ("int f(void) {", "unbalanced brackets"),
        ("int f(void) { } }", "unbalanced brackets"),
        ("int f(void) { (] [) }", "unbalanced brackets"),
        ("int f(void) { /* } */ }", None),
    ],
)
def test_structural_faults(func, fault):
    assert structural_fault(func) == fault


def test_ngrams_against_plain_integers():
    """The wrapping array arithmetic gives what the formula gives on Python's integers."""
    from zlib import crc32

    code = ["if", "(", "x", ")", "y", ";"]

    def slow(run):
        mixed = 0
        for word in run:
            mixed = (mixed ^ crc32(word.encode())) * 0x9E3779B97F4A7C15 % 2**64
        return mixed >> 32

    for n in (1, 2, 5):
        assert ngrams(code, n).tolist() == [slow(code[i : i + n]) for i in range(len(code) - n + 1)]
    assert ngrams(code[:3], 5).tolist() == [slow(code[:3])]
    assert ngrams([], 5).dtype == np.uint32


@pytest.mark.parametrize(
    "unit",
    ['"', "'", '\\"', "\\'", "/*", "*/", "//", "/", "*", " ", "\n", "\r\n", 'R"(', 'R"a', "1'", ".", "(", "a", "a "],
)
def test_time_is_linear_in_length(unit):
    """Half a megabyte of what makes careless patterns quadratic (10**11 steps, an hour) takes seconds."""
    func = unit * (500_000 // len(unit))
    start = time.perf_counter()
    normalised = normalise(func)
    structural_fault(normalised)
    tokens(normalised)
    assert time.perf_counter() - start < 20


def test_five_megabytes_on_one_line():
    func = "int f(void) { " + 'x = "a"; /* b */ ' * 300_000 + "}"
    assert len(func) > 5_000_000
    assert structural_fault(normalise(func)) is None


def test_comments_and_their_places():
    """Marks inside a literal begin no comment; one that is not closed reaches to the end."""
    text = 'a; // one\n"// no"; /* two\n */ b /* three'
    assert list(comments(text)) == [(3, "// one"), (19, "/* two\n */"), (32, "/* three")]
    assert all(text.startswith(comment, start) for start, comment in comments(text))


@given(nasty)
def test_blanked_comments_leave_every_line_its_number(text):
    blanked = blank_comments(text)
    assert blanked.count("\n") == text.count("\n")
    assert "".join(tokens(blanked)) == "".join(tokens(text))
