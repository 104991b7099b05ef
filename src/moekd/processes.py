"""Worker processes: how they are started, and how they end when the work is broken off."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

_Result = TypeVar("_Result")
_SAFE_PATH = "PYTHONSAFEPATH"


def process_pool(workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Return a pool of fresh processes, each of which first calls `start` with the arguments."""
    with _no_module_of_the_working_folder():  # the pool's locks start a process that watches over them
        # "spawn", because forking a process that runs threads, as an editor's does, may deadlock.
        return ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_begin, initargs=(os.getpid(), start, arguments)
        )


def _begin(parent: int, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    if start is not None:
        start(*arguments)


def submit(pool: ProcessPoolExecutor, work: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
    """Hand in work, which may start a process. Until that ignores Ctrl-C it is blocked, as it then is here."""
    with _no_module_of_the_working_folder():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return pool.submit(work, *arguments)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(work, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_module_of_the_working_folder() -> Iterator[None]:
    """A process starts as `python -c`, which looks into the working folder first: code of whoever wrote that folder."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"  # once started, it takes over the search path of this process
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


@cache
def end_with(parent: int) -> None:
    """Let this process end soon after the process `parent`, which started it; nothing where it is `parent` itself.

    A process that is killed cannot end its workers, and they would go on in the folder of whoever continues its work.
    """
    if os.getpid() == parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_now(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool; what they are at is not waited for."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
