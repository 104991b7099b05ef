"""What is learned from: `[data]`, `[partition]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moekd.config.base import Added, Settings
from moekd.records import TaskKind


class Source(Settings):
    """One input of the data stage; several are deduplicated across."""

    kind: Literal["embedded", "bigvul-csv", "parquet", "jsonl", "hub"]
    path: str | None = None  # file; $NAME is replaced from the environment
    name: str | None = None  # data set label in ids and reports; default: the file's stem
    columns: dict[str, str] = Field({})  # ours = theirs, where names differ; `func` and `label` are required
    count: int = Field(8000, ge=40)  # embedded: number of functions
    seed: int = 0  # embedded: generator seed
    revision: str | None = None  # hub: pinned revision
    split: str = "train"  # hub: which split

    @model_validator(mode="after")
    def _needs_a_place(self) -> Source:
        if self.kind != "embedded" and not self.path:
            raise ValueError(f"a source of kind {self.kind!r} needs `path`")
        return self


class Data(Settings):
    """Reading, cleaning, balancing and splitting (methods.md 6.3 step 1 and 6.7)."""

    sources: tuple[Source, ...] = Field(min_length=1)
    seed: int = 0  # of balancing, splitting and halving
    split: Literal["random", "commit", "project", "family", "time"] = "random"
    balance: bool = True  # one non-vulnerable function of the same project and length for each vulnerable one
    include_fixed: bool = False  # take functions after their fix as non-vulnerable candidates
    length_tolerance: float = Field(0.2, ge=0)  # share of the vulnerable function's lines
    near_duplicate_jaccard: float = Field(0.7, gt=0, le=1)  # of token 5-gram sets; candidates by MinHash
    max_characters: int = Field(40_000, ge=100)  # longer functions are dropped, with that reason
    limit: int | None = Field(None, ge=40)  # keep this many functions after balancing, drawn by seed
    shuffle_labels: bool = False  # a control: labels at random, so nothing can be learned
    # binary: vulnerable or not; multi-class: one of several named classes; pair: whether two functions are clones.
    task: TaskKind = Added("binary")
    classes: Literal["label", "cwe-group"] = Added("label")  # multi-class: column `label`, or group of a vulnerability
    class_min_samples: int = Added(20, ge=4)  # multi-class: functions of a class with fewer are dropped

    @model_validator(mode="after")
    def _fits_the_task(self) -> Data:
        if self.task == "binary":
            if self.classes != "label":
                raise ValueError(f'classes = "{self.classes}" is for task = "multi-class", got task = "binary"')
            return self
        if self.balance:
            raise ValueError(
                f"balance draws a non-vulnerable function for each vulnerable one, which task = "
                f'"{self.task}" has none of: set balance = false'
            )
        if self.task == "pair" and self.split != "random":
            raise ValueError(f'pairs are split by function, which is split = "random"; got "{self.split}"')
        if self.task == "pair" and self.classes != "label":
            raise ValueError(f'classes = "{self.classes}" is for task = "multi-class", got task = "pair"')
        named = ("parquet", "jsonl", "hub")
        if self.classes == "label" and any(source.kind not in named for source in self.sources):
            raise ValueError(
                f'task = "{self.task}" reads sources of kind {", ".join(named)}: others hold neither '
                "names of classes nor pairs"
            )
        return self


class Partition(Settings):
    """One subset of the vulnerable functions for each expert (methods.md 5.2, 6.3 step 2, appendix B)."""

    scheme: Literal["cwe", "random", "kmeans"] = "cwe"
    min_samples: int = Field(100, ge=1)  # vulnerable functions in half A; smaller groups go to `other`
    groups: tuple[str, ...] = ()  # pins the group names instead of the size rule
    clusters: int = Field(10, ge=2)  # kmeans only
