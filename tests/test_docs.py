"""The pages that users read: their commands, options, settings and names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import moekd
from moekd.cli import app
from moekd.config import MoekdSettings
from moekd.settings_loading import flat, load_pretrain_settings, load_settings

ROOT = Path(__file__).parent.parent
NAMES = ("cli", "data", "method", "pretraining", "scan")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES)]


def commands(page: Path) -> list[list[str]]:
    """The words behind `moekd` of every command line in a code block of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = (line for block in blocks for line in block.splitlines())
    found = (re.search(r"^(?:\w+=\S+ )*(?:\S*/)?(?:moekd|torchrun .* -m moekd) (.*)", line) for line in lines)
    return [shlex.split(one[1].split("  ")[0], comments=True) for one in found if one]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    for words in commands(page):
        command = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and not rest[0].startswith("-"):
            assert rest[0] in command.commands, words
            command = command.commands[rest.pop(0)]
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_there_are_commands_to_test():
    assert len(commands(ROOT / "README.md")) >= 6
    assert ["pretrain", "configs/pretrain.toml"] in commands(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_changed_settings_exist(page):
    """Every `--set KEY=VALUE`, in code blocks and in sentences, loads on top of a shipped config."""
    for quoted, plain in re.findall(r"--set (?:'([^']+)'|([\w.]+=[^\s`]+))", page.read_text()):
        override = quoted or plain
        key = override.partition("=")[0]
        if key in ("KEY", "search.points"):  # the latter is tested with its command
            continue
        of_run = any(one == key or one.startswith(f"{key}.") for one in flat(load_settings(ROOT / "configs/tiny.toml")))
        nested = key.startswith(("data.sources.", "distill."))
        load = load_settings if of_run or nested else load_pretrain_settings
        load(ROOT / "configs" / ("tiny.toml" if load is load_settings else "pretrain.toml"), [override])


def test_the_library_as_the_readme_shows_it():
    """Its names are public, and a config is named by text as well as by a path."""
    named = set(re.findall(r"\bmoekd\.([A-Za-z]\w+)", (ROOT / "README.md").read_text()))
    modules = {"wide", "bigru"}
    assert named - modules <= set(moekd.__all__)
    assert isinstance(moekd.load_settings(str(ROOT / "configs" / "tiny.toml")), MoekdSettings)
