"""What all commands share: options, exit codes, what is printed where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moekd.config import MoekdSettings

EXIT_CODES = """Exit codes: 0 done, 2 wrong usage or settings, 3 internal error, 5 bad input data,
6 the output cannot be written, 7 an optional package is missing, 130 interrupted."""

SCAN_EXIT_CODES = """Exit codes: 0 clean, 1 findings to fail on, 2 wrong usage, settings or model, 3 internal error,
4 no such finding but some file was not scanned, 6 a report cannot be written, 130 interrupted."""

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of settings.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. distill.temperature=2. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages but errors.")]


def load_settings(config: Path, overrides: Sequence[str]) -> MoekdSettings:
    from moekd import settings_loading

    return settings_loading.load_settings(config, overrides)


def print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def complain(message: str) -> None:
    typer.echo("moekd: " + message.replace("\n", "\n       "), err=True)
