"""Milliseconds of students with random weights, as `moekd scan` would run them: the int8 graph, one text, one thread.

Processor time is counted and the least of several runs kept: what else a machine does only ever adds to it.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics, onnx_runtime
from moekd.classifier import Classifier
from moekd.export.graph import graph_of
from moekd.students.latency import Latency, fit_latency, to_time
from moekd.students.ledger import evaluate_all
from moekd.students.space import build_candidate
from moekd.tokens import SPECIALS, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.students.space import Configuration

LATENCY_FILE = "latency.jsonl"
_REPEATS = 9  # with 3 the guess made of the times is a tenth worse, with 15 hardly better


def measure_latency(budget_bytes: int, folder: Path | None) -> Latency:
    """Time architectures of our space within a budget, and fit a guess for all others.

    Args:
        folder: keeps the times in `latency.jsonl`, so that another search reads them and a stopped one continues; None
            keeps nothing.
    Raises:
        DataError: the folder's file is of another processor or another onnxruntime, or damaged.
    """
    if folder is None:
        with TemporaryDirectory(prefix="moekd-latency-") as temporary:
            return measure_latency(budget_bytes, Path(temporary))
    about = conditions()
    started = time.perf_counter()
    lengths = to_time(budget_bytes)

    def timed(one: Configuration) -> dict[str, float]:
        return dict(zip(map(str, lengths[one]), processor_ms(one, lengths[one]), strict=True))

    found = evaluate_all(list(lengths), timed, folder / LATENCY_FILE, about=about, label="architectures timed")
    return fit_latency(found, about=about, seconds=time.perf_counter() - started)


def conditions() -> dict[str, Any]:
    """What `processor_ms` measures, in words and numbers: two times compare only if these are equal."""
    return {
        "measured": "processor milliseconds of one text, int8 graph, without tokenising",
        "threads": 1,
        "repeats": _REPEATS,
        "onnxruntime": onnx_runtime.load().__version__,
        "processor": _processor(),
    }


def _processor() -> str:
    """Its name where the system tells, else its family."""
    facts = Path("/proc/cpuinfo")  # of Linux, where the library knows the family only
    names = [line for line in facts.read_text().splitlines() if line.startswith("model name")] if facts.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def processor_ms(one: Configuration, lengths: Sequence[int]) -> list[float]:
    """Milliseconds of processor time that the student takes for a text of each length in tokens, on one thread."""
    numerics.configure(1)
    tokenizer = _tokenizer(one.vocabulary, one.max_length)
    model = build_candidate(one, tokenizer, seed=0)
    options = onnx_runtime.load().SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnx_runtime.load().InferenceSession(
        graph_of(Classifier(model, tokenizer, one.max_length), "int8"), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    return [_least_ms(session, rng.integers(len(SPECIALS), one.vocabulary, (1, length))) for length in lengths]


def _least_ms(session: Any, ids: np.ndarray) -> float:
    session.run(None, {"input_ids": ids})  # the first run of a length allocates
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        session.run(None, {"input_ids": ids})
        times.append(time.process_time() - started)
    return 1000 * min(times)


def _tokenizer(vocabulary: int, max_length: int) -> Any:
    """One of the wanted size that was trained on nothing: only its size reaches the graph."""
    from tokenizers import Tokenizer, models

    words = [*SPECIALS, *map(str, range(vocabulary - len(SPECIALS)))]
    known = {word: place for place, word in enumerate(words)}
    return wrapped(Tokenizer(models.WordLevel(known, unk_token="<unk>")), max_length)
