"""The baseline: findings that are known, in a file that people can read and review, so that only new ones count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekd.errors import OutputError, SettingsError
from moekd.scan.findings import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moekd.scan.findings import Finding

SCHEMA = 1


def write(path: Path, findings: Iterable[Finding]) -> None:
    """Write the baseline file. Raises OutputError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(findings), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def render(findings: Iterable[Finding]) -> str:
    """Return the file's text: one finding a line, sorted by place, so that a change shows as changed lines.

    Suppressed findings are left out: their comment already holds them.
    """
    rows = sorted((one for one in findings if one.suppressed is None), key=lambda one: (one.path, one.first_line))
    lines = ",\n".join(
        "    "
        + json.dumps(
            {
                "fingerprint": one.fingerprint,
                "path": printable(one.path),
                "function": printable(one.function),
                "p": round(one.p, 4),
            },
            ensure_ascii=False,
        )
        for one in rows
    )
    return f'{{\n  "schema": {SCHEMA},\n  "findings": [\n{lines}\n  ]\n}}\n'


def read(path: Path) -> frozenset[str]:
    """Return the fingerprints of a baseline file. A function keeps its fingerprint where it is moved or reformatted.

    Raises:
        SettingsError: the file is missing or no baseline of this version.
    """
    try:
        content: Any = json.loads(path.read_bytes())
        schema = content["schema"]
        fingerprints = frozenset(str(one["fingerprint"]) for one in content["findings"])
    except OSError as error:
        raise SettingsError(f"cannot read the baseline {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SettingsError(f"{path} is no baseline file; make one with `moekd baseline PATH`") from error
    if schema != SCHEMA:
        raise SettingsError(f"the baseline {path} has schema {schema!r}; this version of moekd reads {SCHEMA}")
    return fingerprints
