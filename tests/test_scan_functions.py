"""Functions of C and C++ files: names, lines, code that half parses, and inputs made to hurt."""

from __future__ import annotations

import time
from pathlib import PurePath

import pytest

from moekd.syntax import functions, language_of


def names(source: bytes, language="c", **options) -> list[str]:
    return [span.name for span in functions(source, language, **options)]


def test_names_lines_and_offsets():
    source = b"\nint *f(void)\n{\n  return 0;\n}\ntemplate <class T>\nT &C::g(T &a) { return a; }\n"
    first, second = functions(source, "cpp")
    assert (first.name, first.first_line, first.last_line) == ("f", 2, 5)
    assert (second.name, second.first_line, second.last_line) == ("C::g", 6, 7)
    assert source[second.start : second.end].startswith(b"template <class T>")
    assert first.whole
    assert second.whole


def test_methods_in_a_class_are_functions_and_lambdas_are_not():
    source = b"struct A { int f() { auto g = [](int x) { return x; }; return g(1); } int h() { return 2; } };"
    assert names(source, "cpp") == ["f", "h"]


def test_macros_do_not_hide_functions():
    """Code as in kernels: macros for attributes, loops without semicolon, conditional heads."""
    source = b"""
static int __init bar(void)
{
  list_for_each(x, y) { z(); }
  return 1;
}
EXPORT_SYMBOL(bar)
int kr(a, b) int a; char *b; { return a; }
#ifdef A
int q(int a) {
#else
int q(long a) {
#endif
  return a;
}
"""
    assert names(source) == ["bar", "kr", "q"]


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_unfinished_functions(language):
    """While somebody types, a body has no end: it reaches to the next function or to the end of the file."""
    source = (
        b"int a(void) { return 1; }\nstatic char *unf(int x)\n{\n  if (x) {\n  y();\n\nint b(int z)\n{\n return z;\n}\n"
    )
    assert names(source, language) == ["a", "b"]
    found = functions(source, language, unfinished=True)
    assert [(span.name, span.first_line, span.last_line, span.whole) for span in found] == [
        ("a", 1, 1, True),
        ("unf", 2, 5, False),
        ("b", 7, 10, True),
    ]


def test_where_nothing_is_unfinished_nothing_is_added():
    source = b"int f(void) { return 1; }\nint g(int a);\nint t[] = {1, 2};\n"
    assert functions(source, "c", unfinished=True) == functions(source, "c")


@pytest.mark.parametrize(
    "source",
    [
        b"{" * 300_000,
        b"int f(){ x = " + b"(" * 300_000,
        b"void f(){" + b"{" * 100_000 + b"}" * 100_000 + b"}",
        b"void f(){" + b"if(x)" * 50_000 + b";}",
        b"void f(){" * 50_000,
        bytes(range(1, 256)) * 1000,
        b"",
        b"\0" * 1000,
    ],
    ids=["braces", "parentheses", "blocks", "ifs", "functions", "junk", "empty", "nul"],
)
def test_hostile_sources_end_in_time(source):
    """A query of tree-sitter took minutes for the first of these."""
    start = time.process_time()  # of this process: other work on the machine does not count
    functions(source, "c", seconds=60, unfinished=True)
    assert time.process_time() - start < 20


def test_the_time_limit_holds():
    """Half a megabyte of this takes the C++ grammar several seconds."""
    with pytest.raises(TimeoutError, match=r"not parsed within 0\.2 s"):
        functions(b"a<" * 250_000, "cpp", seconds=0.2)
    assert names(b"int f() { return 1; }", "cpp") == ["f"], "the parser is usable afterwards"


@pytest.mark.parametrize(
    ("name", "source", "language"),
    [
        ("a.c", b"", "c"),
        ("a.C", b"", "cpp"),
        ("a.h", b"int f(void);", "c"),
        ("a.h", b"namespace a {", "cpp"),
        ("a.CPP", b"", "cpp"),
        ("a.py", b"int f(void) {}", None),
        ("Makefile", b"", None),
    ],
)
def test_language_by_name_and_content(name, source, language):
    assert language_of(PurePath(name), source) == language
