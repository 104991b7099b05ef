"""An exported student: `model.json`, `model.onnx` and `tokenizer.json` in one folder, read with onnxruntime.

A text is scored on its own, without padding. That is the faster way on a CPU with onnxruntime, and it makes a score
a function of the text alone: dynamic int8 takes its scales from the whole batch, so batch mates would change it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from moekd import onnx_runtime
from moekd.errors import SettingsError
from moekd.files import sha256_file, sha256_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

SCHEMA = 1  # of model.json; a folder of another schema is refused
FACTS_FILE = "model.json"
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
FILES = (FACTS_FILE, GRAPH_FILE, TOKENIZER_FILE)  # all that the scanner loads: what the size gate counts

_MANY_CHARACTERS = 4  # of a token; twice the mean of C code, so that a text that is longer is nearly always cut

Precision = Literal["float32", "int8"]


class Answer(NamedTuple):
    """What a model says of one function.

    Attributes:
        margin: the vulnerable logit minus the other.
        cut: the text was longer than the model reads.
        group: index into `Facts.groups` of the most probable kind; None where the model does not tell.
        p_group: its probability, given that the function has one of the kinds.
    """

    margin: float
    cut: bool
    group: int | None = None
    p_group: float | None = None


@dataclass(frozen=True)
class Threshold:
    """One row of the table that the model was exported with, measured on labelled functions at natural ratio.

    Attributes:
        p: a function whose calibrated probability is at least this is reported.
        false_alarm_rate: share of the non-vulnerable functions that are reported.
        alarms_per_kloc: functions reported, rightly or not, per 1,000 lines without comments and empty lines.
        recall: share of the vulnerable functions that are reported; None where there was none.
    """

    p: float
    false_alarm_rate: float
    alarms_per_kloc: float
    recall: float | None


@dataclass(frozen=True)
class Facts:
    """What `model.json` says and the scanner uses.

    Attributes:
        name: of the student, as shown in reports.
        precision: of the weights in `model.onnx`.
        max_tokens: tokens read of a function, specials included; the rest is cut.
        temperature, shift: p = 1 / (1 + exp(-(margin / temperature + shift))); see `export.calibrate`.
        thresholds: rows by ascending false-alarm rate.
        digest: of graph, tokenizer and `max_tokens`: equal digests mean equal answers.
        groups: kinds of weakness that the model tells apart, such as "CWE-664" and "other"; none for most.
    """

    name: str
    precision: Precision
    max_tokens: int
    temperature: float
    shift: float
    thresholds: tuple[Threshold, ...]
    digest: str
    groups: tuple[str, ...] = ()

    def p_vulnerable(self, margin: float) -> float:
        """Return the calibrated probability of a margin, the vulnerable logit minus the other."""
        z = margin / self.temperature + self.shift
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))

    def at_false_alarm_rate(self, rate: float) -> Threshold:
        """Return the row with the highest false-alarm rate that is at most `rate`."""
        return self._strictest(rate, "false_alarm_rate", "--false-alarm-rate")

    def at_alarms_per_kloc(self, alarms: float) -> Threshold:
        """Return the row with the most alarms per 1,000 lines that are at most `alarms`."""
        return self._strictest(alarms, "alarms_per_kloc", "--max-alarms-per-kloc")

    def _strictest(self, limit: float, field: str, option: str) -> Threshold:
        if not self.thresholds:
            raise SettingsError(
                f"{option}: the model {self.name!r} has no thresholds, because it was exported with too few functions "
                "to measure one. Give --top N, or export it again with more"
            )
        allowed = [row for row in self.thresholds if getattr(row, field) <= limit]
        if not allowed:
            lowest = _rounded_up(min(getattr(row, field) for row in self.thresholds))
            raise SettingsError(
                f"{option} {limit:g}: the model {self.name!r} has no threshold that low, because it was exported with "
                f"too few functions to measure one; its lowest is {lowest:g}. Give that, or --top N"
            )
        return max(allowed, key=lambda row: (getattr(row, field), -row.p))


class ScanModel:
    """Texts in, margins out, by onnxruntime on one thread.

    Attributes:
        facts: what `model.json` says.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self.facts = facts

    @classmethod
    def load(cls, folder: Path) -> ScanModel:
        """Check `model.json` and the digests of the files it names. Graph and tokenizer are loaded on first use.

        Raises:
            SettingsError: the folder holds no exported model, one of another schema, or a damaged one.
        """
        raw = _read_facts(folder)
        _require_schema(raw, folder)
        try:
            files = {name: str(raw["files"][name]["sha256"]) for name in (GRAPH_FILE, TOKENIZER_FILE)}
            facts = _facts(raw, files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(folder, f"{FACTS_FILE} lacks or misstates {error}") from error
        _require_digests(folder, files)
        return cls(folder, facts)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 logits, (texts, 2), in the order of the texts; each text is scored on its own."""
        import numpy as np

        out = np.zeros((len(texts), 2), dtype=np.float32)
        for row, text in enumerate(texts):
            out[row] = self._run(np.array([self._encode(text)[0]], dtype=np.int64))[0, :2]
        return out

    def answer(self, text: str) -> Answer:
        """Return what the model says of one function.

        Raises:
            SettingsError: the model answers NaN or infinity.
        """
        import numpy as np

        ids, cut = self._encode(text)
        logits = self._run(np.array([ids], dtype=np.int64))[0].astype(np.float64)  # (2 + groups,)
        if not np.isfinite(logits).all():  # it would compare as no finding
            wrong = float(logits[~np.isfinite(logits)][0])
            raise _damaged(self.folder, f"{GRAPH_FILE} answers {wrong} for a function")
        margin = float(logits[1] - logits[0])
        if not self.facts.groups:
            return Answer(margin, cut)
        powers = np.exp(logits[2:] - logits[2:].max())
        group = int(powers.argmax())
        return Answer(margin, cut, group, float(powers[group] / powers.sum()))

    def margins(self, texts: Sequence[str], *, batch: int = 32) -> np.ndarray:
        """Return margins, float64, (texts,), texts of equal length in tokens together; for variants of one function.

        An int8 model is run text by text: its scales depend on the batch.
        """
        import numpy as np

        rows_of: dict[int, list[int]] = {}
        ids = [self._encode(text)[0] for text in texts]
        for row, one in enumerate(ids):
            rows_of.setdefault(len(one), []).append(row)
        size = 1 if self.facts.precision == "int8" else batch
        out = np.zeros(len(texts))
        for rows in rows_of.values():
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                logits = self._run(np.array([ids[row] for row in part], dtype=np.int64)).astype(np.float64)
                out[part] = logits[:, 1] - logits[:, 0]
        return out

    def _encode(self, text: str) -> tuple[list[int], bool]:
        """Return the ids that the model reads of a text, and whether the text goes on after them.

        A tokenizer reads to the end before it cuts, so of a long text it gets the first lines. No token crosses the
        end of a line, so theirs are the first of the whole text.
        """
        limit = _MANY_CHARACTERS * self.facts.max_tokens
        if len(text) > limit and (end := text.rfind("\n", 0, limit)) > 0:
            encoding = self._tokenizer.encode(text[:end])
            if encoding.overflowing:
                return encoding.ids, True
        encoding = self._tokenizer.encode(text)
        return encoding.ids, bool(encoding.overflowing)

    def _run(self, ids: np.ndarray) -> np.ndarray:
        """(batch, tokens) -> (batch, 2 + groups)."""
        import numpy as np

        names = ["logits", "groups"] if self.facts.groups else ["logits"]
        return np.concatenate(self._session.run(names, {"input_ids": ids}), axis=1)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER_FILE))
        except Exception as error:  # the library raises bare Exception
            raise _damaged(self.folder, f"{TOKENIZER_FILE}: {error}") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.facts.max_tokens)
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        onnxruntime = onnx_runtime.load()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # work is spread over processes
        options.log_severity_level = 3  # errors only
        try:
            return onnxruntime.InferenceSession(
                str(self.folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions have no common base
            raise _damaged(self.folder, f"{GRAPH_FILE}: {str(error).splitlines()[0]}") from error


def _rounded_up(value: float) -> float:
    """To two digits: a value that is allowed because it is not below."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
    return math.ceil(value / unit) * unit


def digest_of(files: Mapping[str, str], max_tokens: int) -> str:
    """Return the digest that stands for a model's margins, from the digests of its graph and its tokenizer."""
    return sha256_text(f"{files[GRAPH_FILE]} {files[TOKENIZER_FILE]} {max_tokens}")[:32]


def _read_facts(folder: Path) -> Any:
    path = folder / FACTS_FILE
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingsError(
            f"{folder} holds no exported model: there is no {FACTS_FILE}. "
            f"Make one from a saved student with `moekd export STUDENT {folder} --data FILE`"
        ) from error
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{FACTS_FILE} is no JSON") from error


def _require_schema(raw: Any, folder: Path) -> None:
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise SettingsError(
            f"the model in {folder} has schema {schema!r}; this version of moekd reads {SCHEMA}. "
            "Export the student again with this version, or install the version that made it"
        )


def _facts(raw: Mapping[str, Any], files: Mapping[str, str]) -> Facts:
    rows = tuple(
        Threshold(
            float(row["p"]),
            float(row["false_alarm_rate"]),
            float(row["alarms_per_kloc"]),
            None if row["recall"] is None else float(row["recall"]),
        )
        for row in raw["thresholds"]["rows"]
    )
    if not all(0 <= row.p <= 1 and 0 <= row.false_alarm_rate <= 1 and row.alarms_per_kloc >= 0 for row in rows):
        raise ValueError("thresholds")  # NaN among them would report nothing
    if raw["precision"] not in ("float32", "int8"):
        raise ValueError("precision")
    calibration, max_tokens = raw["calibration"], int(raw["max_tokens"])
    temperature, shift = float(calibration["temperature"]), float(calibration["shift"])
    if not (temperature > 0 and math.isfinite(temperature) and math.isfinite(shift) and max_tokens > 2):
        raise ValueError("calibration or max_tokens")
    groups = tuple(str(group) for group in raw["cwe_groups"])
    digest = digest_of(files, max_tokens)
    return Facts(str(raw["name"]), raw["precision"], max_tokens, temperature, shift, rows, digest, groups)


def _require_digests(folder: Path, files: Mapping[str, str]) -> None:
    for name, wanted in files.items():
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise _damaged(folder, f"{name}: {error.strerror}") from error
        if found != wanted:
            raise _damaged(folder, f"the digest of {name} is not the one in {FACTS_FILE}")


def _damaged(folder: Path, reason: str) -> SettingsError:
    return SettingsError(f"the model in {folder} is damaged: {reason}. Copy or export it again")
