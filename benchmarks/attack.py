"""Attack speed: the references' way of asking a model against ours, paired in one run.

    python benchmarks/attack.py MODEL --data FILE [--functions 20] [--budget 200]

Both ways run the same attacks on the same functions with the same candidates. The slow way is what the references do:
every variant is parsed, tokenised whole and padded to the maximal length, and one function's variants are scored at a
time in eager fp32 PyTorch. Ours is timed in fp32, whose verdicts must be the same, and in bf16, whose agreement is
printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moekd import numerics
from moekd.attack import ClassifierVictim, Names, attack, frequent_names
from moekd.attack.victims import p_vulnerable
from moekd.rewrite import Template

if TYPE_CHECKING:
    from moekd.attack import Victim
    from moekd.classifier import Classifier
    from moekd.config import Attack
    from moekd.records import AttackResult, Sample


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


def main() -> None:
    from moekd.classifier import Classifier
    from moekd.config import Attack
    from moekd.data import read_samples

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a saved classifier")
    parser.add_argument("--data", required=True, help="labelled functions")
    parser.add_argument("--functions", type=int, default=20)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    numerics.configure(chosen.threads)
    slow, fast = (Classifier.from_pretrained(chosen.model) for _ in range(2))  # each with an attention of its own
    samples = read_samples(chosen.data).samples
    names = Names(frequent_names((one.func for one in samples[chosen.functions :]), 5000))
    attacked = samples[: chosen.functions]
    settings = Attack(attacks=("mhm", "wir-random"), budget=chosen.budget)
    threads = chosen.threads
    ways: dict[str, Callable[[], list[AttackResult]]] = {
        "references' way, fp32": lambda: timed(SlowVictim(slow), attacked, settings, names, threads=threads),
        "ours, fp32": lambda: timed(ClassifierVictim(fast), attacked, settings, names, workers=threads),
        "ours, bf16": lambda: timed(ClassifierVictim(fast, bf16=True), attacked, settings, names, workers=threads),
    }
    timed(ClassifierVictim(fast), attacked[:1], settings, names)  # warm-up
    results = {}
    base = None
    for way, work in ways.items():
        started = time.perf_counter()
        results[way] = work()
        seconds = time.perf_counter() - started
        variants = sum(one.queries for one in results[way])
        rate = variants / seconds
        base = base or rate
        print(f"{way:24} {variants:8,} variants {seconds:8.1f} s {rate:8.1f} variants/s  x{rate / base:.2f}")
    reference = results["references' way, fp32"]
    for way in ("ours, fp32", "ours, bf16"):
        same = sum(a.outcome == b.outcome for a, b in zip(reference, results[way], strict=True))
        print(f"{way}: {same} of {len(reference)} verdicts are those of the references' way")


def timed(
    victim: Victim,
    samples: Sequence[Sample],
    settings: Attack,
    names: Names,
    *,
    threads: int = 1,
    workers: int = 1,
) -> list[AttackResult]:
    """One way: all threads inside torch and a function after the other, or a function for each thread."""
    import torch

    torch.set_num_threads(threads)
    return attack(victim, samples, settings, names, at_once=1 if threads > 1 else 16, workers=workers)


if __name__ == "__main__":
    main()
