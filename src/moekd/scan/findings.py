"""What a scan finds, in plain records; every output format is made from these alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from moekd.scan.model import Facts, Threshold

#: Stands in every report: what a score is, and what it is not.
LIMITS = (
    "A score is a learned model's probability that this function, judged by its own text alone, resembles functions "
    "that security fixes changed. It sees no callers, types or build, its training labels are noisy, it proves "
    "nothing, and no finding does not mean no vulnerability."
)

#: The same in one line, for people who read it every day.
CAUTION = "A score is a guess from one function's text. It proves nothing; no finding does not mean no vulnerability."

# Control characters, line ends of Unicode, and the marks that turn the direction of text.
_CONTROL = (
    {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
    | {
        code: f"\\u{code:04x}"
        for code in (0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    }
    | {9: "\\t", 10: "\\n", 13: "\\r"}
)


def printable(text: str) -> str:
    """Return a file or function name as one line of valid Unicode: control characters and lone bytes as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").translate(_CONTROL)


@dataclass(frozen=True, slots=True)
class LineShare:
    """How much of a finding a line carries: the margin falls by `drop` without it; `text` is what stands there."""

    line: int
    drop: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One function that is reported.

    Attributes:
        path: as shown, relative to the working folder where it lies inside, with forward slashes.
        function: name at the definition; "" where the parser found none.
        first_line, last_line: numbers from 1, both inclusive.
        p: calibrated probability that the function is vulnerable.
        fingerprint: digest of the function's text without comments and white space: survives moves and reformatting.
        cut: the function is longer than the model reads; only its beginning was judged.
        whole: the parser understood all of it.
        cwe_group: kind of weakness such as "CWE-664"; None where the model does not tell.
        p_group: its probability, given that the function is vulnerable in one of the ways that the model knows.
        suppressed: the reason given in a suppression comment; None without one.
        in_baseline: listed in the baseline file, so it is not new.
        lines: the lines that carry the score, largest share first; empty if nobody asked.
        stability: share of renamings of local variables under which it stays reported; None if nobody asked, or
            where there is nothing to rename.
    """

    path: str
    function: str
    first_line: int
    last_line: int
    p: float
    fingerprint: str
    cut: bool = False
    whole: bool = True
    cwe_group: str | None = None
    p_group: float | None = None
    suppressed: str | None = None
    in_baseline: bool = False
    lines: tuple[LineShare, ...] = ()
    stability: float | None = None

    @property
    def active(self) -> bool:
        """Whether it asks for attention: neither suppressed nor in the baseline."""
        return self.suppressed is None and not self.in_baseline


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that should have been scanned and was not."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person should put right, such as a suppression without a reason."""

    path: str
    line: int
    text: str


@dataclass(slots=True)
class Counts:
    """How much was looked at. Files that ignore rules name, that are not C or C++, or links are counted, not listed."""

    files: int = 0
    functions: int = 0
    lines: int = 0  # of the functions
    partly_parsed: int = 0  # functions that the parser did not understand fully
    cut: int = 0  # functions longer than the model reads
    from_cache: int = 0
    ignored: int = 0  # files and folders named by .gitignore and .moekdignore
    other: int = 0  # files that are not C or C++
    links: int = 0  # symbolic links, whose targets are scanned where they lie


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a scan has to say.

    Attributes:
        model: what scored the functions.
        threshold: where findings begin; None where the `top` functions were asked for.
        findings: highest probability first.
        fail_on: probability from which a finding makes the exit code 1; None for never.
        seconds: wall time.
    """

    model: Facts
    threshold: Threshold | None
    top: int | None
    findings: tuple[Finding, ...]
    unread: tuple[Unread, ...]
    notes: tuple[Note, ...]
    counts: Counts = field(default_factory=Counts)
    fail_on: float | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> Literal[0, 1, 4]:
        """0 clean, 1 findings to fail on, 4 some file was not scanned."""
        if self.fail_on is not None and any(one.active and one.p >= self.fail_on for one in self.findings):
            return 1
        return 4 if self.unread else 0
