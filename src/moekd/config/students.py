"""What is taught: `[student]`, `[published]`, `[search]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moekd.config.base import Added, LongTraining, NotInKey, Settings


class StudentTraining(LongTraining):
    """Training of a student (methods.md 6.7)."""

    learning_rate: float = Field(1e-4, gt=0)  # AdamW, peak


StudentSystem = Literal["moe", "single", "hard", "ensemble", "random-partition", "pioneer", "soda"]


class Student(Settings):
    """Which students are trained (methods.md 1.2, 2.6, 6.7)."""

    shapes: tuple[str, ...] = Field(("wide-3mb",), min_length=1)  # names of students/shapes.py
    systems: tuple[StudentSystem, ...] = Field(("moe", "single", "hard", "ensemble", "random-partition"), min_length=1)
    group_head: bool = Added(False)  # also learn the router's CWE group, on the finished student: `moekd scan` shows it
    training: StudentTraining = StudentTraining()


PublishedMethod = Literal["compressor", "avatar", "morph"]
#: `reference`: with every defect of the method's code that changes results; `fixed`: with none; else `fixed` with that
#: one defect (students/published.py says what each is).
Way = Literal["reference", "fixed", "one-output-teacher", "sigmoid-targets", "frozen-biases", "unscaled-loss"]


class Published(Settings):
    """Published methods as whole systems: architecture, single teacher, their training (methods.md sections 1 to 3)."""

    systems: tuple[PublishedMethod, ...] = ()  # none: none is trained
    ways: tuple[Way, ...] = Field(("reference", "fixed"), min_length=1)
    sizes: tuple[Literal["3mb", "2mb", "1.6mb"], ...] = Field(("3mb",), min_length=1)
    epochs: int | None = Field(None, ge=1)  # of every student; None: each method's own, 20, 50 and 40
    # `avatar-3mb` = search.json of `moekd search avatar --budget 3MB --out FOLDER`: its pick replaces the published one
    searched: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _ways_exist(self) -> Published:
        if self.systems and "unscaled-loss" in self.ways and "morph" not in self.systems:
            raise ValueError(
                f'published.ways holds "unscaled-loss", which is of MORPH\'s code alone, and published.systems holds '
                f'{", ".join(self.systems)}: leave it out or add "morph"'
            )
        return self

    @model_validator(mode="after")
    def _searched_students_exist(self) -> Published:
        for student in self.searched:
            method, _, size = student.partition("-")
            if method not in ("avatar", "morph") or method not in self.systems or size not in self.sizes:
                raise ValueError(
                    f"published.searched holds {student!r}, which is not trained: name a method of published.systems "
                    "(avatar or morph; Compressor's architectures are optima already) and a size of published.sizes, "
                    "such as avatar-3mb"
                )
        return self


class Search(Settings):
    """Candidates that `moekd search` trains for its surrogates; none unless asked for."""

    points: int = Field(0, ge=0)  # candidates; a surrogate needs 10, AVATAR trains 20
    epochs: int = Field(20, ge=1)  # of each candidate; the rest as student.training and its own configuration
    workers: int = NotInKey(1, ge=1)  # processes
