"""A language server: diagnostics while people write, an explanation on hover, and an action to suppress.

Documents are scored in one thread, so that the server answers meanwhile; changes are waited out for a moment. The
text is taken as the editor has it, so it need not be saved, finished or valid.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from lsprotocol import types
from pygls import uris
from pygls.lsp.server import LanguageServer

from moekd.scan.cache import Cache
from moekd.scan.explain import carrying_lines
from moekd.scan.findings import LIMITS, printable
from moekd.scan.outputs import kind_of
from moekd.scan.run import Selection, cache_folder, load_model
from moekd.scan.score import FileScorer, Task
from moekd.syntax import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pygls.workspace import TextDocument

    from moekd.scan.findings import Finding, Outcome
    from moekd.scan.settings import ScanSettings

DEBOUNCE_SECONDS = 0.4  # after the last change; a function takes about 20 ms to score
_SUFFIX_OF = {"c": ".c", "cpp": ".cpp", "cuda-cpp": ".cpp"}  # by the editor's language, where the name has none

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Judged:
    """What is known about one version of a document."""

    lines: list[str]
    outcome: Outcome


class Server(LanguageServer):
    """The state of `moekd lsp`: one model, and what was found in the open documents."""

    def __init__(self, settings: ScanSettings) -> None:
        super().__init__("moekd", version("moekd"))
        # The N best functions of one file mean nothing; a threshold does. What takes many runs of the model waits
        # until somebody asks.
        self.settings = settings.model_copy(update={"top": None, "explain": False, "stability": 0})
        self.model = load_model(settings)
        Selection(self.model, self.settings)  # a threshold or a baseline that is wrong is told before the start
        self._judged: dict[str, _Judged] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        # One thread: the cache's connection belongs to it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moekd-score")
        self._scorer: FileScorer | None = None

    def judge(self, uri: str, *, after: float = 0.0) -> None:
        """Score a document `after` seconds and publish what was found, unless it is asked for again meanwhile."""
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()
        self._waiting[uri] = asyncio.create_task(self._judge(uri, after))

    def forget(self, uri: str) -> None:
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()
        self._judged.pop(uri, None)
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))

    def finding_at(self, uri: str, line: int) -> Finding | None:
        """Return the active finding whose function holds a line, counted from 0."""
        judged = self._judged.get(uri)
        if judged is None:
            return None
        holding = (one for one in judged.outcome.findings if one.first_line <= line + 1 <= one.last_line)
        return next((one for one in holding if one.active), None)

    async def explanation(self, uri: str, finding: Finding) -> str:
        """Return Markdown that says how likely, from which threshold on, which lines carry it, and what it is not."""
        judged = self._judged[uri]
        text = "\n".join(judged.lines[finding.first_line - 1 : finding.last_line])
        shares = await self._in_thread(lambda: carrying_lines(self.model, text, finding.first_line))
        name = printable(finding.function).replace("`", "'") or "(unnamed)"
        kind = f", of the kind {kind_of(finding)}" if finding.cwe_group else ""
        rows = [f"**moekd**: `{name}` is vulnerable with probability {finding.p:.3f}{kind}."]
        threshold = judged.outcome.threshold
        if threshold is not None:
            rows.append(
                f"Reported from {threshold.p:.3f} on, which {threshold.false_alarm_rate:.2%} of functions that are "
                "not vulnerable reached when it was measured."
            )
        if finding.cut:
            rows.append("The function is longer than the model reads; only its beginning was judged.")
        if shares:
            rows.append("Lines that carry the score: " + ", ".join(str(one.line) for one in shares) + ".")
        return "\n\n".join([*rows, LIMITS])

    async def _judge(self, uri: str, after: float) -> None:
        await asyncio.sleep(after)
        document = self.workspace.get_text_document(uri)
        source, path = document.source, _path_of(document)
        try:
            outcome = await self._in_thread(lambda: self._score(source, path))
        except Exception as error:  # one document must not end the server
            message = f"moekd: {path}: {type(error).__name__}: {error}"
            self.window_log_message(types.LogMessageParams(types.MessageType.Error, message))
            return
        self._judged[uri] = _Judged(source.split("\n"), outcome)
        self._waiting.pop(uri, None)
        self.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri, _diagnostics(self._judged[uri]), document.version)
        )

    def _score(self, source: str, path: str) -> Outcome:
        if self._scorer is None:
            cache = Cache(cache_folder(self.settings), self.model.facts.digest)
            self._scorer = FileScorer(self.model, cache, max_file_bytes=self.settings.max_file_bytes)
        selection = Selection(self.model, self.settings)
        content = source.encode("utf-8", "replace")
        selection.add(self._scorer.score_source(content, Task(path)), path)
        return selection.outcome()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def serve(settings: ScanSettings) -> None:
    """Talk to an editor over stdin and stdout until it ends the session."""
    build(settings).start_io()


def build(settings: ScanSettings) -> Server:
    """Return a server that has its features, not yet started. Raises SettingsError as a scan would."""
    server = Server(settings)

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    async def opened(params: types.DidOpenTextDocumentParams) -> None:
        server.judge(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    async def saved(params: types.DidSaveTextDocumentParams) -> None:
        server.judge(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    async def changed(params: types.DidChangeTextDocumentParams) -> None:
        server.judge(params.text_document.uri, after=DEBOUNCE_SECONDS)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    async def closed(params: types.DidCloseTextDocumentParams) -> None:
        server.forget(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    async def hover(params: types.HoverParams) -> types.Hover | None:
        uri = params.text_document.uri
        finding = server.finding_at(uri, params.position.line)
        if finding is None:
            return None
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, await server.explanation(uri, finding)))

    @server.feature(
        types.TEXT_DOCUMENT_CODE_ACTION,
        types.CodeActionOptions(code_action_kinds=[types.CodeActionKind.QuickFix]),
    )
    async def act(params: types.CodeActionParams) -> list[types.CodeAction]:
        uri = params.text_document.uri
        finding = server.finding_at(uri, params.range.start.line)
        document = server.workspace.get_text_document(uri)
        if finding is None or finding.first_line > len(document.lines):  # lines were deleted since
            return []
        return [_suppress(document, finding)]

    return server


def _path_of(document: TextDocument) -> str:
    """The document's path, with an ending that tells its language if only the editor knows it."""
    path = uris.to_fs_path(document.uri) or "untitled"
    if PurePath(path).suffix.lower() in SUFFIXES:
        return path
    return path + _SUFFIX_OF.get(document.language_id or "", "")


def _diagnostics(judged: _Judged) -> list[types.Diagnostic]:
    outcome = judged.outcome
    found = [
        _diagnostic(judged, one.first_line, _message(one), types.DiagnosticSeverity.Warning)
        for one in outcome.findings
        if one.active
    ]
    for note in outcome.notes:
        if note.path:
            found.append(_diagnostic(judged, note.line, note.text, types.DiagnosticSeverity.Information))
    for unread in outcome.unread:
        if Path(unread.path).suffix.lower() in SUFFIXES:
            text = f"not scanned: {unread.reason}"
            found.append(_diagnostic(judged, 1, text, types.DiagnosticSeverity.Information))
    return found


def _diagnostic(judged: _Judged, line: int, message: str, severity: types.DiagnosticSeverity) -> types.Diagnostic:
    """On one line: the whole function underlined would hide what else is told about it."""
    text = judged.lines[line - 1].rstrip("\r") if line <= len(judged.lines) else ""
    end = len(text.encode("utf-16-le", "surrogatepass")) // 2  # the protocol counts in UTF-16
    place = types.Range(types.Position(line - 1, 0), types.Position(line - 1, end))
    return types.Diagnostic(place, message, severity=severity, code="moekd-vulnerable", source="moekd")


def _message(finding: Finding) -> str:
    name = printable(finding.function) or "this function"
    kind = f", of the kind {kind_of(finding)}" if finding.cwe_group else ""
    part = "; only its beginning was read" if finding.cut else ""
    return f"{name} is vulnerable with probability {finding.p:.3f}{kind}{part}"


def _suppress(document: TextDocument, finding: Finding) -> types.CodeAction:
    """Insert a comment without a reason. It takes effect when one is typed; until then a note asks for it."""
    first = document.lines[finding.first_line - 1]
    indent = first[: len(first) - len(first.lstrip())]
    start = types.Position(finding.first_line - 1, 0)
    edit = types.TextEdit(
        types.Range(start, start), f"{indent}// moekd: ignore[{finding.cwe_group or 'vulnerable'}] \n"
    )
    return types.CodeAction(
        "moekd: suppress this finding (type the reason)",
        kind=types.CodeActionKind.QuickFix,
        edit=types.WorkspaceEdit(changes={document.uri: [edit]}),
    )
