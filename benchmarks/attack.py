"""Attack speed: the references' way of asking a model against ours, paired in one run.

    python benchmarks/attack.py MODEL ... --data DATA [--functions 24] [--budget 60] [--processes 2] [--out FILE.json]

MODEL is the folder of a saved classifier, or the name of a student's shape: then its tokenizer is trained on the
functions that are not attacked, its weights are random, its head is shifted and scaled so that answers differ, and its
own answers are the labels, so that every function is attacked. DATA is a file of labelled functions or the folder of a
data stage, of which the test part is attacked.

All ways run the same attacks on the same functions with the same candidates on one thread, a round of a few functions
after the other, each round in all ways. The slow way is what the references do: every variant is parsed, tokenised
whole and padded to the maximal length, and one function's variants are scored at a time in eager fp32 PyTorch. Ours is
timed in fp32, whose answers must be the same, and in bf16, whose agreement is stated. `matrix products` is the time of
nothing but the products that the rows scored by ours need, at their real lengths. The slow way allocates as libraries
do by default: tensors of hundreds of megabytes come from the kernel each time. That ours does not is a part of ours.

Seconds are of processor time, system calls included: on one thread of an idle machine that is the time that passes,
and other work on the machine does not count. A function with nothing to rename is asked for once in an attack and gains
least, and weighs nothing `in_all`, which compares sums over all functions.

`names` compares ALERT's candidate names, `--names` functions: whole readings of each prediction by the library, as the
references ask for them, with ours of the tokens near the place; how far the candidates agree is stated.

`processes` compares the time that passes until all functions are attacked by several processes, their start included,
with that of one; for this the machine must be idle.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd import numerics
from moekd.attack import ClassifierVictim, Names, SavedVictim, attack, frequent_names
from moekd.attack.victims import p_vulnerable
from moekd.rewrite import Template
from moekd.steps import commit

if TYPE_CHECKING:
    from moekd.classifier import Classifier
    from moekd.config import Attack
    from moekd.records import AttackResult, Sample
    from moekd.tokens import Tokens

SLOW, FAST, BF16 = "references' way, fp32", "ours, fp32", "ours, bf16"


class SlowVictim:
    """Answers as the references ask: everything anew for every text, padded to the maximal length.

    Attributes:
        scored: texts that went through the model.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.scored = 0
        classifier.model.set_attn_implementation("eager")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        for text in texts:
            Template.of(text)
        batch = self.classifier.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.classifier.max_length,
            return_tensors="pt",
        ).to(numerics.device())
        with torch.inference_mode():
            logits = self.classifier.model(**batch).logits.float().cpu().numpy()
        self.scored += len(texts)
        return p_vulnerable(logits)


class CountingVictim(ClassifierVictim):
    """Ours, which remembers the lengths of the rows that went through the model."""

    def __init__(self, classifier: Classifier, *, bf16: bool = False) -> None:
        super().__init__(classifier, bf16=bf16)
        self.lengths: list[int] = []

    def score(self, tokens: Tokens) -> np.ndarray:
        self.lengths += tokens.lengths.tolist()
        return super().score(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--functions", type=int, default=24)
    parser.add_argument("--round", type=int, default=4, help="functions of a round")
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--names", type=int, default=4, help="functions that ALERT's names are looked for")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    numerics.configure(1)
    attacked, others = drawn(chosen.data, chosen.functions)
    found = {Path(name).name: measured(name, attacked, others, chosen) for name in chosen.models}
    about = {"commit": commit(), "functions": chosen.functions, "budget": chosen.budget, "threads": 1}
    text = json.dumps(about | found | {"names": names_measured(attacked[: chosen.names])}, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


def drawn(data: Path, count: int) -> tuple[list[Sample], list[Sample]]:
    """Functions to attack, drawn by seed, and others to take names and tokenizers from."""
    from moekd.attack.stage import attacked_samples
    from moekd.config import Attack
    from moekd.data import load_parts, read_samples

    settings = Attack(samples=count)
    if data.is_dir():
        parts = load_parts(data)
        return attacked_samples(parts["test"], settings), parts["train_b"]
    samples = read_samples(data).samples
    attacked = attacked_samples(samples, settings)
    taken = {one.id for one in attacked}
    return attacked, [one for one in samples if one.id not in taken]


def measured(
    name: str, samples: Sequence[Sample], others: Sequence[Sample], chosen: argparse.Namespace
) -> dict[str, Any]:
    """All ways on one model, round by round."""
    from moekd.config import Attack

    size = chosen.round
    slow, fast, rough = (classifier_of(name, others) for _ in range(3))  # each with an attention of its own
    answers = fast.logits([one.func for one in samples]).argmax(axis=1)
    samples = [replace(one, label=int(answer)) for one, answer in zip(samples, answers, strict=True)]
    names = Names(frequent_names((one.func for one in others), 5000))
    settings = Attack(attacks=("mhm", "wir-random"), budget=chosen.budget)
    slow_victim, fast_victim, bf16_victim = SlowVictim(slow), CountingVictim(fast), CountingVictim(rough, bf16=True)
    ways: dict[str, Callable[[Sequence[Sample]], list[AttackResult]]] = {
        SLOW: lambda part: attack(slow_victim, part, settings, names, at_once=1),
        FAST: lambda part: attack(fast_victim, part, settings, names),
        BF16: lambda part: attack(bf16_victim, part, settings, names),
    }
    for victim in (slow_victim, fast_victim, bf16_victim):
        victim([samples[0].func])  # warm-up
    results: dict[str, list[AttackResult]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in (*ways, "matrix products")}
    scored = []
    for start in range(0, len(samples), size):
        fast_victim.lengths = []
        for way, work in ways.items():
            allocate_from_the_kernel(from_bytes=_LIBRARY if way == SLOW else _NEVER)
            began = time.process_time()
            results[way] += work(samples[start : start + size])
            seconds[way].append(time.process_time() - began)
        seconds["matrix products"].append(products(fast.model.config, fast_victim.lengths))
        scored.append(len(fast_victim.lengths))
        print(name, start, {way: round(taken[-1], 2) for way, taken in seconds.items()}, file=sys.stderr)
    variants = [
        sum(one.queries for one in results[SLOW][start : start + 2 * size])
        for start in range(0, len(results[SLOW]), 2 * size)
    ]
    return {
        "variants": sum(variants),
        "variants_scored_by_ours": sum(scored),
        "variants_per_second": {way: spread(np.array(variants) / seconds[way]) for way in ways},
        "times_as_fast": {way: ratio(seconds[SLOW], seconds[way]) for way in (FAST, BF16)},
        "times_the_matrix_products": ratio(seconds[FAST], seconds["matrix products"]),
        "processes": in_processes(fast, samples, settings, names, chosen.processes),
        "attacks": len(results[SLOW]),
        "fooled": sum(one.outcome == "fooled" for one in results[SLOW]),
        "same_verdict": {way: agreement(results[SLOW], results[way], ("outcome",)) for way in (FAST, BF16)},
        "same_verdict_renames_queries": {
            way: agreement(results[SLOW], results[way], ("outcome", "renames", "queries")) for way in (FAST, BF16)
        },
    }


def names_measured(samples: Sequence[Sample]) -> dict[str, Any]:
    """ALERT's candidate names by whole readings and by ours, on the same functions one after the other."""
    from moekd.attack.substitutes import Proposer
    from moekd.attack.variants import WholeRows
    from moekd.config import Attack

    whole, ours = (Proposer.from_pretrained(Attack()) for _ in range(2))
    whole.reader = WholeRows(whole.model.base_model)
    seconds: list[list[float]] = [[], []]
    agreeing = []
    for sample in (one for one in samples if Template.of(one.func).identifiers):
        found = []
        for taken, proposer in zip(seconds, (whole, ours), strict=True):
            began = time.process_time()
            found.append(proposer.propose(sample.func))
            taken.append(time.process_time() - began)
        agreeing += [jaccard(found[0][name], found[1][name]) for name in found[0] if found[0][name]]
        print("names", {"whole": round(seconds[0][-1], 2), "ours": round(seconds[1][-1], 2)}, file=sys.stderr)
    if not agreeing:
        return {}
    return {
        "functions": len(seconds[0]),
        "seconds_a_function": {"whole readings": statistics.mean(seconds[0]), "ours": statistics.mean(seconds[1])},
        "times_as_fast": ratio(*seconds),
        "agreement": {"identifiers": len(agreeing), "mean_jaccard": statistics.mean(agreeing)},
    }


def jaccard(first: Sequence[str], second: Sequence[str]) -> float:
    return len({*first} & {*second}) / len({*first} | {*second})


# Sizes from which glibc takes memory from the kernel for each tensor: what it grows to by itself, and none of ours.
_LIBRARY, _NEVER = 32 * 2**20, 2**30
_M_MMAP_THRESHOLD = -3  # malloc.h


def allocate_from_the_kernel(*, from_bytes: int) -> None:
    """Set the size from which a tensor's memory is taken from the kernel and given back; nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, from_bytes)


def in_processes(
    classifier: Classifier, samples: Sequence[Sample], settings: Attack, names: Names, processes: int
) -> dict[str, Any]:
    """Seconds that pass until all functions are attacked, by one process and by several."""
    with tempfile.TemporaryDirectory() as folder:
        classifier.save_pretrained(folder)
        results, seconds = [], []
        for workers in (1, processes):
            began = time.perf_counter()
            results.append(attack(SavedVictim(folder), samples, settings, names, workers=workers))
            seconds.append(time.perf_counter() - began)
    return {
        "count": processes,
        "times_as_fast_as_one": seconds[0] / seconds[1],
        "same_results": results[0] == results[1],
    }


def classifier_of(name: str, others: Sequence[Sample]) -> Classifier:
    import torch

    from moekd.classifier import Classifier
    from moekd.students.shapes import SHAPES, build_student
    from moekd.tokens import train_bpe

    if name not in SHAPES:
        return Classifier.from_pretrained(name)
    shape, texts = SHAPES[name], [one.func for one in others]
    tokenizer = train_bpe(texts, vocabulary=shape.vocabulary, max_length=shape.max_length, lowercase=shape.lowercase)
    found = Classifier(build_student(shape, tokenizer, seed=0, dropout=0.0).eval(), tokenizer, shape.max_length)
    margins = np.diff(found.logits(texts[:64]), axis=1)
    last = found.model.classifier.out_proj if shape.architecture == "roberta" else found.model.classifier
    with torch.no_grad():
        last.bias[1] -= float(np.median(margins))
        for weight in (last.weight, last.bias):
            weight.mul_(1.0 / float(np.std(margins)))
    return found


def products(config: Any, lengths: Iterable[int]) -> float:
    """Processor seconds of the matrix products alone that a model needs for rows of these lengths, unpadded.

    Of the last layer of a RoBERTa shape, whose first token alone is read, queries, keys and values only.
    """
    import torch

    h, a = config.hidden_size, config.num_attention_heads
    is_roberta = config.model_type == "roberta"
    gate = 1 if is_roberta else 2  # ModernBERT's first feed-forward product makes the gate, too
    weights = [
        torch.randn(rows, columns)
        for rows, columns in ((3 * h, h), (h, h), (gate * config.intermediate_size, h), (h, config.intermediate_size))
    ]
    seconds = 0.0
    for length in lengths:
        inputs = [torch.randn(length, weight.shape[1]) for weight in weights]
        outputs = [torch.empty(length, len(weight)) for weight in weights]
        q, k, v = torch.randn(length, h // a), torch.randn(h // a, length), torch.randn(length, h // a)
        square, read = torch.empty(length, length), torch.empty(length, h // a)
        began = time.process_time()
        for layer in range(config.num_hidden_layers):
            whole = not is_roberta or layer < config.num_hidden_layers - 1
            for x, weight, y in list(zip(inputs, weights, outputs, strict=True))[: None if whole else 1]:
                torch.mm(x, weight.t(), out=y)
            for _ in range(a if whole else 0):
                torch.mm(q, k, out=square)
                torch.mm(square, v, out=read)
        seconds += time.process_time() - began
    return seconds


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and range over rounds."""
    return {"median": statistics.median(values.tolist()), "low": float(values.min()), "high": float(values.max())}


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How many times as long the first took: in all, and by rounds."""
    return {"in_all": sum(first) / sum(second)} | spread(np.array(first) / second)


def agreement(first: Sequence[AttackResult], second: Sequence[AttackResult], fields: Sequence[str]) -> float:
    """Share of attacks with the same fields."""
    same = [all(getattr(a, field) == getattr(b, field) for field in fields) for a, b in zip(first, second, strict=True)]
    return sum(same) / len(same)


if __name__ == "__main__":
    main()
