"""A scan from paths to its outcome."""

from __future__ import annotations

import heapq
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moekd.errors import SettingsError
from moekd.scan import baseline, diff, explain
from moekd.scan.cache import Cache, default_folder
from moekd.scan.discover import Discovery, shown
from moekd.scan.findings import Counts, Finding, Note, Outcome, Unread, printable
from moekd.scan.model import FACTS_FILE, ScanModel, Threshold
from moekd.scan.score import FileResult, FileScorer, Scored, Task, functions_of, read_limited
from moekd.scan.stability import stability
from moekd.scan.workers import Plan, score_all
from moekd.syntax import SUFFIXES, language_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from moekd.scan.settings import ScanSettings

DEFAULT_FALSE_ALARM_RATE = 0.01  # one in a hundred functions that are not vulnerable
STDIN = "-"
PACKAGED = Path(__file__).parent.parent / "assets" / "moekd-scan"  # the default student, where this version has one


def scan(
    paths: Sequence[Path],
    settings: ScanSettings,
    *,
    changed_since: str | None = None,
    diff_file: Path | None = None,
    stdin_filename: Path | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Outcome:
    """Score the functions under `paths` and return those to report.

    Args:
        paths: files and folders, or only `-` for standard input.
        changed_since: a revision of git; only functions changed since this branch left it.
        diff_file: a unified diff with paths relative to the working folder, `-` for standard input; only functions
            that it touches.
        stdin_filename: what the source on standard input is called; its ending decides the language.
        advance: called with the number of files done.
    Raises:
        SettingsError: a path, the model, the baseline, the diff or the revision is not usable.
    """
    start = time.monotonic()
    model = load_model(settings)
    selection = Selection(model, settings)
    root = Path.cwd()
    if [os.fspath(path) for path in paths] == [STDIN]:
        if changed_since is not None or diff_file is not None:
            raise SettingsError("--changed-since and --diff are for files; a source on stdin is scanned whole")
        _scan_stdin(model, settings, selection, stdin_filename, root)
    else:
        if stdin_filename is not None:
            raise SettingsError(f"--stdin-filename names a source on stdin: give {STDIN} as the only PATH")
        discovery = Discovery(paths, root=root)
        changes = _changes(changed_since, diff_file, root)
        if diff_file is not None:
            selection.add_missing(changes or {})
        tasks = _tasks(discovery, changes)
        plan = Plan(
            model.folder, cache_folder(settings), settings.max_file_bytes, settings.workers or os.cpu_count() or 1
        )
        for results, trouble in score_all(plan, tasks):
            selection.add_cache_trouble(trouble)
            for result in results:
                selection.add(result, shown(Path(result.path), root))
            advance(len(results))
        selection.add_discovery(discovery)
        if changes is None:
            selection.tell_if_empty()
    return replace(selection.outcome(), seconds=time.monotonic() - start)


def load_model(settings: ScanSettings) -> ScanModel:
    """Load the model that the settings name, or the one in the package."""
    if settings.model is not None:
        return ScanModel.load(Path(settings.model))
    if not (PACKAGED / FACTS_FILE).is_file():
        raise SettingsError(
            "no model: this version ships none. Give the folder of an exported one with --model, or as `model` in "
            "moekd.toml; `moekd export STUDENT FOLDER --data FILE` makes one"
        )
    return ScanModel.load(PACKAGED)


def cache_folder(settings: ScanSettings) -> Path | None:
    if settings.cache is False:
        return None
    return default_folder() if settings.cache is None else Path(settings.cache)


class Selection:
    """Takes results one by one and keeps what will be reported: memory grows with findings, not with functions.

    Attributes:
        threshold: where findings begin; None where `top` says how many are wanted.
    """

    def __init__(self, model: ScanModel, settings: ScanSettings) -> None:
        self.model = model
        self.settings = settings
        self.threshold = _threshold(model, settings)
        self.counts = Counts()
        self._known = baseline.read(Path(settings.baseline)) if settings.baseline else frozenset()
        self._kept: list[Finding] = []
        self._best: list[tuple[float, int, Finding]] = []  # heap of the `top` active ones, the least first
        self._sources: dict[str, Path | bytes] = {}  # of findings to look into, by shown path
        self._unread: list[Unread] = []
        self._notes: list[Note] = []
        self._order = 0
        self._told_cache_trouble = False

    def add(self, result: FileResult, path: str, source: bytes | None = None) -> None:
        """Take one file's result. `source` is kept for looking into findings where the file cannot be read again."""
        if result.unread is not None:
            self._unread.append(Unread(path, result.unread))
            return
        self.counts.files += 1
        self._notes += [Note(path, line, text) for line, text in result.complaints]
        for scored in result.functions:
            self._count(scored)
            if self._take(self._finding(scored, path)) and self._looks_into_findings:
                self._sources[path] = Path(result.path) if source is None else source

    def add_discovery(self, discovery: Discovery) -> None:
        self._unread += discovery.unread
        self._notes += discovery.notes
        self.counts.ignored += discovery.counts.ignored
        self.counts.other += discovery.counts.other
        self.counts.links += discovery.counts.links

    def add_cache_trouble(self, trouble: str | None) -> None:
        if trouble and not self._told_cache_trouble:
            self._told_cache_trouble = True
            self._notes.append(Note("", 0, trouble))

    def add_missing(self, changes: Mapping[str, diff.Changed]) -> None:
        """Tell that a diff names sources that are not here; mostly it was made in another folder."""
        missing = [path for path in changes if Path(path).suffix.lower() in SUFFIXES and not os.path.lexists(path)]
        if missing:
            path = printable(shown(Path(missing[0]), Path(os.path.realpath(Path.cwd()))))
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            text = f"the diff names {path}{others}, which is not here; its paths are read from the working folder"
            self._notes.append(Note("", 0, text))

    def tell_if_empty(self) -> None:
        """A path that is wrong would look clean."""
        if not self.counts.files and not self._unread:
            self._notes.append(Note("", 0, "there is no C or C++ file to scan under the given paths"))

    def outcome(self) -> Outcome:
        findings = [*self._kept, *(one for *_, one in self._best)]
        if self.threshold is None:
            full = len(self._best) == self.settings.top
            least = min(one.p for *_, one in self._best) if full else 0.0
            findings = [one for one in findings if one.active or one.p >= least]
        findings.sort(key=lambda one: (-one.p, one.path, one.first_line))
        if self._looks_into_findings:
            least_p = self.threshold.p if self.threshold else min((one.p for one in findings), default=0.0)
            findings = [self._looked_into(one, least_p) for one in findings]
        return Outcome(
            self.model.facts,
            self.threshold,
            self.settings.top,
            tuple(findings),
            tuple(self._unread),
            tuple(self._notes),
            self.counts,
            self._fail_on(),
        )

    def _fail_on(self) -> float | None:
        wanted = self.settings.fail_on
        if wanted == "never":
            return None
        if wanted is None:  # a review list is no alarm
            return None if self.threshold is None else self.threshold.p
        return wanted

    def _count(self, scored: Scored) -> None:
        self.counts.functions += 1
        self.counts.lines += scored.lines
        self.counts.partly_parsed += not scored.whole
        self.counts.cut += scored.cut
        self.counts.from_cache += scored.cached

    def _finding(self, scored: Scored, path: str) -> Finding:
        reasons = [one.reason for one in scored.suppressed_by if one.holds_for(None)]
        return Finding(
            path,
            scored.function,
            scored.first_line,
            scored.last_line,
            scored.p,
            scored.fingerprint,
            scored.cut,
            scored.whole,
            scored.cwe_group,
            scored.p_group,
            suppressed=reasons[0] if reasons else None,
            in_baseline=scored.fingerprint in self._known,
        )

    def _take(self, finding: Finding) -> bool:
        if self.threshold is not None:
            if finding.p < self.threshold.p:
                return False
            self._kept.append(finding)
        elif finding.active:
            self._order -= 1  # of equals the first stay
            heapq.heappush(self._best, (finding.p, self._order, finding))
            if len(self._best) > (self.settings.top or 0):
                return heapq.heappop(self._best)[2] is not finding
        else:
            self._kept.append(finding)
        return True

    @property
    def _looks_into_findings(self) -> bool:
        return self.settings.explain or self.settings.stability > 0

    def _looked_into(self, finding: Finding, least_p: float) -> Finding:
        try:
            source = self._sources[finding.path]
            content = source if isinstance(source, bytes) else read_limited(source, self.settings.max_file_bytes)
            text = _function_at(content, finding)
        except (OSError, ValueError, LookupError, TimeoutError):  # it has changed since it was scored
            return finding
        if self.settings.explain:
            finding = replace(finding, lines=explain.carrying_lines(self.model, text, finding.first_line))
        if self.settings.stability:
            held = stability(self.model, text, least_p, renamings=self.settings.stability)
            finding = replace(finding, stability=held)
        return finding


def _function_at(source: bytes, finding: Finding) -> str:
    language = language_of(Path(finding.path), source)
    if language is None:
        raise LookupError(finding.path)
    spans, _ = functions_of(source, language)
    for span in spans:
        if (span.first_line, span.name) == (finding.first_line, finding.function):
            return source[span.start : span.end].decode("utf-8", "replace")
    raise LookupError(finding.function)


def _threshold(model: ScanModel, settings: ScanSettings) -> Threshold | None:
    if settings.top is not None:
        return None
    if settings.max_alarms_per_kloc is not None:
        return model.facts.at_alarms_per_kloc(settings.max_alarms_per_kloc)
    return model.facts.at_false_alarm_rate(settings.false_alarm_rate or DEFAULT_FALSE_ALARM_RATE)


def _changes(changed_since: str | None, diff_file: Path | None, root: Path) -> Mapping[str, diff.Changed] | None:
    """Return changed lines by path without links; None where everything counts."""
    if changed_since is not None and diff_file is not None:
        raise SettingsError("give --changed-since or --diff, not both")
    if changed_since is not None:
        return _without_links(diff.changed_since(changed_since, root), root)
    if diff_file is None:
        return None
    try:
        content = sys.stdin.buffer.read() if os.fspath(diff_file) == STDIN else diff_file.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read the diff {diff_file}: {error.strerror}") from error
    return _without_links(diff.read_diff(os.fsdecode(content)), root)


def _without_links(changes: Mapping[str, diff.Changed], root: Path) -> dict[str, diff.Changed]:
    """Git names files by their real path, and the scan may have been started through a link."""
    return {os.path.realpath(root / path): lines for path, lines in changes.items() if "\0" not in path}


def _tasks(discovery: Discovery, changes: Mapping[str, diff.Changed] | None) -> Iterator[Task]:
    for path in discovery.files():
        name = os.fspath(path)
        changed = None if changes is None else changes.get(os.path.realpath(name), ())
        if changed != ():
            yield Task(name, changed)


def _scan_stdin(
    model: ScanModel, settings: ScanSettings, selection: Selection, filename: Path | None, root: Path
) -> None:
    if filename is None:
        raise SettingsError("a source on standard input needs --stdin-filename NAME; its ending tells C from C++")
    source = sys.stdin.buffer.read(settings.max_file_bytes + 1)
    cache = Cache(cache_folder(settings), model.facts.digest)
    result = FileScorer(model, cache, max_file_bytes=settings.max_file_bytes).score_source(
        source, Task(os.fspath(filename))
    )
    selection.add_cache_trouble(cache.trouble)
    cache.close()
    selection.add(result, shown(Path(os.path.abspath(filename)), root), source)  # noqa: PTH100
