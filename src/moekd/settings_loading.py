"""Settings from a TOML file with `--set a.b=c` on top: origins of values, and errors that say what to do."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from moekd.config import Attack, MoekdSettings, PretrainSettings, RootSettings, Settings
from moekd.errors import SettingsError

DEFAULT = "default"
SET = "--set"

Root = TypeVar("Root", bound=RootSettings)

_ABSENT = object()


@dataclass(frozen=True)
class Loaded(Generic[Root]):
    """Checked settings and, for every dotted key, where its value came from."""

    settings: Root
    origins: Mapping[str, str]  # the file's path as it was given, "--set" or "default"


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> MoekdSettings:
    """Return the settings of the TOML file `path` with each override, "a.b=c", put on top.

    The right side of an override is read as a TOML value (`0.5`, `true`, `["a", "b"]`) and, where it is none,
    taken as a string as it stands. Items of lists are named by index: `data.sources.0.path=x.parquet`.

    Raises:
        SettingsError: the file is missing or no TOML, a setting is unknown, or a value is not allowed.
    """
    return load(Path(path), overrides, MoekdSettings).settings


def load_pretrain_settings(path: Path, overrides: Sequence[str] = ()) -> PretrainSettings:
    """As `load_settings`, for `moekd pretrain`."""
    return load(path, overrides, PretrainSettings).settings


def load_any(path: Path, overrides: Sequence[str] = ()) -> Loaded[Any]:
    """Load a config of either kind; one with a `corpus` is for `moekd pretrain`."""
    kind: type[RootSettings] = PretrainSettings if "corpus" in _read(path) else MoekdSettings
    return load(path, overrides, kind)


def load(path: Path, overrides: Sequence[str], root: type[Root]) -> Loaded[Root]:
    """Return checked settings of one kind with the origin of each value; errors as in `load_settings`."""
    tree = _read(path)
    _require_kind(path, tree, root)
    changed = [_override(tree, text) for text in overrides]

    def origin(key: str) -> str:
        return SET if any(_overlap(key, other) for other in changed) else str(path)

    try:
        # JSON mode is strict about scalars ("5" and true are no integers) and still takes arrays for tuples.
        settings = root.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(_explain(error, origin, root)) from error

    origins = {key: DEFAULT if _at(tree, key) is _ABSENT else origin(key) for key in flat(settings)}
    return Loaded(settings, origins)


def _require_kind(path: Path, tree: Mapping[str, Any], root: type[RootSettings]) -> None:
    """Say at once that the command is the wrong one, instead of that every section is unknown."""
    if root is MoekdSettings and "corpus" in tree:
        raise SettingsError(f"{path} has a section `corpus`: it is a config of `moekd pretrain`, not of `moekd run`")
    if root is PretrainSettings and "data" in tree and "corpus" not in tree:
        raise SettingsError(f"{path} has a section `data`: it is a config of `moekd run`, not of `moekd pretrain`")


def attack_settings(options: Mapping[str, Any]) -> Attack:
    """Return the settings of `moekd attack` from its options; those not named have their defaults.

    Raises:
        SettingsError: a value is not allowed; names its option.
    """
    try:
        settings = Attack.model_validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        raise SettingsError(_explain(error, lambda key: "the command line", Attack)) from error
    if not settings.attacks:
        raise SettingsError("no attack is named: choose of alert, mhm, wir-random")
    return settings


def show(loaded: Loaded[Any]) -> list[tuple[str, Any, str]]:
    """Every setting in the order of the tree: dotted key, JSON-able value, origin."""
    return [(key, value, loaded.origins[key]) for key, value in flat(loaded.settings).items()]


def flat(settings: Settings) -> dict[str, Any]:
    """Dotted keys and JSON-able values; a list of plain values and a free-form table are one value each."""
    return dict(_leaves(settings, "", everything=True))


def key_settings(settings: RootSettings, sections: Sequence[str]) -> dict[str, Any]:
    """Return the JSON-able part of the settings that `sections` name, as dotted keys and values.

    Args:
        sections: dotted names of sections or of single settings, such as "data" or "mixture.k".
    Returns:
        What a stage's key is made of: fields declared with `NotInKey` are left out, those declared with `Added` while
        they have their default.
    """
    kept: dict[str, Any] = {}
    for section in sections:
        value: Any = settings
        for name in section.split("."):
            value = getattr(value, name)
        kept.update(_leaves(value, section, everything=False))
    return kept


def _leaves(value: Any, key: str, *, everything: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Settings):
        for name, field in type(value).model_fields.items():
            held = getattr(value, name)
            if everything or _changes_results(field, held):
                yield from _leaves(held, f"{key}.{name}" if key else name, everything=everything)
    elif isinstance(value, tuple) and any(isinstance(item, Settings) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}.{index}", everything=everything)
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _changes_results(field: FieldInfo, value: Any) -> bool:
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        return True
    return not extra.get("not_in_key") and not (extra.get("added") and value == field.default)


# ------------------------------------------------------------------------------------------------ reading


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        names = [str(other) for other in sorted(path.parent.glob("*.toml"))]
        raise SettingsError(f"there is no config file {path}{_did_you_mean(str(path), names)}") from error
    except OSError as error:
        raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from error
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path} is not valid TOML: a byte that is not UTF-8 (at line {line})") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _override(tree: dict[str, Any], text: str) -> str:
    """Put one "a.b=c" into the tree; returns its dotted key."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise SettingsError(f"--set wants a.b=value, got {text!r}")
    place: Any = tree
    for depth, name in enumerate(names[:-1]):
        slot = _slot(place, names, depth)
        if isinstance(place, dict):
            place.setdefault(name, {})
        place = place[slot]
    place[_slot(place, names, len(names) - 1)] = _value(value)
    return ".".join(names)


def _slot(place: Any, names: Sequence[str], depth: int) -> str | int:
    """Return what `names[depth]` is called in `place`: a key of a table or an index of a list."""
    key, owner, name = ".".join(names), ".".join(names[:depth]), names[depth]
    if isinstance(place, dict):
        return name
    if not isinstance(place, list):
        raise SettingsError(f"--set {key}: `{owner}` is {_brief(place)}, not a table")
    if not name.isdecimal() or int(name) >= len(place):
        raise SettingsError(
            f"--set {key}: `{owner}` is a list of {len(place)}; name its items by index from 0, not {name!r}"
        )
    return int(name)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could smuggle in a second key


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        try:
            tree = tree[int(name)] if isinstance(tree, list) else tree[name]
        except (KeyError, IndexError):
            return _ABSENT
    return tree


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


# ------------------------------------------------------------------------------------------------ explaining


def _explain(error: ValidationError, origin: Callable[[str], str], root: type[Settings]) -> str:
    details = error.errors(include_url=False)
    # pydantic repeats an error of a list's item as an error of the list's length: keep the innermost only.
    innermost = [
        one
        for one in details
        if not any(one["loc"] == other["loc"][: len(one["loc"])] for other in details if other is not one)
    ]
    return "\n".join(_explain_one(one, origin, root) for one in innermost or details)


def _explain_one(detail: Any, origin: Callable[[str], str], root: type[Settings]) -> str:
    loc = _without_tags(detail["loc"], root)
    key = ".".join(str(part) for part in loc)
    place = origin(key)
    if detail["type"] == "extra_forbidden":
        return f"unknown setting `{key}` in {place}{_nearest(loc, _class_at(detail['loc'][:-1], root), root)}"
    if detail["type"].startswith("union_tag"):
        kinds = re.findall(r"'([^']*)'", detail["ctx"].get("expected_tags", "")) or list(
            _variants(_annotation_at(loc, root))
        )
        found = detail["ctx"].get("tag", "")
        got = f'"{found}"' if found else "missing"
        return f"`{key}.kind` is {got} in {place}; it should be one of {', '.join(kinds)}{_did_you_mean(found, kinds)}"
    if detail["type"] == "missing":
        return f"missing setting `{key}` in {place}: it has no default"
    message = detail["msg"].replace("an object", "a table")
    if detail["type"] == "value_error":
        return f"{f'`{key}` in ' if key else ''}{place}: {message.removeprefix('Value error, ')}"
    wanted = re.sub(r"^(Input|Tuple|String) should", "it should", message).partition(" after validation")[0]
    choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"]) if detail["type"] == "literal_error" else []
    hint = _did_you_mean(str(detail["input"]), choices)
    if detail["type"] == "tuple_type" and isinstance(detail["input"], str | int | float):
        hint = f"; write it as [{_brief(detail['input'])}]"
    elif wanted == "it should be a table" and _variants(_annotation_at(loc, root)):
        hint = f"; choose one with `{key}.kind`"
    return f"`{key}` is {_brief(detail['input'])} in {place}; {wanted}{hint}"


def _nearest(loc: Sequence[str | int], owner: type[BaseModel], root: type[Settings]) -> str:
    """Name the known setting that an unknown one was meant to be, or all that are possible there."""
    *parents, name = (str(part) for part in loc)
    siblings = [".".join([*parents, other]) for other in owner.model_fields]
    elsewhere = [key for key in _known_keys(root) if key.rsplit(".", 1)[-1] == name]
    hint = _did_you_mean(".".join([*parents, name]), siblings) or (
        f"; did you mean `{elsewhere[0]}`?" if elsewhere else ""
    )
    return hint or f"; known there: {', '.join(sibling.rsplit('.', 1)[-1] for sibling in siblings)}"


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _class_at(loc: Sequence[str | int], root: type[Settings]) -> type[BaseModel]:
    """The settings class at an error's place; of several kinds, the one whose tag follows in the place."""
    found: type[BaseModel] = root
    variants: Mapping[str, type[BaseModel]] = {}
    for part in loc:
        if part in variants:
            found, variants = variants[str(part)], {}
        elif isinstance(part, str):
            annotation = found.model_fields[part].annotation
            variants = _variants(annotation)
            found = _settings_class(annotation) or found
    return found


def _without_tags(loc: Sequence[str | int], root: type[Settings]) -> tuple[str | int, ...]:
    """An error's place as it is written in a config: pydantic adds the `kind` of a table that has several."""
    kept: list[str | int] = []
    for depth, part in enumerate(loc):
        is_setting = depth > 0 and isinstance(loc[depth - 1], str) and isinstance(part, str)
        if not (is_setting and part in _variants(_annotation_at(loc[:depth], root))):
            kept.append(part)
    return tuple(kept)


def _annotation_at(loc: Sequence[str | int], root: type[Settings]) -> Any:
    field = _class_at(loc[:-1], root).model_fields.get(str(loc[-1]))
    return field.annotation if field else None


def _variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes of a table that has several kinds, by `kind`; empty for anything else."""
    classes = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    if len(classes) < 2:
        return {}
    return {get_args(one.model_fields["kind"].annotation)[0]: one for one in classes}


def _known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _known_keys(inner, f"{prefix}{name}.")
        for variant in _variants(inner).values():
            yield from _known_keys(variant, f"{prefix}{name}.")


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class inside Data or tuple[Source, ...]; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _settings_class(arg))), None)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
