"""Changed lines from diffs and from git, and which functions they touch."""

from __future__ import annotations

import subprocess

import pytest

from moekd.errors import SettingsError
from moekd.scan.diff import changed_since, read_diff, touches

DIFF = """diff --git a/src/a.c b/src/a.c
index 1..2 100644
--- a/src/a.c
+++ b/src/a.c
@@ -3,4 +3,4 @@ int f(void)
 context
-old
+new
 context
 context
@@ -20,3 +20,2 @@
 context
-gone
 context
--- a/gone.c
+++ /dev/null
@@ -1 +0,0 @@
-int g;
--- /dev/null
+++ b/new.c
@@ -0,0 +1,2 @@
+int h(void)
+{ return 1; }
\\ No newline at end of file
"""


def test_lines_by_hand():
    """Line 4 is new, one was deleted before it, and one before line 21; the deleted file is left out."""
    assert read_diff(DIFF) == {"src/a.c": ((3.5, 3.5), (4, 4), (20.5, 20.5)), "new.c": ((1, 1), (2, 2))}


@pytest.mark.parametrize(
    ("first", "last", "touched"),
    [(1, 3, False), (1, 4, True), (4, 4, True), (5, 19, False), (20, 21, True), (21, 30, False), (10, 20, False)],
)
def test_a_deletion_touches_a_function_only_from_inside(first, last, touched):
    assert touches(read_diff(DIFF)["src/a.c"], first, last) is touched


def test_without_context_lines():
    """What --unified=0 gives: a deletion names the line before it."""
    text = "--- a/a.c\n+++ b/a.c\n@@ -5,2 +4,0 @@\n-x\n-y\n@@ -9 +6,2 @@\n-z\n+z1\n+z2\n"
    assert read_diff(text) == {"a.c": ((4.5, 4.5), (4.5, 4.5), (5.5, 5.5), (6, 6), (7, 7))}


def test_quoted_and_plain_names():
    """Git quotes unusual bytes; other tools put a time stamp behind a tab."""
    hunk = "@@ -1 +1 @@\n-a\n+b\n"
    text = f'--- x\n+++ "b/na\\303\\251\\nme \\"q\\".c"\n{hunk}--- y\n+++ plain.c\t2020-01-01\n{hunk}'
    assert set(read_diff(text)) == {'naé\nme "q".c', "plain.c"}


def test_hunk_text_that_looks_like_a_header():
    """A deleted line `-- x` shows as `--- x`, an added `++ y` as `+++ y`: they are content."""
    text = "--- a/a.sql.c\n+++ b/a.sql.c\n@@ -1,2 +1,2 @@\n--- x\n+++ y\n a\n"
    assert read_diff(text) == {"a.sql.c": ((0.5, 0.5), (1, 1))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "no unified diff"),
        ("--- a\n+++ b\n@@ -1,3 +1,3 @@\n a\n", "cut off within a hunk"),
        ("--- a\n+++ b\n@@ -1,3 +1,3 @@\n a\nX\n", "damaged: a hunk holds the line 'X'"),
    ],
)
def test_what_is_no_diff_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        read_diff(text)


def test_an_empty_diff_touches_nothing():
    assert read_diff("") == {}
    assert read_diff("diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n") == {}


@pytest.fixture
def repository(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        ended = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return ended.stdout

    git("init", "-q", "-b", "trunk")
    (tmp_path / "a.c").write_text("int a;\nint b;\nint c;\n")
    git("add", ".")
    git("commit", "-qm", "one")
    return git


def test_changed_since_a_revision(repository, tmp_path):
    """Committed, uncommitted and untracked changes count; what others did on the base meanwhile does not."""
    repository("checkout", "-qb", "mine")
    (tmp_path / "a.c").write_text("int a;\nint B;\nint c;\n")
    repository("commit", "-qam", "two")
    (tmp_path / "new né.c").write_text("int n;\n")
    repository("checkout", "-q", "trunk")
    (tmp_path / "theirs.c").write_text("int t;\n")
    repository("add", "theirs.c")
    repository("commit", "-qm", "three")
    repository("checkout", "-q", "mine")
    assert changed_since("trunk", tmp_path) == {
        str(tmp_path / "a.c"): ((1.5, 1.5), (2, 2)),
        str(tmp_path / "new né.c"): None,
    }


def test_settings_of_the_user_do_not_change_the_answer(repository, tmp_path):
    repository("config", "diff.noprefix", "true")
    repository("config", "color.ui", "always")
    (tmp_path / "a.c").write_text("int a;\nint b;\nint C;\n")
    assert changed_since("HEAD", tmp_path) == {str(tmp_path / "a.c"): ((2.5, 2.5), (3, 3))}


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", ""])
def test_unknown_revisions(repository, tmp_path, revision):
    """A revision that looks like an option is never one."""
    with pytest.raises(SettingsError, match=r"is no revision that shares history with HEAD|git refused"):
        changed_since(revision, tmp_path)
    assert not (tmp_path / "x").exists()


def test_outside_of_a_repository(tmp_path):
    with pytest.raises(SettingsError, match="git refused"):
        changed_since("HEAD", tmp_path)
