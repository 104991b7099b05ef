"""Worker processes: how they are started, and how they end when the work is broken off."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def process_pool(workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Return a pool of fresh processes, each of which first calls `start` with the arguments."""
    # "spawn", because forking a process that runs threads, as an editor's does, may deadlock.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(start, arguments))


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    if start is not None:
        start(*arguments)


def end_now(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool; what they are at is not waited for."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
