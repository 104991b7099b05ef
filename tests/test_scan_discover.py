"""Which files a scan looks at, and that whatever it leaves out is counted or listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moekd.errors import SettingsError
from moekd.scan.discover import Discovery


def tree(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def found(discovery: Discovery) -> list[str]:
    return [discovery.shown(path) for path in discovery.files()]


def test_c_and_cpp_files_in_order(tmp_path):
    tree(tmp_path, b__z_dot_c="", b__a_dot_cpp="", a_dot_h="", readme_dot_txt="", Makefile="", _dot_git__x_dot_c="")
    discovery = Discovery([tmp_path], root=tmp_path)
    assert found(discovery) == ["a.h", "b/a.cpp", "b/z.c"]
    assert (discovery.counts.other, discovery.counts.ignored) == (2, 0)


def test_ignore_files_as_git_has_them(tmp_path):
    """The innermost file decides, its last pattern first; `!` takes back; .moekdignore comes after .gitignore."""
    tree(
        tmp_path,
        _dot_gitignore="build/\n*.gen.c\n/top.c\n",
        build__a_dot_c="",
        src__top_dot_c="",
        top_dot_c="",
        src__x_dot_gen_dot_c="",
        src__y_dot_gen_dot_c="",
        src___dot_gitignore="!y.gen.c\n",
        src__third__t_dot_c="",
        src___dot_moekdignore="third\n",
    )
    discovery = Discovery([tmp_path], root=tmp_path)
    assert found(discovery) == ["src/top.c", "src/y.gen.c"]
    assert discovery.counts.ignored == 4


def test_rules_of_folders_above_hold_up_to_the_repository(tmp_path):
    tree(tmp_path, _dot_gitignore="a.c\n", repo___dot_gitignore="b.c\n", repo__src__a_dot_c="", repo__src__b_dot_c="")
    (tmp_path / "repo" / ".git").mkdir()
    assert found(Discovery([tmp_path / "repo" / "src"], root=tmp_path)) == ["repo/src/a.c"]


def test_what_was_named_is_scanned_whatever_the_rules_say(tmp_path):
    tree(tmp_path, _dot_gitignore="a.c\nout/\n", a_dot_c="", out__b_dot_c="")
    (tmp_path / ".git").mkdir()
    assert found(Discovery([tmp_path / "a.c", tmp_path / "out"], root=tmp_path)) == ["a.c", "out/b.c"]


def test_a_file_named_twice_is_scanned_once(tmp_path):
    tree(tmp_path, src__a_dot_c="", src__b_dot_c="")
    paths = [tmp_path / "src" / "b.c", tmp_path / "src", tmp_path / "src" / ".." / "src"]
    assert found(Discovery(paths, root=tmp_path)) == ["src/b.c", "src/a.c"]


def test_links_are_counted_and_a_loop_of_them_does_no_harm(tmp_path):
    tree(tmp_path, src__a_dot_c="")
    (tmp_path / "src" / "loop").symlink_to(tmp_path)
    (tmp_path / "src" / "self.c").symlink_to("self.c")
    discovery = Discovery([tmp_path], root=tmp_path)
    assert found(discovery) == ["src/a.c"]
    assert discovery.counts.links == 2
    assert found(Discovery([tmp_path / "src" / "loop" / "src"], root=tmp_path)) == ["src/loop/src/a.c"]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    tree(tmp_path, a_dot_c="", shut__b_dot_c="")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    discovery = Discovery([tmp_path], root=tmp_path)
    assert found(discovery) == ["a.c"]
    assert [(one.path, one.reason) for one in discovery.unread] == [("shut", "folder: Permission denied")]


def test_a_pattern_that_makes_no_sense_is_told_and_the_others_hold(tmp_path):
    tree(tmp_path, _dot_gitignore="!\na.c\n", a_dot_c="", b_dot_c="")
    discovery = Discovery([tmp_path], root=tmp_path)
    assert found(discovery) == ["b.c"]
    assert [(one.path, one.line) for one in discovery.notes] == [(".gitignore", 1)]


def test_deep_folders(tmp_path):
    """Deeper than Python's recursion limit would allow by calls."""
    folder, depth = tmp_path, 0
    while depth < 300 and len(os.fspath(folder)) < 3800:
        folder, depth = folder / "d", depth + 1
    folder.mkdir(parents=True)
    (folder / "a.c").write_text("")
    assert len(found(Discovery([tmp_path], root=tmp_path))) == 1


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"new\nline \xff.c")
    (tmp_path / name).write_text("")
    assert found(Discovery([tmp_path], root=tmp_path)) == [name]


def test_missing_paths_are_usage_errors(tmp_path):
    with pytest.raises(SettingsError, match=r"there is no file or folder .*none\\n\.c"):
        Discovery([tmp_path / "none\n.c"], root=tmp_path)


def test_paths_that_cannot_be_looked_at_are_usage_errors(tmp_path):
    """A name longer than the file system allows, and a link to itself."""
    with pytest.raises(SettingsError, match=r"cannot look at .*: File name too long"):
        Discovery([tmp_path / ("x" * 5000)], root=tmp_path)
    (tmp_path / "self.c").symlink_to("self.c")
    with pytest.raises(SettingsError, match="there is no file or folder"):
        Discovery([tmp_path / "self.c"], root=tmp_path)
