"""Classes of the task "multi-class": found in the data, never listed in a config."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from moekd.data.cwe import group_of_cwe
from moekd.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.data.tally import Tally
    from moekd.records import Sample


def by_cwe_group(samples: Sequence[Sample], tally: Tally) -> list[Sample]:
    """Return the vulnerable functions of known CWE, with the group of the CWE as their class.

    The reasons of dropping: "not vulnerable" and "CWE unknown".
    """
    kept = []
    for sample in samples:
        if not sample.label or sample.cwe is None:
            tally.dropped["CWE unknown" if sample.label else "not vulnerable"] += 1
            continue
        number = tally.classes.setdefault(group_of_cwe(sample.cwe), len(tally.classes))
        kept.append(replace(sample, label=number))
    return kept


def common_classes(samples: Sequence[Sample], tally: Tally, *, least: int) -> tuple[list[Sample], tuple[str, ...]]:
    """Drop the classes of fewer than `least` functions and number the others by name.

    The reason of dropping is "rare class: NAME".

    Args:
        samples: with the labels of `tally.classes`.
    Returns:
        The samples that are left, and the names of their classes, label by label: alphabetically, numbers as numbers.
    Raises:
        DataError: fewer than two classes are left.
    """
    name_of = {number: name for name, number in tally.classes.items()}
    sizes = Counter(name_of[sample.label] for sample in samples)
    names = tuple(sorted((name for name, size in sizes.items() if size >= least), key=_by_number_or_name))
    if len(names) < 2:
        largest = ", ".join(f"{name}: {size:,}" for name, size in sizes.most_common(5)) or "none"
        raise DataError(
            f"data.sources: {len(names)} of {len(sizes)} classes have {least} functions or more; at least two must. "
            f"The largest: {largest}. Dropped before: {dict(tally.dropped) or 'none'}. Give more data or lower "
            "data.class_min_samples"
        )
    label_of = {name: label for label, name in enumerate(names)}
    kept = []
    for sample in samples:
        name = name_of[sample.label]
        if name in label_of:
            kept.append(replace(sample, label=label_of[name]))
        else:
            tally.dropped[f"rare class: {name}"] += 1
    return kept, names


def _by_number_or_name(name: str) -> tuple[float, str]:
    return (int(name) if name.isdecimal() else math.inf, name)
