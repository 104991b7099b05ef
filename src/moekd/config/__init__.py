"""The one tree of settings, checked while loading (settings_loading.py reads TOML and `--set`).

A module holds the sections of one part of the pipeline: data, teachers, students, distill, evaluate; `base` what
several sections share, `roots` whole configs. Defaults live in these classes only. Every field that can change a result
is part of the digest of the stages that read it; `NotInKey` marks the few that change speed or place, never results,
`Added` those that came later.
"""

from moekd.config.base import Encoder, Settings, Training
from moekd.config.data import Data, Source
from moekd.config.distill import (
    AnnealedTemperature,
    AttentionTransfer,
    Competence,
    Continuation,
    Contrastive,
    Cosine,
    Decoupled,
    Dist,
    Distill,
    FeatureLoss,
    Hidden,
    LogitLoss,
    Patient,
    PriorKnowledge,
    Relational,
    Skewed,
    Standardised,
)
from moekd.config.evaluate import ATTACK_READS, SUBSTITUTES_READ, Attack, AttackName
from moekd.config.roots import MoekdSettings, PretrainSettings, RootSettings, Run
from moekd.config.students import PublishedMethod, Way
from moekd.config.teachers import Corpus, Experts, Pretrain

__all__ = [
    "ATTACK_READS",
    "SUBSTITUTES_READ",
    "AnnealedTemperature",
    "Attack",
    "AttackName",
    "AttentionTransfer",
    "Competence",
    "Continuation",
    "Contrastive",
    "Corpus",
    "Cosine",
    "Data",
    "Decoupled",
    "Dist",
    "Distill",
    "Encoder",
    "Experts",
    "FeatureLoss",
    "Hidden",
    "LogitLoss",
    "MoekdSettings",
    "Patient",
    "Pretrain",
    "PretrainSettings",
    "PriorKnowledge",
    "PublishedMethod",
    "Relational",
    "RootSettings",
    "Run",
    "Settings",
    "Skewed",
    "Source",
    "Standardised",
    "Training",
    "Way",
]
