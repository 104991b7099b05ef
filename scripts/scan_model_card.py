"""Write the model card of the packaged student beside its files: every number in it comes from result files.

    moekd export STUDENT src/moekd/assets/moekd-scan --data runs/data/KEY --natural natural.jsonl
    python scripts/scan_model_card.py src/moekd/assets/moekd-scan --results docs/results/bigvul.json \\
        --system student-moe --student rotary-3mb-pretrained --detection docs/results/detection.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moekd.report.markdown import markdown_table, short_commit
from moekd.scan.findings import LIMITS
from moekd.scan.model import FILES

_METRICS = ("accuracy", "precision", "recall", "f1", "mcc", "auroc", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the exported model; README.md is written there")
    parser.add_argument("--results", type=Path, required=True, help="results.json of the student's run")
    parser.add_argument("--system", required=True, help="of the student, such as student-moe")
    parser.add_argument("--student", required=True, help="its shape")
    parser.add_argument("--detection", type=Path, help="result of benchmarks/detection.py for this model")
    arguments = parser.parse_args()
    facts = json.loads((arguments.model / "model.json").read_bytes())
    results = json.loads(arguments.results.read_bytes())
    detection = json.loads(arguments.detection.read_bytes()) if arguments.detection else None
    size_bytes = sum((arguments.model / name).stat().st_size for name in FILES)
    text = card(facts, size_bytes, results, (arguments.system, arguments.student), detection)
    (arguments.model / "README.md").write_text(text, encoding="utf-8")


def card(
    facts: dict[str, Any],
    size_bytes: int,
    results: dict[str, Any],
    student: tuple[str, str],
    detection: dict[str, Any] | None,
) -> str:
    """Return the card. Raises SystemExit if the results hold no number of this student, or the detection another's."""
    rows = [row for row in results["rows"] if (row["system"], row["student"]) == student]
    if not rows:
        raise SystemExit(f"the results hold no rows of {student[0]}, {student[1]}")
    if detection is not None and detection["model"]["digests"] != _digests(facts):
        raise SystemExit("the detection result is of another model; run benchmarks/detection.py again")
    made = results["provenance"]
    parity, calibration, natural = facts["parity"], facts["calibration"], facts["thresholds"]
    groups = ", ".join(facts["cwe_groups"]) or "none: it says how likely, not what kind"
    parts = [
        "# The default student of `moekd scan`",
        f"{facts['provenance']['parameters']:,} parameters, {facts['precision']}, {size_bytes:,} bytes with tokenizer "
        f"and facts; reads {facts['max_tokens']} tokens of a function. Made by `moekd export` from "
        f"`{student[0]}`, shape `{student[1]}`, commit {short_commit(made['commit'])}. CWE groups told apart: "
        f"{groups}.",
        "## Data",
        f"Data set {rows[0]['data']}, split {rows[0]['split']}, training seeds "
        f"{', '.join(str(seed) for seed in made['seeds'])}. Calibrated on {calibration['functions']:,} functions of "
        f"`{calibration['data']}`; thresholds from {natural['functions']:,} functions of `{natural['data']}`, "
        f"{natural['vulnerable']:,} of them vulnerable.",
        "## Measured on test functions, balanced classes",
        markdown_table(["measure", "value", "interval"], [_row(row) for row in rows if _is_test(row)]),
    ]
    others = [row for row in rows if row["part"] not in ("valid", "test", "cost") and row["metric"] not in _METRICS]
    if others:
        shown = [[row["part"], *_row(row)] for row in others]
        parts += ["## Attacks and groups", markdown_table(["part", "measure", "value", "interval"], shown)]
    parts += ["## Measured at the natural ratio", *_natural(facts, detection)]
    parts += [
        "## As exported",
        f"Same label as in torch on {parity['label_agreement']:.2%} of {parity['functions']:,} functions; "
        f"logits differ by up to {parity['max_logit_difference']:.2g}. "
        f"Calibration error {calibration['ece_before']:.3f}, with temperature {calibration['temperature']:.2f} "
        f"{calibration['ece_after']:.3f}.",
        "## What it cannot do",
        LIMITS,
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _digests(facts: dict[str, Any]) -> dict[str, str]:
    return {name: one["sha256"] for name, one in facts["files"].items()}


def _is_test(row: dict[str, Any]) -> bool:
    return row["part"] == "test" and row["metric"] in _METRICS


def _row(row: dict[str, Any]) -> list[str]:
    span = "–" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    return [row["metric"].replace("_", " "), f"{row['value']:.3f}", span]


def _natural(facts: dict[str, Any], detection: dict[str, Any] | None) -> list[str]:
    head = ["false alarms", "threshold", "alarms per 1,000 lines", "recall"]
    rows = [
        [
            f"{row['false_alarm_rate']:.2%}",
            f"{row['p']:.3f}",
            f"{row['alarms_per_kloc']:.2f}",
            "–" if row["recall"] is None else f"{row['recall']:.3f}",
        ]
        for row in facts["thresholds"]["rows"]
    ]
    found = ["Thresholds:", markdown_table(head, rows)]
    if detection is not None:
        from moekd.report.detection import render_detection

        found.append(render_detection(detection))
    return found


if __name__ == "__main__":
    main()
