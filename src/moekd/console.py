"""Talk to the person at the terminal: messages and progress on stderr, so that stdout carries data only.

On a terminal long work shows a bar (rich, which honours NO_COLOR); elsewhere plain lines, now and then.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress

    Advance = Callable[[int], None]

SECONDS_BETWEEN_LINES = 10.0  # of plain progress; a log file of an hour stays readable

_quiet = False
_live: Progress | None = None  # the bar on screen; bars inside it join it


def set_quiet(quiet: bool) -> None:
    """Silence messages and progress (errors are not printed from here)."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Print one message to stderr, above the bar if there is one."""
    if _quiet:
        return
    if _live is not None:
        _live.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextmanager
def bar(total: int | None, label: str) -> Iterator[Advance]:
    """Show the progress of long work.

    Args:
        total: how much there is to do, in the units that `advance` is called with; None if nobody knows.
    Yields:
        advance(n): tells that n more are done.
    """
    if _quiet:
        yield lambda n: None
    elif sys.stderr.isatty():
        with _rich_bar(total, label) as advance:
            yield advance
    else:
        with _plain_lines(total, label) as advance:
            yield advance


@contextmanager
def _rich_bar(total: int | None, label: str) -> Iterator[Advance]:
    global _live
    if _live is not None:
        live = _live
        task = live.add_task(label, total=total)
        try:
            yield lambda n: live.advance(task, n)
        finally:
            live.remove_task(task)
        return

    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as _live:
        live = _live
        task = live.add_task(label, total=total)
        try:
            yield lambda n: live.advance(task, n)
        finally:
            _live = None


@contextmanager
def _plain_lines(total: int | None, label: str) -> Iterator[Advance]:
    start = spoken = time.monotonic()
    done = 0
    of_total = "" if total is None else f" of {total:,}"

    def advance(n: int) -> None:
        nonlocal done, spoken
        done += n
        now = time.monotonic()
        if now - spoken >= SECONDS_BETWEEN_LINES:
            spoken = now
            say(f"{label}: {done:,}{of_total}, {now - start:.0f} s")

    say(f"{label}: {'started' if total is None else f'0{of_total}'}")
    yield advance
    say(f"{label}: {done:,}{of_total}, done in {time.monotonic() - start:.1f} s")
