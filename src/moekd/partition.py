"""One group of vulnerable functions for each expert: by CWE, at random, or by cluster.

Only vulnerable functions have a group. Which groups exist is decided on half A of the training part, the one
that experts and router learn from; the other parts are placed into those groups and decide nothing.
Source: MoEKD, arXiv:2603.13213, section 3; the table of CWE ids is ours, from CWE 4.14.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moekd.data.cwe import OTHER, UNKNOWN, cwe_version, group_by_cwe, group_of_cwe
from moekd.errors import DataError, SettingsError
from moekd.files import read_arrays, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from moekd.config import MoekdSettings
    from moekd.records import Sample

PARTITION_FILE = "partition.json"
EMBEDDINGS_FILE = "embeddings.npz"


@dataclass(frozen=True)
class Groups:
    """Which expert's group a vulnerable function belongs to.

    Attributes:
        names: one an expert, in the order of the experts and of the router's classes: by name, then
            `other` and `unknown`.
        of: sample id -> index into `names`. A function that no group takes is absent, as are all
            non-vulnerable ones.
    """

    names: tuple[str, ...]
    of: dict[str, int]

    def sizes(self, samples: Iterable[Sample]) -> dict[str, int]:
        """Count `samples` by group, every group named, also the empty ones."""
        counts = Counter(self.of[s.id] for s in samples if s.id in self.of)
        return {name: counts[index] for index, name in enumerate(self.names)}


# ------------------------------------------------------------------------------------------------ by CWE


def by_cwe(
    half_a: Sequence[Sample], elsewhere: Sequence[Sample], *, min_samples: int, pinned: Sequence[str] = ()
) -> Groups:
    """Group vulnerable functions by the pillar or category of their CWE.

    Args:
        half_a: vulnerable functions that decide which groups exist.
        elsewhere: vulnerable functions of the other parts, placed only.
        min_samples: a group with fewer functions in half A goes to `other`. `other` itself has no
            place to go to and stays however small, unless it is empty; then a function elsewhere that
            would belong there has no group.
        pinned: names that replace the size rule. They must hold `other`, which takes the rest.
    Raises:
        SettingsError: a pinned name is no group, or `other` is not among them.
        DataError: a pinned group has no function in half A.
    """
    sizes = Counter(group_of_cwe(s.cwe) for s in half_a)
    names = _pinned(pinned, sizes) if pinned else _by_size_rule(sizes, min_samples)
    index = {name: position for position, name in enumerate(names)}
    places = {s.id: index.get(group_of_cwe(s.cwe), index.get(OTHER)) for s in (*half_a, *elsewhere)}
    return Groups(names, {sample_id: group for sample_id, group in places.items() if group is not None})


def _by_size_rule(sizes: Mapping[str, int], min_samples: int) -> tuple[str, ...]:
    large = {name for name, size in sizes.items() if size >= min_samples}
    return _in_order(large if large == set(sizes) else large | {OTHER})


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (name == UNKNOWN, name == OTHER, name)))


def _pinned(names: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    allowed = _in_order({*group_by_cwe().values(), OTHER, UNKNOWN})
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0)[0]
            raise SettingsError(
                f"partition.groups: no group is called {name!r}; did you mean {near!r}? Allowed: {', '.join(allowed)}."
            )
    if OTHER not in names:
        raise SettingsError(f"partition.groups must hold {OTHER!r}: functions outside the pinned groups go there")
    rest = sum(size for name, size in sizes.items() if name not in names)
    for name in names:
        if sizes.get(name, 0) + (rest if name == OTHER else 0) == 0:
            raise DataError(
                f"partition.groups pins {name!r}, but half A has no vulnerable function of it; "
                "take the name out or give more data"
            )
    return _in_order(set(names))


# ---------------------------------------------------------------------------------------------- controls


def at_random(parts: Sequence[Sequence[Sample]], *, like: Groups, rng: np.random.Generator) -> Groups:
    """Deal the vulnerable functions of each part into groups of the same number and sizes as `like`, blindly.

    The control for "does the taxonomy matter?" (methods.md 6.6). The names stay those of `like` although the
    members are random: expert i takes the place of group i behind the same router. Functions of parts that are not
    given have no random group.
    """
    dealt: dict[str, int] = {}
    for part in parts:
        members = [s.id for s in part if s.id in like.of]
        dealt |= zip(members, rng.permutation([like.of[member] for member in members]).tolist(), strict=True)
    return Groups(like.names, dealt)


def by_clusters(
    half_a: Sequence[Sample], elsewhere: Sequence[Sample], vectors: np.ndarray, *, clusters: int, seed: int
) -> Groups:
    """Group by k-means on encoder embeddings; functions outside half A go to the nearest centroid.

    Args:
        vectors: embeddings, (half A + elsewhere, width), rows in that order.
        clusters: number of groups. There is no size rule: a cluster is as large as it comes out.
    Raises:
        DataError: half A has fewer distinct embeddings than `clusters`.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    known = vectors[: len(half_a)]
    distinct = len(np.unique(known, axis=0))
    if distinct < clusters:
        raise DataError(
            f"half A has {distinct} distinct embeddings of vulnerable functions, too few for "
            f"partition.clusters = {clusters}; lower it"
        )
    model = KMeans(n_clusters=clusters, n_init=10, random_state=seed).fit(known)
    names = tuple(f"cluster-{number:02d}" for number in range(clusters))
    members = model.predict(vectors).tolist()
    return Groups(names, {s.id: group for s, group in zip((*half_a, *elsewhere), members, strict=True)})


# ------------------------------------------------------------------------------------------------- stage


def assign(
    settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, scheme: str, seed: int = 0
) -> dict[str, Any]:
    """Write `partition.json` and return the sizes of the groups in half A.

    Args:
        inputs: `data`; for `kmeans` also `embeddings`, a folder whose `embeddings.npz` holds ids, digests and
            values, (samples, width), for at least the vulnerable functions; for `random` also `like`, another
            partition's folder.
        scheme: `cwe`, `random` (sizes and names of `like`, by default of `cwe`) or `kmeans`.
        seed: of `random` and `kmeans`.
    Raises:
        DataError: half A has no vulnerable function, or they form fewer than two groups.
    """
    import numpy as np

    from moekd.data import load_parts

    parts = load_parts(inputs["data"])
    vulnerable = {part: [s for s in samples if s.label == 1] for part, samples in parts.items()}
    half_a = vulnerable.pop("train_a")
    elsewhere = [s for samples in vulnerable.values() for s in samples]
    if not half_a:
        raise DataError("half A of the training part has no vulnerable function, so there is nothing to partition")

    wanted = settings.partition
    if scheme == "kmeans":
        vectors = _vectors(inputs["embeddings"], (*half_a, *elsewhere))
        groups = by_clusters(half_a, elsewhere, vectors, clusters=wanted.clusters, seed=seed)
    elif "like" in inputs:
        groups = at_random((half_a, vulnerable["valid"]), like=load(inputs["like"]), rng=np.random.default_rng(seed))
    else:
        groups = by_cwe(half_a, elsewhere, min_samples=wanted.min_samples, pinned=wanted.groups)
        _require_two(groups, half_a)
        if scheme == "random":
            # Half A to learn from, validation to select epochs by, as the experts of CWE groups have.
            judged = (half_a, vulnerable["valid"])
            groups = at_random(judged, like=groups, rng=np.random.default_rng(seed))

    write_json(folder / PARTITION_FILE, {"scheme": scheme, "groups": list(groups.names), "group_of": groups.of})
    return {
        "scheme": scheme,
        "cwe_version": cwe_version(),
        "sizes_in_half_a": groups.sizes(half_a),
        "sizes_in_half_a_before_merging": _by_size(group_of_cwe(s.cwe) for s in half_a),
        "cwes_not_in_table": _by_size(
            s.cwe for s in (*half_a, *elsewhere) if s.cwe is not None and s.cwe not in group_by_cwe()
        ),
    }


def load(folder: Path) -> Groups:
    """Read what `assign` wrote into `folder`."""
    stored = read_json(folder / PARTITION_FILE)
    return Groups(tuple(stored["groups"]), stored["group_of"])


def _vectors(folder: Path, samples: Sequence[Sample]) -> np.ndarray:
    from moekd.scorer import rows_of

    stored = read_arrays(folder / EMBEDDINGS_FILE)
    rows = rows_of(stored["ids"].tolist(), stored["digests"].tolist(), samples, source=EMBEDDINGS_FILE)
    return stored["values"][rows]


def _require_two(groups: Groups, half_a: Sequence[Sample]) -> None:
    if len(groups.names) < 2:
        raise DataError(
            f"the {len(half_a)} vulnerable functions of half A form only one group, {groups.names[0]!r}; "
            "a mixture needs two. Lower partition.min_samples, or take data that has CWE ids"
        )


def _by_size(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
