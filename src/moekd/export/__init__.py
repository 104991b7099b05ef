"""Stage 8: a saved student to the three files that the scanner loads, checked against the student itself.

The files are written only after they have passed: same answers as torch, and together no larger than the limit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd.data.cwe import UNKNOWN
from moekd.distill.group_head import GroupHead
from moekd.errors import DataError, SettingsError
from moekd.export.calibration import Calibration, calibrate, labels_of, probabilities, thresholds
from moekd.export.graph import graph_of
from moekd.files import require_folder, sha256_file, sha256_text, write_bytes, write_json
from moekd.scan.model import (
    FACTS_FILE,
    FILES,
    GRAPH_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    Precision,
    ScanModel,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.classifier import Classifier
    from moekd.records import Sample

__all__ = ["Calibration", "Parity", "calibrate", "compare", "export", "render", "thresholds"]

MAX_BYTES = 3_000_000
MIN_AGREEMENT = 0.99
_MAX_LOGIT_DIFFERENCE = 1e-3  # of float32; onnxruntime and torch add in other orders


@dataclass(frozen=True)
class Parity:
    """How the exported files answer beside the student in torch, on the same functions.

    Attributes:
        functions: how many were compared.
        max_logit_difference: largest absolute difference of a logit.
        label_agreement: share of functions with the same label.
    """

    functions: int
    max_logit_difference: float
    label_agreement: float


def export(
    student: Path,
    out: Path,
    *,
    data: Path,
    natural: Path | None = None,
    precision: Precision = "float32",
    min_agreement: float = MIN_AGREEMENT,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Write `model.onnx`, `tokenizer.json` and `model.json` of a saved student into `out`.

    Where the student's run has trained a group head for it (distill/group_head.py), the files answer with the CWE
    group, too. `unknown` is no answer: the others are given on the condition that the group is known.

    Args:
        student: folder of `Classifier.save_pretrained`, two classes.
        data: labelled validation functions for parity and temperature: a file of samples, or the folder of a data
            stage, of which the validation part is taken.
        natural: labelled functions at natural ratio for thresholds and shift; by default `data` again.
        precision: `int8` is dynamic quantisation of all weight matrices: about a quarter of the bytes.
        min_agreement: share of functions on which int8 must give the student's label.
        max_bytes: limit of all three files together.
    Returns:
        What `model.json` holds.
    Raises:
        SettingsError: the student cannot be loaded, int8 loses too much, or the files are too large.
        DataError: the functions cannot be read, or lack a class.
        OutputError: `out` is a file, or cannot be written.
    """
    require_folder(out)
    classifier = _load(student)
    head = group_head_of(student)
    valid = _samples(data)
    judged = valid if natural is None else _samples(natural)
    with TemporaryDirectory(prefix="moekd-export-") as temporary:
        folder = Path(temporary)
        (folder / GRAPH_FILE).write_bytes(graph_of(classifier, precision, head))
        (folder / TOKENIZER_FILE).write_bytes(_tokenizer(classifier))
        facts = _untested_facts(student, out.resolve().name, classifier, precision, folder)
        facts["cwe_groups"] = [] if head is None else list(head.names)
        write_json(folder / FACTS_FILE, facts)
        model = ScanModel.load(folder)

        logits = model.logits([sample.func for sample in valid])
        parity = compare(classifier.logits([sample.func for sample in valid]), logits)
        _require_parity(parity, precision, min_agreement)
        judged_logits = logits if natural is None else model.logits([sample.func for sample in judged])
        calibration = calibrate(logits, labels_of(valid), judged_logits, labels_of(judged))
        facts |= {
            "calibration": asdict(calibration) | _about(data, valid),
            "thresholds": _about(natural or data, judged)
            | {"rows": [asdict(row) for row in thresholds(judged, probabilities(judged_logits, calibration))]},
            "parity": asdict(parity) | _about(data, valid),
        }
        write_json(folder / FACTS_FILE, facts)
        _require_size({name: (folder / name).stat().st_size for name in FILES}, max_bytes, precision)
        for name in reversed(FILES):  # model.json last: it names the digests of the others
            write_bytes(out / name, (folder / name).read_bytes())
    return facts


def compare(expected: np.ndarray, found: np.ndarray) -> Parity:
    """Compare logits of the same functions, (functions, 2) each."""
    from moekd.evaluate import decisions

    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise DataError("logits hold NaN or infinity: the student has diverged; train it again")
    return Parity(
        len(expected),
        float(np.abs(expected.astype(np.float64) - found).max()),
        float((decisions(expected) == decisions(found)).mean()),
    )


def render(facts: dict[str, Any]) -> str:
    """Say in a few lines what was exported and what it was measured to be."""
    parity, calibration, table = facts["parity"], facts["calibration"], facts["thresholds"]
    size_bytes = sum(one["size_bytes"] for one in facts["files"].values())
    lines = [
        f"{facts['name']}, {facts['precision']}: graph and tokenizer {size_bytes:,} bytes",
        f"parity with torch on {parity['functions']} functions: largest logit difference "
        f"{parity['max_logit_difference']:.2g}, same label on {parity['label_agreement']:.2%}",
        *([f"kinds told apart: {', '.join(facts['cwe_groups'])}"] if facts["cwe_groups"] else []),
        f"calibration error {calibration['ece_before']:.4f}, with temperature {calibration['temperature']:.3g} "
        f"{calibration['ece_after']:.4f}; at natural ratio {calibration['ece_natural']:.4f}",
        f"thresholds from {table['functions']} functions, {table['vulnerable']} vulnerable:",
        "  false alarms   threshold   alarms per 1,000 lines   recall",
    ]
    for row in table["rows"]:
        recall = "-" if row["recall"] is None else f"{row['recall']:.3f}"
        lines.append(
            f"  {row['false_alarm_rate']:12.3%}   {row['p']:9.4f}   {row['alarms_per_kloc']:22.3f}   {recall:>6}"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the files


def _tokenizer(classifier: Classifier) -> bytes:
    backend = getattr(classifier.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SettingsError(
            f"the student's tokenizer is a {type(classifier.tokenizer).__name__}, which the scanner cannot read; "
            "save the student with a fast tokenizer"
        )
    return str(backend.to_str(pretty=False)).encode()


def _untested_facts(
    student: Path, name: str, classifier: Classifier, precision: Precision, folder: Path
) -> dict[str, Any]:
    """`model.json` as it must be to load the model for its own test."""
    from importlib.metadata import version

    weights = student / "model.safetensors"
    files = {
        name: {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in (GRAPH_FILE, TOKENIZER_FILE)
    }
    return {
        "schema": SCHEMA,
        "name": name,
        "precision": precision,
        "labels": [classifier.model.config.id2label[index] for index in range(2)],
        "max_tokens": classifier.max_length,
        "calibration": {"temperature": 1.0, "shift": 0.0},
        "thresholds": {"rows": []},
        "provenance": {
            "moekd_version": version("moekd"),
            "parameters": sum(weight.numel() for weight in classifier.model.parameters()),
            "student_sha256": sha256_file(weights) if weights.exists() else None,
        },
        "files": files,
    }


# ------------------------------------------------------------------------------------------------ the gates


def _require_parity(parity: Parity, precision: Precision, min_agreement: float) -> None:
    if precision == "float32" and parity.max_logit_difference > _MAX_LOGIT_DIFFERENCE:
        raise SettingsError(
            f"the exported graph differs from the student by up to {parity.max_logit_difference:.2g} in a logit over "
            f"{parity.functions} functions; at most {_MAX_LOGIT_DIFFERENCE:g} is rounding. This architecture cannot be "
            "exported by tracing"
        )
    if parity.label_agreement < min_agreement:
        raise SettingsError(
            f"{precision} gives the student's label on {parity.label_agreement:.2%} of {parity.functions} functions; "
            f"at least {min_agreement:.2%} is wanted. Export with --precision float32, or lower --min-agreement"
        )


def _require_size(sizes: dict[str, int], max_bytes: int, precision: Precision) -> None:
    total = sum(sizes.values())
    if total > max_bytes:
        parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        advice = "Try --precision int8 or a smaller student" if precision == "float32" else "Take a smaller student"
        raise SettingsError(
            f"the exported files are {total:,} bytes ({parts}); the limit is {max_bytes:,}. {advice}, or raise --budget"
        )


# ------------------------------------------------------------------------------------------------- helpers


def _load(student: Path) -> Classifier:
    from transformers.utils import logging as library

    from moekd.classifier import Classifier

    library.disable_progress_bar()  # of a file of a few megabytes
    if not (student / "config.json").is_file():
        raise SettingsError(f"{student} is not the folder of a saved student: there is no config.json in it")
    try:
        classifier = Classifier.from_pretrained(student)
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"cannot load the student in {student}: {str(error).splitlines()[0]}") from error
    if classifier.model.config.num_labels != 2:
        raise SettingsError(
            f"the model in {student} has {classifier.model.config.num_labels} classes; a detector has 2: not "
            "vulnerable, vulnerable"
        )
    return classifier


def group_head_of(student: Path) -> GroupHead | None:
    """Return the head that the student's run trained for it; None for a student of no run, or of one without heads."""
    place = student.resolve().parent  # <run folder>/student/<key>/model
    for manifest in sorted(place.parent.parent.glob("group-head/*/manifest.json")):
        if json.loads(manifest.read_bytes())["inputs"].get("student") == place.name:
            return GroupHead.load(manifest.parent).without(UNKNOWN)
    return None


def _samples(data: Path) -> list[Sample]:
    from moekd.data import SAMPLES, load_parts, read_samples

    samples = load_parts(data)["valid"] if (data / SAMPLES).is_file() else read_samples(data).samples
    labels = {sample.label for sample in samples}
    if labels != {0, 1}:
        raise DataError(
            f"{data} holds {len(samples)} functions with the labels {sorted(labels)}; calibration needs vulnerable "
            "and other functions"
        )
    return samples


def _about(data: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "data": data.resolve().name,
        "data_digest": sha256_text(" ".join(sorted(sample.digest for sample in samples))),
        "functions": len(samples),
        "vulnerable": sum(sample.label for sample in samples),
    }
