"""Rewrites: what a renaming may touch, that it can be undone, that code still compiles and computes the same."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd import rewrite
from moekd.data import templates
from moekd.data.embedded import generate
from moekd.data.text import normalise, tokens
from moekd.errors import RewriteError
from moekd.rewrite import REWRITES, Code, Rewrite, Template, apply, fault_of_renaming, is_legal

FUNCTIONS = [sample.func for sample in generate(120, 3)]


def names_of(text: str) -> set[str]:
    return {one.name for one in Template.of(text).identifiers}


def compiler_output(parts: list[str], folder: Path) -> str:
    """What the compiler says about functions of any names, all in one file after the prelude."""
    source = [templates.PRELUDE]
    for n, function in enumerate(parts):
        name = re.search(r"(\w+)\s*(?:/\*.*?\*/\s*)*\(", function)[1]
        source.append(f"#define {name} {name}_{n}\n{function}\n#undef {name}\n")
    (folder / "functions.c").write_text("\n".join(source), encoding="utf-8")
    command = ["cc", "-std=gnu11", "-fsyntax-only", "-w", "functions.c"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr


def real_functions(count: int) -> list[str]:
    if "MOEKD_DATA" not in os.environ:
        pytest.skip("MOEKD_DATA names no folder of data sets")
    import pyarrow.parquet as pq

    column = pq.read_table(Path(os.environ["MOEKD_DATA"]) / "bigvul.parquet", columns=["func"]).column("func")
    step = len(column) // count
    return [normalise(column[row].as_py()) for row in range(0, step * count, step)]


# ------------------------------------------------------------------------------------------------ identifiers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int f(int a, char *b) { long c = a; return c + *b; }", {"a", "b", "c"}),
        ("int f(a, b) int a; char *b; { return a + *b; }", {"a", "b"}),
        ("int f(int v[3], int (*p)(int q)) { return v[0] + sizeof(p); }", {"v", "p", "q"}),
        ("int f(int n) { for (int i = 0, k = 1; i < n; i++) k += i; return n; }", {"n", "i", "k"}),
        ("int f(int n) { return n + total; }", {"n"}),  # a global
        ("int f(int n) { { int total = n; } return total; }", {"n"}),  # a local, and a global beyond its block
        ("int f(int x) { { int x = 2; x++; } return x; }", {"x"}),  # both are locals: renamed together
        ("int f(struct s *p, int len) { return p->len + len; }", {"p", "len"}),  # the field stays
        ("int f(struct s *p) { struct s q = { .len = 1 }; return p->len + q.len; }", {"p", "q"}),
        ("int f(int n) { goto n; n: return 1; }", {"n"}),  # labels have a name space of their own
        ("int f(int (*run)(int)) { return run(1); }", set()),  # a callee
        ("int f(int n) { extern int m; int g(int k); return m + g(n); }", {"n", "k"}),
        ("int f(void) { static DEFINE_MUTEX(lock); return use(&lock); }", set()),  # a macro that reads like one
        ("int f(void) { LIST_HEAD(todo); DECLARE_BITMAP(bits, 8); return use(&todo, bits); }", set()),
        ("int f(int a) {\n#ifdef a\nreturn 1;\n#endif\nreturn a; }", set()),  # a macro's name
        ("int f(int a) {\n#ifdef X\nint b = a;\n#endif\nreturn b; }", {"a"}),  # without X, b is a global
        ("int f(int a) {\n#ifdef X\nint b = a;\nreturn b;\n#else\nreturn a;\n#endif\n}", {"a", "b"}),
        ("int f(int a, int b) {\n#define SUM (a + 1)\nreturn SUM + b; }", {"b"}),  # read by a macro
        ("int f(int link, struct q *h) { TAILQ_FOREACH(e, h, link); return link; }", {"h"}),  # a field's name
        ("int f(int e, int t) { LIST_FOREACH_SAFE(x, &h, e, t); return e + t; }", set()),  # a field, then a variable
        ("int f(struct s *s) { return ((struct s *)s)->x; }", set()),  # a type of the same name
        ('int f(int x, int y) { asm("mov %[x], %0" : "=r"(y) : [x] "r"(x)); return y; }', {"y"}),  # in the string, too
        ('int f(int x, int y) { asm goto ("jmp %l[x]" : : "r"(y) : : x); x: return x; }', {"y"}),
        ("int f(int x) { int y = x; __asm { mov eax, x } return y; }", {"y"}),  # Microsoft's
        ("int f(int n, int m) { void *p = &&n; goto *p; n: return n + m; }", {"m"}),  # GNU: labels as values
        ("int f(int n) { static void *t[] = { &&n, &&m }; goto *t[0]; n: m: return n; }", {"t"}),
        ("int f(int cold) { [[gnu::cold]] int x = cold; return x; }", {"x"}),  # an attribute of the same name
        ("int A::f(A *p, int y) { A x; p->~x(); return y; }", {"p", "y"}),
        ("int f(int UNUSED n, int m) { return n + m; }", {"m"}),  # the grammar takes the macro for the name
        ("long f(void __user *, int m) { return m; }", {"m"}),
        ("int f(uint len, u_short code _U_)\n{\nint t = code; return t + len; }", {"len", "code", "t"}),  # a macro
        ("f(a) { register i; int k = a; return i + k; }", {"k"}),  # the parser adds names without text
        ("int f(int n) { SAVE\ntotal = n; return total; }", {"n"}),  # a macro, and an assignment to a global
        ("int f(int n, int m) {\n#ifdef X\nif (m) n = 2;\n#endif\nelse\nn = 1;\nreturn n; }", {"n", "m"}),
        ("void f(char *p) { delete head; head = 0; delete p; }", {"p"}),  # C++ that C reads: a declaration of head
        ("int f(int n) {\n#define SHOW(x) say(#x, x)\nSHOW(n + 1); return n; }", set()),  # a macro makes text of it
        ("int f(int a, int b) {\n#define TWO(x) \\\n  x##_2\nint b_2 = a;\nb = TWO(b); return b; }", {"a"}),
        ("int f(int a, int b) {\n#define T(x) #x\n#define U(x) T(x)\nsay(U(a)); return b; }", {"b"}),
        ("int f(int a) {\n#define TWICE(x) (2 * (x))\nreturn TWICE(a); }", {"a"}),
        ("int f(void) { enum { one, two }; int n = two; return n; }", {"n"}),
        ("int f(int time, int NULL_OK) { return time + NULL_OK; }", {"NULL_OK"}),  # a library name stays
        ("int f(int größe) { return größe + 1; }", {"größe"}),
        ("int f(void) { return 0; }", set()),
        ("int x;", set()),
        ("", set()),
        ("}}} if (( int int", set()),
        ("int A::f(int x) const { for (auto &e : all) e += x; return ns::x; }", {"e"}),
        (
            "A::A(int x) : x_(x), y{x} { auto [a, b] = g(x); try { h(a); } catch (E &e) { log(e); } }",
            {"x", "a", "b", "e"},
        ),
        ("int A::f(int x) { auto l = [&x, y = x](int q) { return q + x; }; return l(x); }", {"x", "q"}),
        ("int A::f(int v) { struct B { int v; int g() { return v; } }; return v + std::max(1, 2); }", set()),
    ],
)
def test_identifiers(text, expected):
    """Locals and parameters whose every occurrence is understood, and nothing else."""
    assert names_of(text) == expected


def test_errors_stay_local():
    """What the parser did not understand is left alone; what it did is not lost with it."""
    text = "int f(int a, int b) { int c = container_of(a, struct foo, b); return c @ b; }"
    assert "a" in names_of(text)
    assert "b" not in names_of(text)


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("buffer", True),
        ("x1", True),
        ("_len", True),
        ("N", True),
        ("", False),
        ("1x", False),
        ("a-b", False),
        ("größe", False),
        ("while", False),
        ("class", False),  # C++
        ("malloc", False),
        ("__x", False),
        ("_X", False),
        ("uint8_t", False),
        ("MAX_LEN", False),
        ("NULL", False),
        ("true", False),
        ("x" * 64, False),
    ],
)
def test_legal_names(name, legal):
    assert is_legal(name, "c") is legal


# ------------------------------------------------------------------------------------------------- renaming


def test_renaming_by_hand():
    """Fields, strings, comments and non-ASCII text around the spans stay."""
    text = 'int f(struct s *len, int n) { /* len é */ return len->len + g("len n ü", n); }'
    template = Template.of(text)
    renaming = {"len": "box", "n": "count"}
    assert template.render(renaming) == (
        'int f(struct s *box, int count) { /* len é */ return box->len + g("len n ü", count); }'
    )
    assert fault_of_renaming(template, renaming) is None
    assert template.render({}) == text
    assert template.occurrences("n") == [1, 3]
    assert template.replace_one({"len": "box"}, 3, "<unk>").endswith('g("len n ü", <unk>); }')


@pytest.mark.parametrize(
    ("renaming", "fault"),
    [
        ({"a": "total"}, "name in use"),  # would catch the global
        ({"a": "b"}, "name in use"),
        ({"a": "g"}, "name in use"),  # a callee
        ({"a": "field"}, "name in use"),
        ({"a": "x", "b": "x"}, "one name for two variables"),
        ({"a": "for"}, "illegal name"),
        ({"a": "x y"}, "illegal name"),
        ({"total": "x"}, "not a local variable"),
        ({"a": "x", "b": "y"}, None),
        ({"a": "a"}, None),
    ],
)
def test_faults_of_renamings(renaming, fault):
    """Every way to change the meaning is named and refused."""
    template = Template.of("int f(int a, struct s *b) { return a + total + g(b->field); }")
    assert fault_of_renaming(template, renaming) == fault


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FUNCTIONS), st.randoms(use_true_random=False))
def test_random_renamings_keep_all_but_the_names(text, random):
    """Any free legal names: no fault, the tokens differ in the renamed names only, and the way back is exact."""
    template = Template.of(text)
    pool = ["buf2", "n_items", "p", "value3", "tmp", "ctx2", "some_rather_long_name", "q", "cursor", "w1"]
    free = [name for name in pool if template.is_free(name)]
    chosen = [one.name for one in template.identifiers if random.random() < 0.6]
    renaming = dict(zip(chosen, random.sample(free, len(free)), strict=False))
    assert fault_of_renaming(template, renaming) is None
    changed = template.render(renaming)
    back = {new: old for old, new in renaming.items()}
    assert Template.of(changed).render(back) == text
    assert len(tokens(changed)) == len(tokens(text))
    for before, after in zip(tokens(text), tokens(changed), strict=True):
        assert after == before or renaming[before] == after


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="int f(a,b){} =;*&\"'#/\n\\éλ😀<>:+-", max_size=80))
def test_any_text_has_a_template(text):
    """Whatever the text: no crash, written out unchanged, and no fault in changing nothing."""
    template = Template.of(text)
    assert template.render({}) == text
    assert fault_of_renaming(template, {}) is None


def test_renamed_functions_compile(tmp_path):
    """120 generated functions compile before and after all their locals are renamed."""
    renamed = []
    for text in FUNCTIONS:
        template = Template.of(text)
        renamed.append(template.render({one.name: f"renamed_{n}" for n, one in enumerate(template.identifiers)}))
    assert compiler_output(FUNCTIONS, tmp_path) == ""
    assert compiler_output(renamed, tmp_path) == ""
    assert sum(a != b for a, b in zip(FUNCTIONS, renamed, strict=True)) == len(FUNCTIONS)


def test_renamed_real_functions():
    """Of 300 real functions, most have something to rename and at most 1 % are refused by the check."""
    faults, with_names = Counter(), 0
    for text in real_functions(300):
        template = Template.of(text)
        with_names += bool(template.identifiers)
        renaming = {one.name: f"renamed{n}" for n, one in enumerate(template.identifiers)}
        faults[fault_of_renaming(template, renaming)] += 1
        assert template.render({}) == text
    assert with_names >= 0.8 * 300
    assert faults[None] >= 0.99 * 300, faults


def complaints(text: str, folder: Path) -> list[str]:
    """Lines and kinds of the compiler's errors, without names and advice."""
    (folder / "one.c").write_text(templates.PRELUDE + text, encoding="utf-8")
    command = ["cc", "-std=gnu89", "-fsyntax-only", "-w", "-fmax-errors=0", "-fdiagnostics-format=text", "one.c"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return re.findall(r"one\.c:(\d+):\d+: error: ([^;\n]*)", re.sub(r"[‘'].*?[’']", "NAME", ended.stderr))


def test_compiler_sees_no_difference_in_renamed_real_functions(tmp_path):
    """300 real functions: what compiled compiles, and what misses its types makes the same errors on the same lines."""
    compared = compiled = 0
    for text in real_functions(300):
        template = Template.of(text)
        if template.code.language != "c" or not template.identifiers:
            continue
        renamed = template.render({one.name: f"renamed{n}" for n, one in enumerate(template.identifiers)})
        before = complaints(text, tmp_path)
        assert complaints(renamed, tmp_path) == before, renamed
        compared += 1
        compiled += not before
    assert compared >= 100
    assert compiled >= 6


def test_a_long_function_is_quick():
    """10,000 lines, and a nesting of 5,000 levels, which would end a recursive walk."""
    body = "".join(f"a = a + g({n}, b);\n" for n in range(10_000))
    template = Template.of(f"int f(int a, int b) {{\n{body}return a; }}")
    assert [len(one.spans) for one in template.identifiers] == [20_002, 10_001]
    assert "c = c + g(9999, b)" in template.render({"a": "c"})
    nested = Template.of("int f(int a) {" + "{" * 5000 + "a++;" + "}" * 5000 + "}")
    assert [one.name for one in nested.identifiers] == ["a"]


# ----------------------------------------------------------------------------------------- other rewrites


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (
            "reorder_declarations",
            "int f(int n) { int a = 1; char *b; return n; }",
            "int f(int n) { char *b; int a = 1; return n; }",
        ),
        (
            "for_to_while",
            "int f(int n) { for (int i = 0; i < n; i++) n--; return n; }",
            "int f(int n) { { int i = 0; while (i < n) {\nn--; i++; } } return n; }",
        ),
        ("for_to_while", "void f(void) { for (;;) g(); }", "void f(void) { {  while (1) {\ng(); } } }"),
        (
            "swap_branches",
            "int f(int n) { if (n) return 1; else return 2; }",
            "int f(int n) { if (!(n)) { return 2; } else { return 1; } }",
        ),
        ("increment", "void f(int n) { n++; }", "void f(int n) { n += 1; }"),
        ("increment", "void f(struct s *p) { --p->n[0]; }", "void f(struct s *p) { p->n[0] -= 1; }"),
        ("parentheses", "void f(int n) { n = 1; }", "void f(int n) { n = (1); }"),
        (
            "dead_code",
            "void f(int n) { return; }",
            "void f(int n) { if (0) { int unused0 = 0; (void)unused0; }\nreturn; }",
        ),
    ],
)
def test_rewrites_by_hand(name, before, after):
    """One possible place each, so the place that is drawn does not matter."""
    assert apply(name, before, np.random.default_rng(0)) == after


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reorder_declarations", "int f(void) { int a = 1; int b = a; return b; }"),  # reads the other
        ("reorder_declarations", "int f(void) { int a = g(); int b = g(); return a - b; }"),  # order of calls
        ("reorder_declarations", "int f(int n) { int a[n]; int b = n++; return b; }"),
        ("reorder_declarations", "int A::f() { Lock lock; int n = shared; return n; }"),  # C++: constructors run
        ("for_to_while", "int f(int n) { for (int i = 0; i < n; i++) { if (i) continue; g(); } return n; }"),
        ("for_to_while", "void f(int *v) {\n#pragma omp parallel for\nfor (int i = 0; i < 9; i++) v[i] = i;\n}"),
        ("swap_branches", "int f(int n) { if (n) return 1; return 2; }"),
        ("swap_branches", "int A::f(int n) { if (int k = n) return k; else return 2; }"),  # declares in its condition
        ("increment", "int f(int n) { return n++; }"),  # its value is used
        ("increment", "int f(int n) { return ({ n++; }); }"),
        ("increment", "void A::f(It it) { it++; }"),  # C++: may have no +=
        ("parentheses", "void f(int n) { int a[] = MACRO; n = CALL; }"),
        ("dead_code", "int f(int n);"),
        ("comments_and_space", ""),
    ],
)
def test_rewrites_that_do_not_apply(name, text):
    """ "Does not apply" is an answer of its own, where the change could alter the meaning or has no place."""
    assert apply(name, text, np.random.default_rng(0)) is None


def test_continue_of_an_inner_loop_is_no_obstacle():
    """Only a `continue` of the loop itself would skip the step."""
    text = "int f(int n) { for (; n; n--) while (g()) { continue; } return n; }"
    assert "while (n)" in apply("for_to_while", text, np.random.default_rng(0))


@pytest.mark.parametrize("name", REWRITES)
def test_rewritten_functions_compile(name, tmp_path):
    """Generated functions, and one that has a place for every rewrite."""
    rng = np.random.default_rng(1)
    texts = [*FUNCTIONS[:60], PROGRAM]
    changed = [after for text in texts if (after := apply(name, text, rng)) is not None]
    assert changed
    assert compiler_output(changed, tmp_path) == ""


def test_compiler_sees_no_new_kind_of_error_in_rewritten_real_functions(tmp_path):
    """100 real functions, which mostly miss their types: a rewrite adds and removes no kind of error.

    `p++` and `p += 1` differ in the words of the complaint about an incomplete type.
    """

    def kinds(text: str) -> set[str]:
        return {kind for _, kind in complaints(text, tmp_path) if "incomplete type" not in kind}

    rng, compared = np.random.default_rng(0), Counter()
    for text in real_functions(100):
        if Template.of(text).code.language != "c":
            continue
        before = kinds(text)
        for name in REWRITES:
            after = apply(name, text, rng)
            if after is not None:
                compared[name] += 1
                assert kinds(after) == before, after
    assert set(compared) == set(REWRITES)
    assert compared.total() >= 100


PROGRAM = """int compute(int n, int *v)
{
    int total = 0;
    unsigned int twice = 2;
    char *word = "a // b /* c";
    int i, j = 7;
    for (i = 0; i < n; i++) {
        if (v[i] % 2)
            total += v[i];
        else if (v[i] % 3)
            total -= i * twice;
        else
            j--;
        switch (i) { case 2: total++; break; default: j++, total--; }
    }
    for (int k = 0, m = 3; k < m; ++k)
        for (j = 0; j < 3; j++) { if (j == k) continue; total = total * 3 + j; }
    while (n-- > 0) { total ^= n + word[n % 5]; }
    return total + j;
}"""

MAIN = """
#include <stdio.h>
%s
int main(void) { int v[] = {3, 1, 4, 1, 5, 9, 2, 6}; for (int n = 0; n <= 8; n++) printf("%%d ", compute(n, v)); }
"""


def answers_of(text: str, folder: Path) -> str:
    (folder / "main.c").write_text(MAIN % text)
    subprocess.run(["cc", "-std=gnu11", "-O1", "-w", "-o", "main", "main.c"], cwd=folder, check=True)
    return subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout


def test_rewritten_program_computes_the_same(tmp_path):
    """All rewrites on top of each other, three rounds with a renaming: compiled and run, the same nine answers."""
    rng = np.random.default_rng(2)
    wanted = answers_of(PROGRAM, tmp_path)
    text = PROGRAM
    for number in range(3):
        for name in REWRITES:
            text = apply(name, text, rng) or text
        template = Template.of(text)
        text = template.render({one.name: f"x{number}_{n}" for n, one in enumerate(template.identifiers)})
        assert answers_of(text, tmp_path) == wanted, text
    assert len(tokens(text)) > len(tokens(PROGRAM)) + 20


def test_rewrites_of_real_functions():
    """Each output of 150 real functions passed its own check; each rewrite finds a place in some."""
    texts, rng = real_functions(150), np.random.default_rng(3)
    for name in REWRITES:
        assert sum(apply(name, text, rng) is not None for text in texts) >= 5, name


def test_a_broken_rewrite_is_caught(monkeypatch):
    """The product checks: a rewrite that drops a statement raises, with the difference."""
    broken = Rewrite(lambda code, rng: code.text.replace("n++;", ""), REWRITES["comments_and_space"].keeps)
    monkeypatch.setitem(rewrite.REWRITES, "broken", broken)
    with pytest.raises(RewriteError, match=r"-int f\(int n\) { n\+\+; return n; }"):
        apply("broken", "int f(int n) { n++; return n; }", np.random.default_rng(0))


def test_language_by_what_is_understood():
    assert Code.of("int f(int n) { return n; }").language == "c"
    assert Code.of("int A::f(int n) { return std::min(n, 1); }").language == "cpp"
