"""Stage 8: a saved student to the three files that the scanner loads, checked against the student itself.

The files are written only after they have passed: same answers as torch, and together no larger than the limit.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moekd.errors import DataError, SettingsError
from moekd.files import sha256_file, sha256_text, write_bytes, write_json
from moekd.scan.model import (
    FACTS_FILE,
    FILES,
    GRAPH_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    Precision,
    ScanModel,
    Threshold,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moekd.classifier import Classifier
    from moekd.records import Sample

MAX_BYTES = 3_000_000
MIN_AGREEMENT = 0.99
_MAX_LOGIT_DIFFERENCE = 1e-3  # of float32; onnxruntime and torch add in other orders
_OPSET = 17  # the first with LayerNormalization as one operator

#: False-alarm rates that a threshold is looked for; a rate needs at least one function that may be a false alarm.
_RATES = tuple(digit * 10.0**power for power in (-5, -4, -3, -2, -1) for digit in (1, 1.5, 2, 3, 5, 7))


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


@dataclass(frozen=True)
class Calibration:
    """From margins to probabilities (see `calibrate`), and the calibration error it leaves.

    Attributes:
        temperature: margins are divided by it.
        shift: added afterwards; 0 where validation data have the ratio that thresholds are measured at.
        ece_before, ece_after: on the validation functions, without and with the temperature.
        ece_natural: on the functions at natural ratio, with both.
    """

    temperature: float
    shift: float
    ece_before: float
    ece_after: float
    ece_natural: float


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
    """
    classifier = _load(student)
    valid = _samples(data)
    judged = valid if natural is None else _samples(natural)
    with TemporaryDirectory(prefix="moekd-export-") as temporary:
        folder = Path(temporary)
        (folder / GRAPH_FILE).write_bytes(_graph(classifier, precision))
        (folder / TOKENIZER_FILE).write_bytes(_tokenizer(classifier))
        facts = _untested_facts(student, classifier, precision, folder)
        write_json(folder / FACTS_FILE, facts)
        model = ScanModel.load(folder)

        logits = model.logits([sample.func for sample in valid])
        parity = compare(classifier.logits([sample.func for sample in valid]), logits)
        _require_parity(parity, precision, min_agreement)
        judged_logits = logits if natural is None else model.logits([sample.func for sample in judged])
        calibration = calibrate(logits, _labels(valid), judged_logits, _labels(judged))
        facts |= {
            "calibration": asdict(calibration) | _about(data, valid),
            "thresholds": _about(natural or data, judged)
            | {"rows": [asdict(row) for row in thresholds(judged, _p(judged_logits, calibration))]},
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


def calibrate(
    logits: np.ndarray, labels: np.ndarray, natural_logits: np.ndarray, natural_labels: np.ndarray
) -> Calibration:
    """Fit the temperature on validation functions and the shift to the natural share of vulnerable ones.

    The temperature minimises the negative log likelihood. The shift is the difference of the log odds of the
    classes: students learn from balanced classes, so unshifted they would call half of all functions vulnerable.

    Args:
        logits, natural_logits: (n, 2) and (m, 2).
        labels, natural_labels: 0 or 1, (n,) and (m,). Both classes must occur in both.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4; Saerens, Latinne, Decaestecker 2002 for the shift.
    """
    from scipy.optimize import minimize_scalar

    margins = _margins(logits)

    def nll(log_temperature: float) -> float:
        scaled = margins / math.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))

    temperature = math.exp(float(minimize_scalar(nll, bounds=(-5, 5), method="bounded").x))
    shift = _log_odds(natural_labels) - _log_odds(labels)
    return Calibration(
        temperature,
        shift,
        ece_before=_ece(margins, labels),
        ece_after=_ece(margins / temperature, labels),
        ece_natural=_ece(_margins(natural_logits) / temperature + shift, natural_labels),
    )


def thresholds(samples: Sequence[Sample], p: np.ndarray) -> list[Threshold]:
    """Measure what each false-alarm rate costs and finds on functions at natural ratio.

    Args:
        p: calibrated probabilities of the samples, (samples,).
    Returns:
        One row a rate that the data resolve, by ascending rate: the lowest threshold that at most this share of the
        non-vulnerable functions reaches.
    """
    from moekd.data.text import count_lines

    vulnerable = _labels(samples) == 1
    safe = np.sort(p[~vulnerable])[::-1]
    kloc = sum(count_lines(sample.func) for sample in samples) / 1000
    rows: dict[float, Threshold] = {}
    for rate in _RATES:
        allowed = int(rate * len(safe) + 1e-9)
        if not 1 <= allowed < len(safe) or safe[allowed] >= 1:
            continue
        limit = float(np.nextafter(safe[allowed], 2))  # just above the first that may not be reported
        reported = p >= limit
        rows[limit] = Threshold(
            limit,
            float(reported[~vulnerable].mean()),
            float(reported.sum() / kloc),
            float(reported[vulnerable].mean()) if vulnerable.any() else None,
        )
    return sorted(rows.values(), key=lambda row: (row.false_alarm_rate, -row.p))


def render(facts: dict[str, Any]) -> str:
    """Say in a few lines what was exported and what it was measured to be."""
    parity, calibration, table = facts["parity"], facts["calibration"], facts["thresholds"]
    size_bytes = sum(one["size_bytes"] for one in facts["files"].values())
    lines = [
        f"{facts['name']}, {facts['precision']}: graph and tokenizer {size_bytes:,} bytes",
        f"parity with torch on {parity['functions']} functions: largest logit difference "
        f"{parity['max_logit_difference']:.2g}, same label on {parity['label_agreement']:.2%}",
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


def _graph(classifier: Classifier, precision: Precision) -> bytes:
    graph = _float_graph(classifier)
    if precision == "float32":
        return graph
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(prefix="moekd-int8-") as temporary:
        before, after = Path(temporary) / "float.onnx", Path(temporary) / "int8.onnx"
        before.write_bytes(graph)
        logging.disable(logging.WARNING)  # advice about pre-processing, which folding has done
        try:
            quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)
        return after.read_bytes()


def _float_graph(classifier: Classifier) -> bytes:
    """The graph reads ids only: rows of a batch have equal lengths, so there is nothing to mask."""
    import torch

    class LogitsOfIds(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids).logits

    buffer = io.BytesIO()
    model = classifier.model.cpu().eval()
    # An odd length and two rows, so that a dimension which the tracer takes for a constant shows in parity.
    example = torch.full((2, 7), int(classifier.tokenizer.unk_token_id or 0), dtype=torch.long)
    with warnings.catch_warnings():
        # The newer exporter is 15 times slower and its files are 43 % larger (measured on Compressor's shape); the
        # tracer's warnings are about branches on batch size and mask, which parity checks.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            LogitsOfIds(model),
            (example,),
            buffer,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {0: "batch", 1: "tokens"}, "logits": {0: "batch"}},
        )
    return _folded(buffer.getvalue())


def _folded(graph: bytes) -> bytes:
    """Fold constants and drop identities: fewer nodes, about 600 bytes saved for each."""
    import onnxruntime

    with TemporaryDirectory(prefix="moekd-fold-") as temporary:
        after = Path(temporary) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(after)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return after.read_bytes()


def _tokenizer(classifier: Classifier) -> bytes:
    backend = getattr(classifier.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SettingsError(
            f"the student's tokenizer is a {type(classifier.tokenizer).__name__}, which the scanner cannot read; "
            "save the student with a fast tokenizer"
        )
    return str(backend.to_str(pretty=False)).encode()


def _untested_facts(student: Path, classifier: Classifier, precision: Precision, folder: Path) -> dict[str, Any]:
    """`model.json` as it must be to load the model for its own test."""
    from importlib.metadata import version

    weights = student / "model.safetensors"
    files = {
        name: {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in (GRAPH_FILE, TOKENIZER_FILE)
    }
    return {
        "schema": SCHEMA,
        "name": student.resolve().name,
        "precision": precision,
        "labels": [classifier.model.config.id2label[index] for index in range(2)],
        "max_tokens": classifier.max_length,
        "cwe_groups": [],  # the student has no head that tells them apart
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
            f"the exported files are {total:,} bytes ({parts}); the limit is {max_bytes:,}. {advice}, "
            "or raise --max-bytes"
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


def _labels(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.label for sample in samples])


def _margins(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1].astype(np.float64) - logits[:, 0]


def _p(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -(_margins(logits) / calibration.temperature + calibration.shift)))


def _log_odds(labels: np.ndarray) -> float:
    share = float(np.mean(labels))
    return math.log(share / (1 - share))


def _ece(margins: np.ndarray, labels: np.ndarray) -> float:
    from moekd.evaluate import detection

    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    return float(detection(logits, labels)(np.ones((1, len(labels))))["ece"][0])
