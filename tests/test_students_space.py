"""Spaces of architectures: pruning, repair, and what is said when nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from moekd.errors import SettingsError
from moekd.students.cost import reference_parameters
from moekd.students.space import Configuration, avatar_space, moekd_space, prune, shipped_bytes
from moekd.students.surrogate import spread

AVATAR_3MB = Configuration(
    vocabulary=19_302,
    layers=7,
    hidden=18,
    heads=6,
    intermediate=1491,
    max_length=351,
    activation="gelu_new",
    hidden_dropout=0.5,
    attention_dropout=0.4,
)


@pytest.fixture(scope="module")
def avatar():
    return avatar_space(3_000_000)


def test_the_box_of_three_megabytes_is_the_published_one(avatar):
    """methods.md 2.3: hidden at most 256 and vocabulary at most 46,000; the other ranges stay whole."""
    ends = {name: (values[0], values[-1]) for name, values in avatar.axes.items()}
    assert ends["hidden"] == (16, 256)
    assert ends["vocabulary"] == (1000, 46_000)
    assert ends["layers"] == ends["heads"] == (1, 12)
    assert (ends["intermediate"], ends["max_length"]) == ((32, 3072), (256, 512))
    assert len(avatar.axes) == 13


def test_pruning_agrees_with_counting():
    """On a grid small enough to try everything, with a budget that cuts every axis."""
    grid = {
        "vocabulary": range(1000, 3001, 500),
        "layers": range(1, 5),
        "hidden": range(16, 49, 4),
        "heads": range(3, 8, 2),
        "intermediate": range(32, 161, 32),
        "max_length": range(64, 257, 64),
    }
    for budget in (120_000, 150_000, 260_000):
        fits = [
            point
            for point in itertools.product(*grid.values())
            if point[2] % point[3] == 0
            and 4 * reference_parameters(point[1], point[2], point[4], point[0], point[5]) <= budget
        ]
        expected = {
            name: (min(column), max(column)) for name, column in zip(grid, zip(*fits, strict=True), strict=True)
        }
        assert prune(grid, budget) == expected


def test_the_published_student_lies_in_the_space(avatar):
    """methods.md 2.6: 750,599 parameters."""
    row = np.array([list(values).index(getattr(AVATAR_3MB, name)) for name, values in avatar.axes.items()])
    assert avatar.configuration(row) == AVATAR_3MB
    assert AVATAR_3MB.parameters() == AVATAR_3MB.shape().parameters() == 750_599


def test_relative_positions_cost_a_table_a_layer():
    """2 · 353 - 1 offsets of width 18 / 6 in each of 7 layers."""
    values = vars(AVATAR_3MB) | {"position": "relative_key"}
    assert Configuration(**values).parameters() == 750_599 + 7 * 705 * 3


def test_points_at_random_obey_the_constraints(avatar):
    rows = avatar.at_random(300, np.random.default_rng(0))
    found = [avatar.configuration(row) for row in rows]
    assert all(one.hidden % one.heads == 0 for one in found)
    assert {one.heads for one in found} == set(range(1, 13))
    assert max(one.hidden_dropout for one in found) == 0.5


def test_a_latin_hypercube_draws_from_every_slice_once(avatar):
    """12 points on 12 layers, 24 on 12 heads, 8 on 4 dropouts: each value once, twice, twice; the seed decides."""
    rows = {count: avatar.latin_hypercube(count, np.random.default_rng(1)) for count in (12, 24, 8)}
    names = list(avatar.axes)
    for count, name in ((12, "layers"), (24, "heads"), (8, "hidden_dropout")):
        values = [getattr(avatar.configuration(row), name) for row in rows[count]]
        assert sorted(values) == sorted(list(avatar.axes[name]) * (count // len(avatar.axes[name])))
    assert (rows[12] == avatar.latin_hypercube(12, np.random.default_rng(1))).all()
    hidden, heads = rows[24][:, names.index("hidden")], rows[24][:, names.index("heads")]
    assert all((16 + h) % (1 + a) == 0 for h, a in zip(hidden, heads, strict=True)), "repaired"


def test_repair_moves_hidden_to_the_nearest_width():
    """Heads 12 and hidden 32 -> 36; positions beyond an axis return to its end; fractions are rounded."""
    space = avatar_space(3_000_000)
    names = list(space.axes)
    row = np.zeros((1, len(names)))
    row[0, names.index("hidden")] = 32 - 16 + 0.4
    row[0, names.index("heads")] = 99
    row[0, names.index("layers")] = -3
    found = space.configuration(space.repaired(row)[0])
    assert (found.hidden, found.heads, found.layers) == (36, 12, 1)


def test_a_narrow_space_lowers_the_heads():
    """Of one width, 16, only 1, 2, 4 and 8 heads are left of 1 to 12."""
    space = replace(avatar_space(3_000_000), axes=avatar_space(3_000_000).axes | {"hidden": (16,)})
    found = [space.configuration(row) for row in space.at_random(100, np.random.default_rng(0))]
    assert {one.heads for one in found} == {1, 2, 4, 8}


def test_an_empty_set_names_the_constraint_and_the_nearest_budget():
    """AVATAR's smallest: h 16, i 32, L 1, v 1000, s 256."""
    smallest = 4 * reference_parameters(1, 16, 32, 1000, 256)
    with pytest.raises(SettingsError, match=rf"AVATAR's space.*4 x parameters.*<= 50,000 bytes.*--budget {smallest}"):
        avatar_space(50_000)
    assert avatar_space(smallest).axes["hidden"] == range(16, 17)
    with pytest.raises(SettingsError, match=r"our space .*int8, estimated <= 50,000 bytes.*--budget (\d+)") as error:
        moekd_space(50_000)
    assert moekd_space(int(str(error.value).rpartition(" ")[2]))


def test_our_space_ends_where_the_budget_does():
    """At 3 MB no axis is cut. At 250 kB the last width and vocabulary are the largest that fit beside the smallest of
    all else, so that candidates are found at random instead of none in ten thousand."""
    whole = moekd_space(3_000_000).axes
    assert [values[-1] for values in whole.values()] == [16_000, 8, 384, 8, 1536, 512]
    cut = moekd_space(250_000)
    for name in ("vocabulary", "hidden"):
        least = Configuration(**{name: values[0] for name, values in cut.axes.items()})
        after = whole[name][len(cut.axes[name])]
        assert shipped_bytes(replace(least, **{name: cut.axes[name][-1]})) <= 250_000
        assert shipped_bytes(replace(least, **{name: after})) > 250_000
    rng = np.random.default_rng(0)
    assert len(spread(cut, 12, lambda one: shipped_bytes(one) <= 250_000, rng)) == 12


def test_int8_ships_a_larger_student():
    """The compact student takes 2.6 MB in fp32 and well under a megabyte in int8."""
    compact = Configuration(vocabulary=1500, layers=3, hidden=128, heads=4, intermediate=256, max_length=384)
    assert 750_000 < shipped_bytes(compact) < 850_000
