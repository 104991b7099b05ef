"""Attacks on detectors by renaming local variables: ALERT, MHM and WIR-Random, on any model.

    victim = load_victim("runs/student/.../model")      or any callable, texts -> probabilities
    names = Names(frequent_names(training_texts, 5000), Substitutes(path, settings))
    results = attack(victim, samples, settings, names, path=Path("attacks.jsonl"))
    robustness(results)

The headline is the attack success rate by B: fooled / classified correctly before (methods.md 7.5).
"""

from __future__ import annotations

from moekd.attack.measures import compare, counts, robustness, transfer
from moekd.attack.runner import attack, read_results
from moekd.attack.schedule import Names
from moekd.attack.substitutes import Substitutes
from moekd.attack.victims import ClassifierVictim, OnnxVictim, SavedVictim, ScorerVictim, Victim, load_victim
from moekd.attack.vocabulary import frequent_names

__all__ = [
    "ClassifierVictim",
    "Names",
    "OnnxVictim",
    "SavedVictim",
    "ScorerVictim",
    "Substitutes",
    "Victim",
    "attack",
    "compare",
    "counts",
    "frequent_names",
    "load_victim",
    "read_results",
    "robustness",
    "transfer",
]
