"""What passes between stages: plain records without behaviour of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

#: The four disjoint parts of a data set. Experts, router and single teacher learn from `train_a`, students from
#: `train_b`; selection happens on `valid`, and `test` is read once (methods.md 6.3 step 1).
Part = Literal["train_a", "train_b", "valid", "test"]
PARTS: tuple[Part, ...] = ("train_a", "train_b", "valid", "test")

#: Class index everywhere: 1 is vulnerable. Readers translate; nothing downstream flips it.
LABELS = ("not_vulnerable", "vulnerable")

#: What a data set asks: whether a function is vulnerable, which of several classes it has, or if two are clones.
TaskKind = Literal["binary", "multi-class", "pair"]

#: Classes of a pair of functions, by index.
PAIR_LABELS = ("not_clone", "clone")

#: Stands between the two functions of a pair's text. A noncharacter: Unicode reserves it for a program's own use.
PAIR_MARK = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Sample:
    """One function, or a pair of them, with its label; `None` means unknown."""

    id: str  # "<dataset>:<row_id>", unique in a data set
    func: str  # normalised text, see data/text.py: what every model reads; of a pair, both with PAIR_MARK between
    label: int  # 1 vulnerable, 0 not; of other tasks, index of the class
    dataset: str
    kind: str | None = None  # "vulnerable", "fixed" (after the fix), "unchanged" (not touched by the fix)
    cwe: str | None = None  # first listed CWE as "CWE-119"
    cve: str | None = None
    project: str | None = None
    family: str | None = None  # group of sister projects; the project where the source has none
    commit: str | None = None
    date: str | None = None  # ISO date (2015-12-29), or the CVE's year (2015)
    pair: str | None = None  # joins a vulnerable function and its fixed version
    digest: str = (
        ""  # of the text without comments and white space; equal texts, or pairs in any order, have equal ones
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits of one model for samples, tied to them by id and content digest, never by order.

    Attributes:
        ids: sample ids, n.
        digests: content digests of the same samples, n.
        logits: float32, (n, classes); classes is 2 for detectors (not vulnerable, vulnerable).
    """

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    logits: np.ndarray


class Scorer(Protocol):
    """What every trained model is to evaluation and everything after it."""

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, classes), in the order of the texts."""
        ...


#: How the attack of one sample ended. Only the first two were attacked to the end; success rates say which they count.
Outcome = Literal["fooled", "withstood", "already wrong", "no identifiers", "not attacked"]


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack did to one model on one sample.

    Attributes:
        id, attack: the sample and the attack's name.
        outcome: see `Outcome`.
        reason: why it withstood early or was not attacked, such as "budget spent" or "does not parse"; "" otherwise.
        label: the sample's label, 0 or 1.
        p_original: the model's probability of the label on the original text; None if it gave no usable answer.
        p_final: the same on the adversarial text, or the lowest that was reached.
        queries: distinct texts that the model was asked for, the original included.
        identifiers: names that could be renamed.
        renames: old name -> new name of the adversarial text; empty unless fooled.
        text: the adversarial text; None unless fooled.
        trace: (queries so far, p of the label) each time it fell to a new low.
        rejected: renamings that would have counted but failed the check, by reason.
        minimal: the fewest of the renames that still fool the model; None if nobody asked for them.
        minimal_queries: distinct texts asked to find them, beyond `queries`.
    """

    id: str
    attack: str
    outcome: Outcome
    reason: str
    label: int
    p_original: float | None
    p_final: float | None
    queries: int
    identifiers: int
    renames: dict[str, str]
    text: str | None
    trace: tuple[tuple[int, float], ...]
    rejected: dict[str, int]
    minimal: dict[str, str] | None
    minimal_queries: int

    @property
    def was_right(self) -> bool:
        """Whether the model classified the original text correctly."""
        return self.p_original is not None and self.outcome != "already wrong"
