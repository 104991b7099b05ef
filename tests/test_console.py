"""What a person sees on stderr: a bar on a terminal, lines elsewhere, nothing when quiet."""

import io
import re
import sys

import pytest

from moekd import console


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch) -> Terminal:
    """Called inside tests, because pytest puts its own stderr in place after the fixtures."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return sys.stderr


@pytest.fixture
def quiet():
    console.set_quiet(True)
    yield
    console.set_quiet(False)


def test_plain_lines_at_start_now_and_then_and_end(capsys, monkeypatch):
    """A log gets a line every ten seconds of work, however often `advance` is called."""
    now = iter([0.0, 4.0, 9.9, 10.0, 12.0, 21.0, 21.5])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.bar(2500, "training") as advance:
        for _ in range(5):
            advance(500)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0 of 2,500",
        "training: 1,500 of 2,500, 10 s",
        "training: 2,500 of 2,500, 21 s",
        "training: 2,500 of 2,500, done in 21.5 s",
    ]


def test_plain_lines_without_a_total(capsys):
    with console.bar(None, "reading") as advance:
        advance(3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "reading: started"
    assert re.fullmatch(r"reading: 3, done in \d+\.\d s", last)


def test_bar_on_a_terminal(monkeypatch):
    """Messages stand above the bar as they are (no markup), and a bar inside a bar joins it."""
    terminal = use_terminal(monkeypatch)
    with console.bar(2, "students [moe]") as outer:
        with console.bar(None, "epoch [1]") as inner:
            inner(1)
            console.say("loss [bold]0.5[/bold]")
        outer(2)
    shown = terminal.getvalue()
    assert "loss [bold]0.5[/bold]" in shown
    assert "students [moe]" in shown
    assert "epoch [1]" in shown
    assert "2/2" in shown
    console.say("after")
    assert terminal.getvalue().endswith("after\n")


def test_no_color_is_honoured(monkeypatch):
    """https://no-color.org: with NO_COLOR set no output has a colour."""
    terminal = use_terminal(monkeypatch)
    colour = re.compile("\x1b\\[[0-9;]*3[0-9][;0-9]*m")
    with console.bar(2, "training") as advance:
        advance(2)
    assert colour.search(terminal.getvalue())
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    with console.bar(2, "training") as advance:
        advance(2)
    assert not colour.search(terminal.getvalue())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_is_silent(quiet, monkeypatch, is_terminal):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.bar(2, "training") as advance:
        advance(2)
    console.say("message")
    assert stream.getvalue() == ""


def test_a_bar_ends_with_an_error(monkeypatch):
    """The terminal is given back, and the next bar works."""
    terminal = use_terminal(monkeypatch)
    with pytest.raises(ValueError, match="defect"), console.bar(2, "first"):
        raise ValueError("defect")
    with console.bar(1, "second") as advance:
        advance(1)
    assert "1/1" in terminal.getvalue()
