"""Groups of vulnerable functions: the table of CWE ids, the size rule, and the two control partitions."""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd import partition
from moekd.config import MoekdSettings
from moekd.data.cwe import _table
from moekd.errors import DataError, SettingsError
from moekd.files import write_arrays
from moekd.partition import Groups, at_random, by_clusters, by_cwe, group_of_cwe
from moekd.records import Sample


def sample(number: int, *, cwe: str | None = None, label: int = 1, part: str = "a") -> Sample:
    return Sample(f"{part}:{number}", f"int f{number};", label, "toy", cwe=cwe, digest=f"d{part}{number}")


def samples(part: str = "a", /, **counts: int) -> list[Sample]:
    """`samples(CWE_119=3, none=2)`: vulnerable functions by CWE."""
    cwes = [name.replace("_", "-") for name, count in counts.items() for _ in range(count)]
    return [sample(i, cwe=None if cwe == "none" else cwe, part=part) for i, cwe in enumerate(cwes)]


def settings(**fields: object) -> MoekdSettings:
    return MoekdSettings.model_validate(
        {"name": "toy", "data": {"sources": [{"kind": "embedded"}]}, "partition": fields}
    )


def test_each_id_of_the_table_has_exactly_one_group():
    """An id in two rows would silently take the later one."""
    table = json.loads(files("moekd").joinpath("cwe_groups.json").read_text())
    counts = Counter(number for row in table["rows"] for number in row["ids"])
    assert max(counts.values()) == 1
    assert len(counts) == 170  # counted in the source table, CWE 4.14
    assert table["cwe_version"] == "4.14"


@pytest.mark.parametrize(
    ("cwe", "group"),
    [
        (None, "unknown"),
        ("CWE-399", "CWE-399"),  # a category, used as a label in the data
        ("CWE-264", "CWE-264"),
        ("CWE-189", "CWE-189"),
        ("CWE-119", "CWE-664"),
        ("CWE-416", "CWE-664"),
        ("CWE-415", "CWE-664"),  # also below 710: the primary path decides
        ("CWE-20", "CWE-707"),
        ("CWE-94", "CWE-707"),  # also below 664
        ("CWE-732", "CWE-284"),
        ("CWE-190", "CWE-682"),
        ("CWE-362", "CWE-691"),
        ("CWE-776", "CWE-691"),  # also below 664
        ("CWE-476", "other"),  # 710 and 703, neither of them a group
        ("CWE-254", "other"),  # a category without its own group here
        ("CWE-99999", "other"),  # not in the table
    ],
)
def test_group_of_cwe_follows_the_rule_in_order(cwe, group):
    """No CWE, the three categories, the five pillars, everything else."""
    assert group_of_cwe(cwe) == group


def test_small_groups_go_to_other():
    """With a minimum of 3: 664 has 3 and stays, 707 has 2 and joins the null dereference in `other`."""
    half_a = samples(CWE_119=3, CWE_20=2, CWE_476=1, none=4)
    groups = by_cwe(half_a, [], min_samples=3)
    assert groups.names == ("CWE-664", "other", "unknown")
    assert groups.sizes(half_a) == {"CWE-664": 3, "other": 3, "unknown": 4}


def test_half_a_decides_and_the_rest_is_placed():
    """A CWE that is large elsewhere but not in half A still goes to `other`."""
    half_a = samples(CWE_119=3, CWE_20=1)
    elsewhere = samples("b", CWE_20=50, CWE_787=1)
    groups = by_cwe(half_a, elsewhere, min_samples=2)
    assert groups.names == ("CWE-664", "other")
    assert groups.sizes(elsewhere) == {"CWE-664": 1, "other": 50}


def test_without_other_its_functions_elsewhere_have_no_group():
    """No expert can be trained for a group that half A lacks."""
    half_a = samples(CWE_119=2, CWE_20=2)
    elsewhere = samples("b", CWE_476=1, CWE_787=1)
    groups = by_cwe(half_a, elsewhere, min_samples=2)
    assert groups.names == ("CWE-664", "CWE-707")
    assert groups.sizes(elsewhere) == {"CWE-664": 1, "CWE-707": 0}
    assert "b:0" not in groups.of


def test_pinned_names_win_over_the_size_rule():
    """Pinned 691 stays with one function; 707, large but not pinned, goes to `other`."""
    half_a = samples(CWE_362=1, CWE_20=9)
    groups = by_cwe(half_a, [], min_samples=5, pinned=("other", "CWE-691"))
    assert groups.names == ("CWE-691", "other")
    assert groups.sizes(half_a) == {"CWE-691": 1, "other": 9}


@pytest.mark.parametrize(
    ("pinned", "error", "message"),
    [
        (("CWE-66", "other"), SettingsError, "'CWE-66'; did you mean 'CWE-664'"),
        (("CWE-664",), SettingsError, "must hold 'other'"),
        (("CWE-682", "other"), DataError, "pins 'CWE-682', but half A has no vulnerable function"),
    ],
)
def test_impossible_pins_are_refused(pinned, error, message):
    """A typo, no place for the rest, and an expert without a single example."""
    with pytest.raises(error, match=message):
        by_cwe(samples(CWE_119=3, CWE_20=2), [], min_samples=1, pinned=pinned)


@given(
    st.lists(st.sampled_from([None, "CWE-119", "CWE-20", "CWE-476", "CWE-264", "CWE-0"]), min_size=1),
    st.integers(1, 6),
)
def test_every_function_of_half_a_has_one_group_of_the_wanted_size(cwes, min_samples):
    """Whatever the data: nothing is lost, and only `other` may be smaller than the minimum."""
    half_a = [sample(i, cwe=cwe) for i, cwe in enumerate(cwes)]
    groups = by_cwe(half_a, [], min_samples=min_samples)
    sizes = groups.sizes(half_a)
    assert sum(sizes.values()) == len(half_a)
    assert all(size >= min_samples for name, size in sizes.items() if name != "other")
    assert all(sizes.values())
    assert list(groups.names) == sorted(groups.names, key=lambda n: (n == "unknown", n == "other", n))


def test_random_partition_keeps_sizes_and_names_and_nothing_else():
    """The control differs from the taxonomy in its members only; one seed, one partition."""
    half_a = samples(CWE_119=40, CWE_20=20, none=40)
    taxonomy = by_cwe(half_a, [], min_samples=10)
    first, again, other = (at_random([half_a], like=taxonomy, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.names == taxonomy.names
    assert first.sizes(half_a) == taxonomy.sizes(half_a)
    kept = sum(first.of[s.id] == taxonomy.of[s.id] for s in half_a)
    assert 20 < kept < 55  # 36 expected by chance: 100 (0.4^2 + 0.2^2 + 0.4^2)


def test_clusters_take_the_nearest_centroid():
    """Two blobs far apart: everything near a blob shares its cluster, also outside half A."""
    half_a, elsewhere = samples(none=20), samples("b", none=2)
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0]] * 10 + [[50.0, 50.0]] * 10 + [[1.0, 1.0], [49.0, 49.0]])
    vectors = centres + rng.normal(size=centres.shape)
    groups = by_clusters(half_a, elsewhere, vectors, clusters=2, seed=0)
    assert groups.names == ("cluster-00", "cluster-01")
    assert groups.sizes(half_a) == {"cluster-00": 10, "cluster-01": 10}
    assert groups.of["b:0"] == groups.of["a:0"] != groups.of["b:1"]
    assert groups.of["b:1"] == groups.of["a:19"]


def test_more_clusters_than_distinct_embeddings_are_refused():
    """k-means would return empty clusters, and their experts would have nothing to learn."""
    with pytest.raises(DataError, match=r"2 distinct embeddings .* partition.clusters = 3"):
        by_clusters(samples(none=4), [], np.array([[0.0], [1.0], [0.0], [1.0]]), clusters=3, seed=0)


# ------------------------------------------------------------------------------------------------- stage


@pytest.fixture
def parts(monkeypatch):
    """Stored parts: half A as below, one vulnerable and one benign function elsewhere."""
    stored = {
        "train_a": [*samples("a", CWE_119=4, CWE_20=3, none=5), sample(99, label=0)],
        "train_b": [*samples("b", CWE_787=1), sample(99, label=0, part="b")],
        "valid": samples("v", CWE_4242=2),
        "test": samples("t", none=1),
    }
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: stored, raising=False)
    return stored


def test_stage_by_cwe(parts, tmp_path):
    """All vulnerable functions of all parts have a group, no benign one has; facts name what was merged."""
    facts = partition.assign(settings(min_samples=4), {"data": tmp_path}, tmp_path, scheme="cwe")
    groups = partition.load(tmp_path)
    assert groups.names == ("CWE-664", "other", "unknown")
    assert groups.of == {
        **{f"a:{i}": 0 for i in range(4)},
        **{f"a:{i}": 1 for i in range(4, 7)},
        **{f"a:{i}": 2 for i in range(7, 12)},
        "b:0": 0, "v:0": 1, "v:1": 1, "t:0": 2,
    }  # fmt: skip
    assert facts["sizes_in_half_a"] == {"CWE-664": 4, "other": 3, "unknown": 5}
    assert facts["sizes_in_half_a_before_merging"] == {"unknown": 5, "CWE-664": 4, "CWE-707": 3}
    assert facts["cwes_not_in_table"] == {"CWE-4242": 2}


def test_stage_at_random_deals_half_a_and_validation_only(parts, tmp_path):
    """Experts learn from the one and are selected by the other; elsewhere a random group has no meaning."""
    partition.assign(settings(min_samples=4), {"data": tmp_path}, tmp_path, scheme="random", seed=3)
    groups = partition.load(tmp_path)
    assert groups.names == ("CWE-664", "other", "unknown")
    members = {s.id for part in ("train_a", "valid") for s in parts[part] if s.label == 1}
    assert set(groups.of) == members


def test_stage_by_clusters_aligns_embeddings_by_id(parts, tmp_path):
    """Rows in another order than the samples give the same groups; a changed text is refused."""
    everyone = [s for part in parts.values() for s in part][::-1]
    values = np.array([[10.0 * (s.cwe is None), len(everyone) % 3 + i / 100] for i, s in enumerate(everyone)])
    arrays = {
        "ids": np.array([s.id for s in everyone]),
        "digests": np.array([s.digest for s in everyone]),
        "values": values,
    }
    write_arrays(tmp_path / "embeddings.npz", arrays)
    inputs = {"data": tmp_path, "embeddings": tmp_path}
    partition.assign(settings(clusters=2), inputs, tmp_path, scheme="kmeans", seed=0)
    groups = partition.load(tmp_path)
    assert {groups.of[f"a:{i}"] for i in range(7)} == {groups.of["b:0"]}  # all with a CWE together
    assert {groups.of[f"a:{i}"] for i in range(7, 12)} == {groups.of["t:0"]} != {groups.of["b:0"]}

    write_arrays(tmp_path / "embeddings.npz", arrays | {"digests": np.array(["changed"] * len(everyone))})
    with pytest.raises(DataError, match="is not the one that was scored"):
        partition.assign(settings(clusters=2), inputs, tmp_path, scheme="kmeans", seed=0)


@pytest.mark.parametrize("scheme", ["cwe", "random"])
def test_one_group_is_no_partition(parts, tmp_path, scheme):
    """Everything merged into `other`: a mixture of one expert is no mixture."""
    with pytest.raises(DataError, match=r"form only one group, 'other'.*Lower partition.min_samples"):
        partition.assign(settings(min_samples=50), {"data": tmp_path}, tmp_path, scheme=scheme)


def test_no_vulnerable_function_is_refused(monkeypatch, tmp_path):
    """A data set of one class has nothing to partition."""
    benign = {part: [sample(0, label=0, part=part)] for part in ("train_a", "train_b", "valid", "test")}
    monkeypatch.setattr("moekd.data.load_parts", lambda folder: benign, raising=False)
    with pytest.raises(DataError, match="no vulnerable function"):
        partition.assign(settings(), {"data": tmp_path}, tmp_path, scheme="cwe")


def test_sizes_name_empty_groups():
    """A report must show an empty group as 0, not leave it out."""
    assert Groups(("x", "y"), {"a:0": 1}).sizes(samples(none=1)) == {"x": 0, "y": 1}


@pytest.mark.skipif("MOEKD_DATA" not in os.environ, reason="MOEKD_DATA names no folder of data sets")
def test_the_table_lists_every_cwe_of_bigvul():
    """An id that is missing from the table would land in `other` unseen; counts by hand from the file."""
    import pyarrow.parquet as pq

    path = Path(os.environ["MOEKD_DATA"]) / "bigvul.parquet"
    cwes = pq.read_table(path, columns=["cwe"], filters=[("label", "=", 1)])["cwe"].to_pylist()
    sizes = Counter(group_of_cwe(cwe) for cwe in cwes)
    listed = {f"CWE-{n}" for row in _table()["rows"] for n in row["ids"]}
    assert set(cwes) - listed == {None}
    assert (sizes["CWE-664"], sizes["CWE-264"], sizes["unknown"]) == (1026, 105, 4257)
