"""The language server, spoken to by a real client over stdio."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import pytest
from lsprotocol import types
from pygls.lsp.client import LanguageClient

from moekd.errors import SettingsError
from moekd.scan.lsp import Server
from moekd.scan.model import ScanModel
from moekd.scan.run import Selection
from moekd.scan.settings import ScanSettings

FUNCTION = "int size_of(int n)\n{\n  if (n < 0)\n    return 0;\n  return n * 4;\n}\n"
UNFINISHED = "char *open_one(char *name)\n{\n  if (name) {\n    strcpy(\n"
SECONDS = 20  # for one answer, on a busy machine


class Client(LanguageClient):
    """Collects diagnostics by document."""

    def __init__(self) -> None:
        super().__init__("test", "1")
        self.published: asyncio.Queue[types.PublishDiagnosticsParams] = asyncio.Queue()
        self.count = 0

        @self.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def published(params: types.PublishDiagnosticsParams) -> None:
            self.count += 1
            self.published.put_nowait(params)

    def open(self, uri: str, text: str, language: str = "c") -> None:
        document = types.TextDocumentItem(uri, language, 1, text)
        self.text_document_did_open(types.DidOpenTextDocumentParams(document))

    def change(self, uri: str, text: str, version: int) -> None:
        document = types.VersionedTextDocumentIdentifier(version, uri)
        whole = types.TextDocumentContentChangeWholeDocument(text)
        self.text_document_did_change(types.DidChangeTextDocumentParams(document, [whole]))

    async def next(self) -> types.PublishDiagnosticsParams:
        return await asyncio.wait_for(self.published.get(), SECONDS)


@pytest.fixture
def talk(exported, tmp_path, monkeypatch):
    """Run a conversation with a server that reports every function it may."""
    monkeypatch.chdir(tmp_path)

    @asynccontextmanager
    async def session():
        client = Client()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        options = ["--model", str(exported), "--max-alarms-per-kloc", "1e9", "--no-cache"]
        await client.start_io(sys.executable, "-m", "moekd", "lsp", *options, env=environment)
        await asyncio.wait_for(
            client.initialize_async(types.InitializeParams(capabilities=types.ClientCapabilities())), SECONDS
        )
        client.initialized(types.InitializedParams())
        try:
            yield client
            await asyncio.wait_for(client.shutdown_async(None), SECONDS)
        finally:
            client.exit(None)
            await asyncio.wait_for(client.stop(), SECONDS)

    def run(conversation) -> None:
        async def whole() -> None:
            async with session() as client:
                await conversation(client, (tmp_path / "a.c").as_uri())

        asyncio.run(whole())

    return run


def test_open_change_save_close(talk):
    """Diagnostics on open and save; a burst of changes is answered once, for its last version; none after closing."""

    async def conversation(client, uri):
        client.open(uri, FUNCTION)
        found = (await client.next()).diagnostics
        assert [(one.range.start.line, one.source) for one in found] == [(0, "moekd")]
        assert "size_of is vulnerable with probability" in found[0].message
        assert found[0].range.end.character == len("int size_of(int n)")
        for version in range(2, 8):
            client.change(uri, "\n" * version + FUNCTION, version)
        answer = await client.next()
        assert answer.version == 7
        assert [one.range.start.line for one in answer.diagnostics] == [7]
        assert client.count == 2
        client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri)))
        assert len((await client.next()).diagnostics) == 1
        client.text_document_did_close(types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri)))
        assert not (await client.next()).diagnostics

    talk(conversation)


def test_incomplete_code_and_odd_documents(talk):
    """A function without an end is judged; text that is no C gets no diagnostics; the server answers on."""

    async def conversation(client, uri):
        client.open(uri, FUNCTION + UNFINISHED)
        assert [one.range.start.line for one in (await client.next()).diagnostics] == [0, 6]
        for name, text in (
            ("b.txt", "hello"),
            ("c.c", "\0\0"),
            ("d.c", ""),
            ("e.c", "{" * 1000),
            ("f.c", "é\u2028😀\r"),
        ):
            client.open(uri.replace("a.c", name), text)
            found = (await client.next()).diagnostics
            assert [one.message for one in found] == (
                ["not scanned: binary: it holds a NUL byte"] if name == "c.c" else []
            )
        client.open("untitled:Untitled-1", FUNCTION, "cpp")
        assert len((await client.next()).diagnostics) == 1

    talk(conversation)


def test_hover_and_suppress(talk):
    """The hover explains; the action's comment asks for a reason first and silences the finding once it has one."""

    async def conversation(client, uri):
        client.open(uri, FUNCTION)
        await client.next()
        document = types.TextDocumentIdentifier(uri)
        hover = await client.text_document_hover_async(types.HoverParams(document, types.Position(3, 2)))
        assert "`size_of` is vulnerable with probability" in hover.contents.value
        assert "no finding does not mean no vulnerability" in hover.contents.value
        assert await client.text_document_hover_async(types.HoverParams(document, types.Position(6, 0))) is None

        place = types.Range(types.Position(0, 0), types.Position(0, 0))
        parameters = types.CodeActionParams(document, place, types.CodeActionContext([]))
        (action,) = await client.text_document_code_action_async(parameters)
        (edit,) = action.edit.changes[uri]
        assert (edit.range.start.line, edit.new_text) == (0, "// moekd: ignore[vulnerable] \n")
        client.change(uri, edit.new_text + FUNCTION, 2)
        messages = [one.message for one in (await client.next()).diagnostics]
        assert any("without a reason" in one for one in messages)
        assert len(messages) == 2
        client.change(uri, edit.new_text.replace("] ", "] reviewed") + FUNCTION, 3)
        assert not (await client.next()).diagnostics

    talk(conversation)


def test_what_takes_many_runs_of_the_model_is_not_done_while_people_type(exported):
    """Whatever the settings file asks of a scan."""
    settings = ScanSettings(model=str(exported), explain=True, stability=20, top=5, max_alarms_per_kloc=1e9)
    assert not Selection(ScanModel.load(exported), Server(settings).settings)._looks_into_findings


def test_a_missing_model_is_told_before_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr("moekd.scan.run.PACKAGED", tmp_path / "none")
    with pytest.raises(SettingsError, match="no model"):
        Server(ScanSettings())
