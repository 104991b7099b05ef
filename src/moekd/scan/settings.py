"""Settings of a scan: the command line over `moekd.toml` or `[tool.moekd]` of `pyproject.toml` over the defaults."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from moekd.config import Settings
from moekd.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "moekd.toml"
WAYS = ("false_alarm_rate", "max_alarms_per_kloc", "top")  # to say where findings begin


class ScanSettings(Settings):
    """What may stand in the file; every field is also an option of `moekd scan`."""

    model: str | None = None  # folder of an exported model; default: the one in the package
    false_alarm_rate: float | None = Field(None, gt=0, lt=1)  # share of non-vulnerable functions reported
    max_alarms_per_kloc: float | None = Field(None, gt=0)  # functions reported per 1,000 lines
    top: int | None = Field(None, ge=1)  # report the N functions with the highest probability instead
    fail_on: Annotated[float, Field(ge=0, le=1)] | Literal["never"] | None = None  # probability; default: any finding
    baseline: str | None = None  # file of known findings
    explain: bool = False  # name the lines that carry each score
    stability: int = Field(0, ge=0)  # renamings of local variables that each finding is tried with
    workers: int = Field(0, ge=0)  # processes; 0: one for each core
    cache: str | Literal[False] | None = None  # folder; false: none; default: the user's folder for caches
    max_file_bytes: int = Field(10_000_000, ge=1)  # larger files are listed as not scanned


def load(folder: Path, options: Mapping[str, Any]) -> ScanSettings:
    """Return the settings for a scan started in `folder`.

    Args:
        options: from the command line, None where not given. Paths in the file are relative to the file; a way to
            say where findings begin replaces the file's, whichever that is.
    Raises:
        SettingsError: a file or an option is wrong, or two ways are given in one place.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _require_one_way(given, "the command line")
    place = _find(folder)
    stored = {} if place is None else _read(place)
    if place is not None:
        _require_one_way(stored, str(place))
        for name in ("model", "baseline", "cache"):
            if isinstance(stored.get(name), str):
                stored[name] = str(place.parent / stored[name])
    if any(way in given for way in WAYS):
        stored = {name: value for name, value in stored.items() if name not in WAYS}
    try:
        return ScanSettings.model_validate(stored | given, strict=True)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise SettingsError(_explain(detail, place, given)) from error


def _find(folder: Path) -> Path | None:
    """Return the nearest file with settings, from `folder` up to the root of its repository."""
    for place in (folder, *folder.parents):
        if (place / FILE).is_file():
            return place / FILE
        project = place / "pyproject.toml"
        if project.is_file() and "moekd" in _toml(project).get("tool", {}):
            return project
        if (place / ".git").exists():
            return None
    return None


def _read(path: Path) -> dict[str, Any]:
    found = _toml(path)
    table = found if path.name == FILE else found["tool"]["moekd"]
    if not isinstance(table, dict):
        raise SettingsError(f"tool.moekd in {path} must be a table")
    return dict(table)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _require_one_way(values: Mapping[str, Any], place: str) -> None:
    ways = [name for name in WAYS if name in values]
    if len(ways) > 1:
        raise SettingsError(f"{place} gives {' and '.join(ways)}; give one of them")


def _explain(detail: Any, place: Path | None, given: Mapping[str, Any]) -> str:
    name = str(detail["loc"][0])
    where = "--" + name.replace("_", "-") if name in given else f"`{name}` in {place}"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, ScanSettings.model_fields, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(ScanSettings.model_fields)}"
        return f"unknown setting {where}; {hint}"
    return f"{where} is {detail['input']!r}; {detail['msg'].replace('Input should', 'it should')}"
