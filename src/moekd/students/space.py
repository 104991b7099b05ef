"""Typed spaces of architectures to search: AVATAR's (MORPH's too) and ours, with their constraints.

A point is a row of positions on the axes while a search changes it, and a `Configuration`, with named fields, to
everything else. Compressor's space is in `compressor.py`: its five numbers are enumerated, not searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from moekd.classifier import sizes_of
from moekd.errors import SettingsError
from moekd.students.cost import cost_of, reference_parameters
from moekd.students.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

SpaceName: TypeAlias = Literal["avatar", "moekd"]

_WHOLE = ("vocabulary", "layers", "hidden", "heads", "intermediate", "max_length", "batch_size")


@dataclass(frozen=True)
class Configuration:
    """One student and how it is trained. Fields that a space does not search keep these values.

    Raises:
        ValueError: a size is no whole number of 1 or more, or a rate is out of range; configurations come from files.
    """

    vocabulary: int
    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_length: int  # tokens
    tokenizer: str = "bpe"
    activation: str = "gelu"
    position: str = "absolute"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    learning_rate: float = 1e-3
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in _WHOLE:
            size = getattr(self, name)
            if not (isinstance(size, int) and size >= 1):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {size!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        for name, share in (("hidden", self.hidden_dropout), ("attention", self.attention_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}_dropout must be 0 or more and below 1, got {share!r}")

    def shape(self) -> Shape:
        """The architecture; RoBERTa's positions start two rows late. ValueError if heads do not divide hidden."""
        return Shape(
            **sizes_of(self),
            vocabulary=self.vocabulary,
            max_length=self.max_length,
            positions=self.max_length + 2,
            activation=self.activation,
        )

    def parameters(self) -> int:
        """As built; relative positions bring a table for each layer (methods.md appendix A)."""
        shape = self.shape()
        tables = self.layers * (2 * shape.positions - 1) * (self.hidden // self.heads)
        return shape.parameters() + (0 if self.position == "absolute" else tables)

    def reference_bytes(self) -> int:
        """Weights by the references' formula, which knows neither relative positions nor the tokenizer."""
        return 4 * int(
            reference_parameters(self.layers, self.hidden, self.intermediate, self.vocabulary, self.max_length)
        )


@dataclass(frozen=True)
class Space:
    """Axes by field of `Configuration`, their values in order.

    Attributes:
        name: of the space.
        axes: field -> allowed values, ascending where there is an order.
        kinds: fields whose values have no order; a surrogate reads them one-hot.
    """

    name: SpaceName
    axes: dict[str, Sequence[Any]]
    kinds: frozenset[str] = frozenset()

    def only(self, **values: str) -> Space:
        """The same space with one value left of some axes; axes that it does not have are passed over."""
        return replace(self, axes=self.axes | {name: (value,) for name, value in values.items() if name in self.axes})

    def configuration(self, row: np.ndarray) -> Configuration:
        """The configuration at positions `row`, int, (axes,)."""
        values = {name: values[int(place)] for (name, values), place in zip(self.axes.items(), row, strict=True)}
        return Configuration(**values)

    def repaired(self, rows: np.ndarray) -> np.ndarray:
        """Positions, (points, axes), rounded and clipped; hidden moved to the nearest width that heads divide.

        Where a number of heads divides no width of a narrow space, the next smaller one that does takes its place.
        """
        import numpy as np

        rows = np.clip(np.rint(rows).astype(np.int64), 0, [len(values) - 1 for values in self.axes.values()])
        names = list(self.axes)
        hidden, heads = names.index("hidden"), names.index("heads")
        rows[:, [heads, hidden]] = self._fitting[rows[:, heads], rows[:, hidden]]
        return rows

    @cached_property
    def _fitting(self) -> np.ndarray:
        """For positions of heads and hidden, those that fit each other; int64, (heads, hidden, 2)."""
        import numpy as np

        widths = np.array(self.axes["hidden"])
        table = np.zeros((len(self.axes["heads"]), len(widths), 2), dtype=np.int64)
        fits = np.arange(len(widths))  # before the first: a single head divides every width
        place = 0
        for index, heads in enumerate(self.axes["heads"]):
            divided = np.flatnonzero(widths % heads == 0)
            if len(divided):
                fits, place = divided, index
            nearest = np.abs(widths[fits][None] - widths[:, None]).argmin(axis=1)
            table[index, :, 0], table[index, :, 1] = place, fits[nearest]
        return table

    def at_random(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` rows of positions that obey the constraints, int64, (count, axes)."""
        return self.repaired(rng.integers(0, [len(values) for values in self.axes.values()], (count, len(self.axes))))

    def latin_hypercube(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """As `at_random`, but of `count` equal slices of each axis every one is drawn from once, before repair.

        Source: McKay, Beckman, Conover 1979, Technometrics 21(2).
        """
        import numpy as np

        lengths = np.array([len(values) for values in self.axes.values()])
        slices = rng.permuted(np.tile(np.arange(count), (len(lengths), 1)), axis=1).T  # (count, axes)
        places = (slices + rng.random(slices.shape)) / count * lengths
        return self.repaired(np.floor(places))


#: AVATAR's ranges before pruning, on the grid of its solver: start, stop (excluded), step. Intermediate sizes start at
#: 32, as in the box that its search ships with (methods.md 2.2); the solver's own grid starts at 16 (2.3).
_AVATAR_GRID = {
    "vocabulary": range(1000, 50_266, 1000),
    "layers": range(1, 13),
    "hidden": range(16, 769, 16),
    "heads": range(1, 13),
    "intermediate": range(32, 3073, 32),
    "max_length": range(256, 513, 16),
}


def prune(grid: Mapping[str, range], budget_bytes: int) -> dict[str, tuple[int, int]]:
    """The smallest box that holds every architecture of a grid whose formula size is within the budget.

    Constraints, for an SMT solver: heads divide hidden, 4 · reference_parameters <= budget. Each bound is found by
    bisection with a proof that nothing lies beyond it; the reference enumerates some models and takes their box.

    Args:
        grid: vocabulary, layers, hidden, heads, intermediate and max_length.
        budget_bytes: limit of the formula's size.
    Returns:
        Lowest and highest value of each axis.
    Raises:
        SettingsError: nothing fits; says the smallest budget for which something does.
    Source: Shi et al. 2024 (AVATAR), arXiv:2309.04076, and its code; methods.md 2.3.
    """
    import z3

    places = {name: z3.Int(name) for name in grid}
    solver = z3.Solver()
    for name, values in grid.items():
        solver.add(places[name] >= 0, places[name] < len(values))
    at = {name: values.start + values.step * places[name] for name, values in grid.items()}
    size = 4 * reference_parameters(*(at[name] for name in _FORMULA))
    solver.add(at["hidden"] % at["heads"] == 0, size <= budget_bytes)
    if solver.check() != z3.sat:
        smallest = 4 * reference_parameters(*(grid[name].start for name in _FORMULA))
        raise _nothing_fits("AVATAR's", budget_bytes, smallest, "4 x parameters by its formula")

    def exists(condition: z3.BoolRef) -> bool:
        answer = solver.check(condition)
        assert answer != z3.unknown, f"the solver gave up on {condition}"
        return bool(answer == z3.sat)

    def bounds(name: str) -> tuple[int, int]:
        place, last = places[name], len(grid[name]) - 1
        low = _first(last + 1, lambda x: exists(place <= x))
        high = last - _first(last + 1, lambda x: exists(place >= last - x))
        return grid[name][low], grid[name][high]

    return {name: bounds(name) for name in grid}


_FORMULA = ("layers", "hidden", "intermediate", "vocabulary", "max_length")  # what reference_parameters reads


def avatar_space(budget_bytes: int) -> Space:
    """AVATAR's 13 dimensions within the box that its size constraint leaves; MORPH searches the same ones.

    Raises:
        SettingsError: nothing fits the budget.
    Source: methods.md 2.2. Dropout stops at 0.5, where the reference's code may draw 0.6.
    """
    box = prune(_AVATAR_GRID, budget_bytes)
    whole: dict[str, Sequence[Any]] = {name: range(low, high + 1) for name, (low, high) in box.items()}
    return Space(
        name="avatar",
        axes={
            **whole,
            "tokenizer": ("bpe", "wordpiece", "unigram", "word"),
            "activation": ("gelu", "relu", "silu", "gelu_new"),
            "position": ("absolute", "relative_key", "relative_key_query"),
            "hidden_dropout": (0.2, 0.3, 0.4, 0.5),
            "attention_dropout": (0.2, 0.3, 0.4, 0.5),
            "learning_rate": (5e-5, 1e-4, 1e-3),
            "batch_size": (16, 32, 64),
        },
        kinds=frozenset({"tokenizer", "activation", "position"}),
    )


def moekd_space(budget_bytes: int) -> Space:
    """Ours: what our code builds, exports and quantises; the budget is of the files as shipped in int8.

    Each axis ends where the smallest of all other sizes no longer leaves room for more.

    Raises:
        SettingsError: nothing fits the budget.
    """
    axes: dict[str, Sequence[Any]] = {
        "vocabulary": range(1000, 16_001, 500),
        "layers": range(1, 9),
        "hidden": range(32, 385, 16),
        "heads": (1, 2, 4, 8),
        "intermediate": range(64, 1537, 32),
        "max_length": (256, 384, 512),
    }
    least = Configuration(**{name: values[0] for name, values in axes.items()})
    smallest = shipped_bytes(least)
    if smallest > budget_bytes:
        raise _nothing_fits("our", budget_bytes, smallest, "all shipped files in int8, estimated")

    def fits(name: str, value: Any) -> bool:
        return shipped_bytes(replace(least, **{name: value})) <= budget_bytes

    return Space(
        name="moekd",
        axes={name: tuple(value for value in values if fits(name, value)) for name, values in axes.items()},
    )


def shipped_bytes(configuration: Configuration) -> int:
    """Estimated bytes of all shipped files in int8."""
    shape = configuration.shape()
    return cost_of(shape, length=shape.max_length).int8_bytes


def build_candidate(configuration: Configuration, tokenizer: Any, *, seed: int) -> Any:
    """The configuration's RoBERTa from random weights, with its dropouts."""
    import torch

    from moekd.classifier import roberta

    torch.manual_seed(seed)
    return roberta(
        tokenizer=tokenizer,
        max_length=configuration.max_length,
        **sizes_of(configuration),
        dropout=configuration.hidden_dropout,
        attention_dropout=configuration.attention_dropout,
        activation=configuration.activation,
    )


def _nothing_fits(whose: str, budget_bytes: int, smallest: int, measure: str) -> SettingsError:
    return SettingsError(
        f"no architecture of {whose} space meets the size constraint ({measure} <= {budget_bytes:,} bytes): the "
        f"smallest takes {smallest:,} bytes. Ask for --budget {smallest}"
    )


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest x in 0 ... count - 1 for which `holds(x)`, which stays true once it is and is so for the last."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
