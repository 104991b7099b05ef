"""Files spread over processes, results in the order of the files, and a bounded number of them in flight."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.processes import end_now, process_pool, submit
from moekd.scan.cache import Cache
from moekd.scan.model import ScanModel
from moekd.scan.score import FileResult, FileScorer, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHUNK_BYTES = 200_000  # of source: a few seconds of work, against half a second to start a process
_CHUNK_FILES = 50
_CHUNKS_IN_FLIGHT = 32  # for each worker, so that others go on while one is at the largest file

_Chunk = list[Task]
_Answer = tuple[list[FileResult], str | None]  # and the cache's trouble

_scorer: FileScorer | None = None  # of a worker process


@dataclass(frozen=True)
class Plan:
    """What a worker needs to start.

    Attributes:
        model: folder of the exported model.
        cache: folder, or None for no cache.
        workers: processes; 1 keeps the work in this one.
    """

    model: Path
    cache: Path | None
    max_file_bytes: int
    workers: int

    def scorer(self) -> FileScorer:
        model = ScanModel.load(self.model)
        return FileScorer(model, Cache(self.cache, model.facts.digest), max_file_bytes=self.max_file_bytes)


def score_all(plan: Plan, tasks: Iterable[Task]) -> Iterator[_Answer]:
    """Yield the results of chunks of files in order. Few files are scored in this process: starting others costs more.

    A file on which a worker process dies (a crash in a native library, or no memory) is reported as not scanned;
    the rest is scored as usual.
    """
    chunks = _chunks(tasks)
    first = list(islice(chunks, 2))
    if plan.workers == 1 or len(first) < 2:
        scorer = plan.scorer()
        try:
            for chunk in chain(first, chunks):
                yield [scorer.score_file(task) for task in chunk], scorer.cache.trouble
        finally:
            scorer.cache.close()
        return
    yield from _in_processes(plan, chain(first, chunks))


def _in_processes(plan: Plan, chunks: Iterator[_Chunk]) -> Iterator[_Answer]:
    pool = _pool(plan, plan.workers)
    waiting: deque[tuple[_Chunk, Future[_Answer]]] = deque()
    try:
        while True:
            for chunk in islice(chunks, plan.workers * _CHUNKS_IN_FLIGHT - len(waiting)):
                waiting.append((chunk, submit(pool, _score_chunk, chunk)))
            if not waiting:
                pool.shutdown()
                return
            chunk, future = waiting[0]
            try:
                answer = future.result()
            except BrokenProcessPool:  # any of those in flight may be to blame
                pool.shutdown(wait=True, cancel_futures=True)
                for chunk, future in waiting:
                    finished = future.done() and not future.cancelled() and future.exception() is None
                    yield future.result() if finished else _alone(plan, chunk)
                waiting.clear()
                pool = _pool(plan, plan.workers)
            else:
                waiting.popleft()
                yield answer
    except BaseException:  # Ctrl-C above all: what is running now is not waited for
        end_now(pool)
        raise


def _alone(plan: Plan, chunk: _Chunk) -> _Answer:
    """Score a chunk in a process of its own; if that dies, each half, down to the file that is to blame."""
    with _pool(plan, 1) as pool:
        try:
            return submit(pool, _score_chunk, chunk).result()
        except BrokenProcessPool:
            if len(chunk) == 1:
                return [FileResult(chunk[0].path, unread="the worker process died on it")], None
    middle = len(chunk) // 2
    (first, trouble), (second, later_trouble) = (_alone(plan, half) for half in (chunk[:middle], chunk[middle:]))
    return first + second, trouble or later_trouble


def _pool(plan: Plan, workers: int) -> ProcessPoolExecutor:
    return process_pool(workers, _start_worker, plan)


def _start_worker(plan: Plan) -> None:
    global _scorer
    _scorer = plan.scorer()


def _score_chunk(chunk: _Chunk) -> _Answer:
    assert _scorer is not None
    return [_scorer.score_file(task) for task in chunk], _scorer.cache.trouble


def _chunks(tasks: Iterable[Task]) -> Iterator[_Chunk]:
    chunk: _Chunk = []
    size = 0
    for task in tasks:
        chunk.append(task)
        with suppress(OSError):  # told when the file is read
            size += os.stat(task.path).st_size  # noqa: PTH116 - many files
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_FILES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
