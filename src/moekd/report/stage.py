"""All numbers of a run in one file, `results.json`.

It holds `schema`, `provenance`, `rows`, `comparisons`, `over_seeds` and, where models were attacked, `over_settings`,
`validity` and `transfer` (report/attacks.py).
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd import console, partition
from moekd.files import write_bytes, write_json
from moekd.report.attacks import over_settings, transferred, validity
from moekd.report.comparisons import COMPARISONS, attack_comparisons, comparisons_of, over_seeds
from moekd.report.judged import Judged
from moekd.report.rows import attack_rows, classifier_rows, detector_rows, router_rows, row_maker, teacher_side_cost
from moekd.report.tables import ROUTER, render_markdown
from moekd.steps import commit, package_versions, read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moekd.config import MoekdSettings
    from moekd.records import Part, Sample

SCHEMA = 1
RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"
JUDGED: tuple[Part, ...] = ("valid", "test")


def results(settings: MoekdSettings, inputs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Judge every system of a run; write `results.json` and, from it, `results.md`.

    Args:
        inputs: `data`, of detectors `partition` (for recall by group), and by any name the steps to judge: those
            with `predictions.npz` are measured, and the `rows` among any step's facts become rows of part `cost`.
            Further partition steps are allowed where routers were trained on others than `partition`.
    Returns:
        Names of the two files and the number of rows.
    Raises:
        DataError: predictions miss a sample of validation or test, or hold NaN.
    """
    from moekd.data import load_classes, load_parts

    parts = {part: samples for part, samples in load_parts(inputs["data"]).items() if part in JUDGED}
    manifests = {label: read_manifest(path) for label, path in inputs.items()}
    partitions = {
        manifest["key"]: partition.load(inputs[label])
        for label, manifest in manifests.items()
        if manifest["stage"] == "partition"
    }
    steps = [
        Judged(label, inputs[label], manifest)
        for label, manifest in manifests.items()
        if manifest["stage"] not in ("data", "partition")
    ]
    groups = partitions[manifests["partition"]["key"]] if "partition" in manifests else None
    classes = load_classes(settings, inputs["data"])
    rows: list[dict[str, Any]] = []
    with console.bar(len(steps), "measures of each system") as advance:
        for step in steps:
            row = row_maker(settings, step)
            if step.answers and step.system == ROUTER:
                rows += router_rows(settings, row, step, parts, partitions[step.manifest["inputs"]["partition"]])
            elif step.answers and groups:
                rows += detector_rows(settings, row, step, parts, groups)
            elif step.answers:
                rows += classifier_rows(settings, row, step, parts, classes)
            elif step.attacked:
                rows += attack_rows(settings, row, step)
            rows += [row("cost", metric, value) for metric, value in step.cost.items()]
            advance(1)
    rows += teacher_side_cost(settings, steps)
    comparisons = comparisons_of(settings, steps, parts["test"]) + attack_comparisons(settings, steps)
    found = {
        "schema": SCHEMA,
        "provenance": _provenance(settings, manifests, parts),
        "rows": rows,
        "comparisons": comparisons,
        "over_seeds": {
            "rows": over_seeds(settings, rows, ("system", "student", "part", "metric"), "value"),
            "comparisons": over_seeds(
                settings, comparisons, ("first", "second", "student", "part", "metric"), "difference"
            ),
        },
    }
    if any(step.attacked for step in steps):
        found |= {
            "over_settings": over_settings(rows, COMPARISONS),
            "validity": [row for step in steps if step.attacked for row in validity(step.about, step.attacks())],
            "transfer": transferred([step.folder for step in steps if step.manifest["stage"] == "transfer"]),
        }
    write_json(folder / RESULTS_FILE, found)
    write_bytes(folder / TABLE_FILE, render_markdown(found).encode())
    return {"results": RESULTS_FILE, "table": TABLE_FILE, "numbers": len(rows)}


def _provenance(
    settings: MoekdSettings,
    manifests: Mapping[str, Mapping[str, Any]],
    parts: Mapping[Part, Sequence[Sample]],
) -> dict[str, Any]:
    data = manifests["data"]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": settings.run.threads,
            "accelerators": sorted({m["accelerator"] for m in manifests.values() if m.get("accelerator")}),
        },
        "seeds": list(settings.run.seeds),
        "settings": _without_places(settings.model_dump(mode="json", exclude={"run": {"folder"}})),
        "data": {
            "key": data["key"],
            "source_digests": data["external"],
            "file_digests": {name: file["sha256"] for name, file in data["files"].items()},
            "facts": data["facts"],
            "judged": {part: len(samples) for part, samples in parts.items()},
        },
        "partition": manifests["partition"]["facts"] if "partition" in manifests else None,
        "steps": {
            label: {name: manifest[name] for name in ("key", "commit", "seconds")}
            for label, manifest in manifests.items()
        },
    }


def _without_places(value: Any) -> Any:
    """Keep only the last part of absolute paths: where a file lay is about a machine, not about a result."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value
