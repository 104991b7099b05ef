"""Where the functions that were read went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Where the functions that were read went: kept + the sum of `dropped` = `read`.

    Attributes:
        read: functions read. A vulnerable record of BigVul's CSV holds two: before and after its fix.
        dropped: functions dropped, by reason.
        broken: the first broken records as "file, row 17: what is wrong"; rows count from 1 without the header.
        notes: what was kept with a remark, such as a CWE without a number, by remark.
        classes: multi-class: the number of each class that was found, by its name, in order of first occurrence.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.read - self.dropped.total()


@dataclass(frozen=True)
class Unusable:
    """Why a function is not kept; of a broken record, not only the reason but also the row is told, with `detail`."""

    reason: str
    detail: str = ""
    broken: bool = True


#: One function of a record: values by the names of COLUMNS, not checked yet; or why there is none.
Function = dict[str, Any] | Unusable
