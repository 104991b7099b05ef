"""Write functions at the ratio in which they occur, of the projects of a run's validation part, as JSON lines.

What `moekd export --natural` sets thresholds by: neither the student nor its test knows these projects. Fixed versions
are left out, as nobody scans them beside the functions they replace.

    python scripts/natural_functions.py $MOEKD_DATA/bigvul.parquet --run-data runs/data/KEY --out natural.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from moekd.data import load_parts, read_samples
from moekd.files import write_bytes
from moekd.records import Part, Sample

_KEPT = ("func", "label", "cwe", "project", "family")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("functions", type=Path, help="labelled functions at the ratio in which they occur")
    parser.add_argument("--run-data", type=Path, required=True, help="folder of a data stage that keeps projects apart")
    parser.add_argument("--limit", type=int, help="write so many, drawn by seed 0")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = natural(read_samples(arguments.functions, include_fixed=False).samples, load_parts(arguments.run_data))
    if arguments.limit and len(chosen) > arguments.limit:
        chosen = Random(0).sample(chosen, arguments.limit)
    lines = [json.dumps({name: getattr(sample, name) for name in _KEPT}) for sample in chosen]
    write_bytes(arguments.out, ("\n".join(lines) + "\n").encode())
    print(f"{len(chosen):,} functions, {sum(sample.label for sample in chosen):,} vulnerable")


def natural(samples: list[Sample], parts: dict[Part, list[Sample]]) -> list[Sample]:
    """Return the samples of projects that only the validation part knows; SystemExit if none of them is vulnerable."""
    families = {part: {_family(sample) for sample in own} for part, own in parts.items()}
    own = families["valid"].difference(*(names for part, names in families.items() if part != "valid"))
    chosen = [sample for sample in samples if _family(sample) in own]
    if not any(sample.label for sample in chosen):
        raise SystemExit(
            f"no vulnerable function of the {len(own)} projects that only the validation part has; "
            'give the data of a run with data.split = "project" or "family"'
        )
    return chosen


def _family(sample: Sample) -> str:
    return sample.family or sample.project or f"unknown project of {sample.id}"


if __name__ == "__main__":
    main()
