"""Functions with renamed variables: for prediction flips, and for `pioneer`, a student that learns from them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moekd import numerics
from moekd.classifier import Classifier
from moekd.data import load_parts
from moekd.data.text import digest
from moekd.distill.targets import TARGETS_FILE
from moekd.errors import DataError
from moekd.files import write_bytes
from moekd.rewrite import Template, fault_of_renaming
from moekd.scorer import save_scores, scores_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from moekd.config import MoekdSettings
    from moekd.records import Sample

VARIANTS_FILE = "variants.jsonl"
#: Of each function. MORPH has one; two tell the student more than one wording, and cost the teacher two passes.
VARIANTS = 2


def score_variants(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path, *, seed: int) -> dict[str, Any]:
    """Stage: renamed variants of half B's functions, and the single teacher's logits of them.

    Args:
        inputs: `data`, and `teacher`, a folder with `model/`.
    """
    numerics.configure(settings.run.threads)
    samples = load_parts(inputs["data"])["train_b"]
    variants = [one for number in range(VARIANTS) for one in variants_of(samples, number, seed=seed)]
    lines = (json.dumps({"id": one.id, "func": one.func}, ensure_ascii=True) + "\n" for one in variants)
    write_bytes(folder / VARIANTS_FILE, "".join(lines).encode())
    started = time.monotonic()
    teacher = Classifier.from_pretrained(inputs["teacher"] / "model")
    logits = teacher.logits([one.func for one in variants])
    save_scores(folder / TARGETS_FILE, scores_of(variants, logits))
    return {"rows": {"score_seconds": time.monotonic() - started}, "functions": len(samples), "variants": len(variants)}


def variants_of(samples: Sequence[Sample], number: int, *, seed: int) -> list[Sample]:
    """One renamed variant of each sample that has anything to rename, in their order; `number` tells variants apart."""
    texts = renamed_functions(samples, samples, seed=numerics.seed_of(seed, "variant", number))
    return [
        replace(sample, id=f"{sample.id}~{number}", func=text, digest=digest(text))
        for sample, text in zip(samples, texts, strict=True)
        if text != sample.func
    ]


def load_variants(folder: Path, samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Variants by the row of the sample they were made from, each with its sample's label.

    Raises:
        DataError: a variant is of a function that is not among the samples.
    """
    row_of = {sample.id: row for row, sample in enumerate(samples)}
    found: dict[int, list[Sample]] = {}
    for line in (folder / VARIANTS_FILE).read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        origin = one["id"].rpartition("~")[0]
        if origin not in row_of:
            raise DataError(f"{folder / VARIANTS_FILE} was made from other data: {origin!r} is no function of half B")
        row = row_of[origin]
        variant = replace(samples[row], id=one["id"], func=one["func"], digest=digest(one["func"]))
        found.setdefault(row, []).append(variant)
    return found


def renamed_functions(samples: Sequence[Sample], named_after: Sequence[Sample], *, seed: int) -> list[str]:
    """Each function with all its local variables and parameters renamed, checked; unchanged where that is impossible.

    New names are those of variables of other functions, drawn by seed. MORPH takes them from a closed model and renames
    the function and its parameters (methods.md 3.2).
    """
    pool = sorted({one.name for sample in named_after for one in Template.of(sample.func).identifiers})
    return [_renamed(sample, pool, numerics.generator(seed, "renamed", sample.id)) for sample in samples]


def _renamed(sample: Sample, pool: Sequence[str], rng: np.random.Generator) -> str:
    template = Template.of(sample.func)
    # Looked at one by one: most of the thousands of names are never needed.
    free = (name for name in (pool[at] for at in rng.permutation(len(pool))) if template.is_free(name))
    # With fewer names than variables the first ones alone are renamed.
    renaming = dict(zip([one.name for one in template.identifiers], free, strict=False))
    return sample.func if fault_of_renaming(template, renaming) else template.render(renaming)
