"""One file to scored functions: what a worker does. Needs a loaded model and a cache, and touches nothing else."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from moekd import syntax
from moekd.data.text import count_lines, digest, normalise
from moekd.scan import suppress
from moekd.scan.cache import Cache, key_of
from moekd.scan.diff import Changed, touches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.scan.model import Answer, ScanModel

_PARSE_SECONDS = 20.0  # a file of 10 MB takes 3; only hostile ones take longer
_SNIFF_BYTES = 8000  # a NUL byte in them makes a file binary, as git has it


@dataclass(frozen=True, slots=True)
class Task:
    """A file to read, and which lines of it count."""

    path: str
    changed: Changed = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One function with its probability; fields as in `findings.Finding`."""

    function: str
    first_line: int
    last_line: int
    p: float
    fingerprint: str
    cut: bool
    whole: bool
    cwe_group: str | None
    p_group: float | None
    lines: int
    cached: bool
    suppressed_by: tuple[suppress.Suppression, ...]


@dataclass(frozen=True, slots=True)
class FileResult:
    """What one file gave: its functions, complaints about suppressions, or why it could not be read."""

    path: str
    functions: tuple[Scored, ...] = ()
    complaints: tuple[tuple[int, str], ...] = ()
    unread: str | None = None


class FileScorer:
    """Reads, parses and scores files with one model and one cache."""

    def __init__(self, model: ScanModel, cache: Cache, *, max_file_bytes: int) -> None:
        self.model = model
        self.cache = cache
        self.max_file_bytes = max_file_bytes

    def score_file(self, task: Task) -> FileResult:
        try:
            source = read_limited(Path(task.path), self.max_file_bytes)
        except OSError as error:
            return FileResult(task.path, unread=error.strerror or type(error).__name__)
        except ValueError as error:
            return FileResult(task.path, unread=str(error))
        return self.score_source(source, task)

    def score_source(self, source: bytes, task: Task) -> FileResult:
        """Score the functions of a source; its path decides the language only."""
        reason = _not_source(source, self.max_file_bytes)
        language = syntax.language_of(PurePath(task.path), source)
        if reason is None and language is None:
            reason = "neither C nor C++ by its name"
        if reason is not None or language is None:
            return FileResult(task.path, unread=reason)
        try:
            spans, texts = functions_of(source, language)
        except TimeoutError as error:
            return FileResult(task.path, unread=str(error))
        has_mark = suppress.MARK.encode() in source  # decoding every file would cost more than looking
        suppressions, complaints = suppress.read(source.decode("utf-8", "replace") if has_mark else "")
        about = suppress.assign(suppressions, [(span.first_line, span.last_line) for span in spans])
        complaints += [(one.line, "suppression belongs to no function") for one, spans_ in about.items() if not spans_]
        wanted = [i for i, span in enumerate(spans) if touches(task.changed, span.first_line, span.last_line)]
        answers, cached = self._answers([texts[i] for i in wanted])
        scored = tuple(
            Scored(
                spans[i].name,
                spans[i].first_line,
                spans[i].last_line,
                self.model.facts.p_vulnerable(answer.margin),
                digest(texts[i]),
                answer.cut,
                spans[i].whole,
                *self._kind(answer),
                count_lines(texts[i]),
                was_cached,
                tuple(one for one, indices in about.items() if i in indices),
            )
            for i, answer, was_cached in zip(wanted, answers, cached, strict=True)
        )
        return FileResult(task.path, scored, tuple(sorted(complaints)))

    def _kind(self, answer: Answer) -> tuple[str | None, float | None]:
        """CWE group and its probability; none where the model does not tell, or says that it is another kind."""
        name = None if answer.group is None else self.model.facts.groups[answer.group]
        return (name, answer.p_group) if name is not None and name.startswith("CWE-") else (None, None)

    def _answers(self, texts: Sequence[str]) -> tuple[list[Answer], list[bool]]:
        keys = [key_of(text) for text in texts]
        known = self.cache.get(keys)
        cached = [key in known for key in keys]
        fresh: dict[bytes, Answer] = {}
        for key, text in zip(keys, texts, strict=True):
            if key not in known and key not in fresh:
                fresh[key] = self.model.answer(text)
        self.cache.put(fresh)
        known |= fresh
        return [known[key] for key in keys], cached


def functions_of(source: bytes, language: syntax.LanguageName) -> tuple[list[syntax.FunctionSpan], list[str]]:
    """Return the functions of a file and the text of each as the model reads it.

    Raises:
        TimeoutError: the parser does not finish, which only hostile files bring about.
    """
    clean = source.replace(b"\0", b" ")  # the grammar takes NUL for the end of the file
    spans = syntax.functions(clean, language, seconds=_PARSE_SECONDS, unfinished=True)
    return spans, [normalise(clean[span.start : span.end].decode("utf-8", "replace")) for span in spans]


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, such as a pipe that nobody writes to, or larger than `max_bytes`.
    """
    facts = os.stat(path)  # noqa: PTH116 - as fast as it gets; there are many files
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    if facts.st_size > max_bytes:
        raise ValueError(_too_large(facts.st_size, max_bytes))
    return path.read_bytes()


def _not_source(source: bytes, max_bytes: int) -> str | None:
    if len(source) > max_bytes:
        return _too_large(len(source), max_bytes)
    return "binary: it holds a NUL byte" if b"\0" in source[:_SNIFF_BYTES] else None


def _too_large(size: int, limit: int) -> str:
    return f"{size:,} bytes, the limit is {limit:,} (max_file_bytes)"
