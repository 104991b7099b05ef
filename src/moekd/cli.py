"""The command line: arguments in, one function call, exit code out.

Heavy imports lie inside the commands: `moekd --help` is fast and works without the `train` extra.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moekd.errors import MissingExtraError, MoekdError

if TYPE_CHECKING:
    from moekd.config import MoekdSettings

EXIT_CODES = """Exit codes: 0 done, 2 wrong usage or settings, 3 internal error, 5 bad input data,
6 the output cannot be written, 7 an optional package is missing, 130 interrupted."""

_TRAIN_PACKAGES = (
    "accelerate",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
)
_EXTRA_OF = dict.fromkeys(_TRAIN_PACKAGES, "train") | {"datasets": "hub"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    epilog=EXIT_CODES,
)
data_app = typer.Typer(no_args_is_help=True)
config_app = typer.Typer(no_args_is_help=True)
app.add_typer(data_app, name="data", help="Look at the data set that a config makes.")
app.add_typer(config_app, name="config", help="Look at settings.")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of settings.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. distill.temperature=2. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages but errors.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to those of the process."""
    try:
        app(arguments, prog_name="moekd")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
        if code == 130:
            _complain("interrupted; the same command continues from here")
        return code
    except Exception as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    if os.environ.get("MOEKD_DEBUG") == "1":
        traceback.print_exception(error)
    known = _as_user_error(error)
    if known is not None:
        _complain(str(known))
        return known.exit_code
    _complain(
        f"internal error, a defect of moekd: {type(error).__name__}: {error}\n"
        "run the same command with MOEKD_DEBUG=1 in the environment to see where"
    )
    return MoekdError.exit_code


def _as_user_error(error: Exception) -> MoekdError | None:
    """Return the error as one that the user can mend; None for defects of ours."""
    if isinstance(error, MoekdError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXTRA_OF:
            return MissingExtraError(
                f"this needs {package}, which is not installed: pip install 'moekd[{_EXTRA_OF[package]}]'"
            )
    return None


def _complain(message: str) -> None:
    typer.echo("moekd: " + message.replace("\n", "\n       "), err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"moekd {version('moekd')}")
        raise typer.Exit


@app.callback()
def _moekd(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach a vulnerability detector of under 3 MB with a mixture of experts, and show what it kept."""


@app.command(epilog=EXIT_CODES)
def run(config: Config, overrides: Overrides = [], as_json: AsJson = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Run the whole pipeline of CONFIG and print the table of results.

    Finished steps are reused, and a run that was stopped at any moment continues. The last line on stdout is
    the folder of the results.
    """
    from moekd import console, stages

    console.set_quiet(quiet)
    folder = stages.run(_settings(config, overrides))
    if as_json:
        _print_json({"folder": str(folder), "results": str(folder / "results.json")})
    else:
        typer.echo((folder / "results.md").read_text(encoding="utf-8"))
        typer.echo(folder)


@app.command(epilog=EXIT_CODES)
def status(config: Config, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show which steps of CONFIG are fresh, partial, stale or missing, and which setting made them stale."""
    from moekd import steps
    from moekd.stages import plan

    settings = _settings(config, overrides)
    found = steps.status(plan(settings), settings)
    if as_json:
        _print_json(
            [
                {"step": one.label, "state": one.state, "reasons": one.reasons, "folder": str(one.folder)}
                for one in found
            ]
        )
        return
    width = max(len(one.label) for one in found)
    for one in found:
        typer.echo(f"{one.state:8} {one.label:{width}} {'; '.join(one.reasons)}".rstrip())


@app.command(epilog=EXIT_CODES)
def attack(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a saved model.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Labelled functions.", show_default=False)],
    attacks: Annotated[str, typer.Option("--attack", help="alert, mhm, wir-random; several with commas.")] = (
        "mhm,wir-random"
    ),
    budget: Annotated[int, typer.Option(help="Most texts that the model is asked for in one attack.")] = 2000,
    samples: Annotated[int, typer.Option(help="How many functions of FILE are attacked, drawn by seed.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draw and the attacks.")] = 0,
    masked_lm: Annotated[
        str | None, typer.Option(metavar="NAME", help="alert: masked language model that proposes names.")
    ] = None,
    names_from: Annotated[
        Path | None,
        typer.Option("--names", metavar="FILE", help="Functions whose names are drawn; default: embedded ones."),
    ] = None,
    minimal: Annotated[bool, typer.Option("--minimal", help="Look for the fewest renames of each success.")] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines, a result each.")] = Path("attacks.jsonl"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Attack MODEL by renaming local variables, and print how often that changed its answer.

    Results go to a file as they come; the same command after a stop continues it. A model that is fooled is a result,
    not an error: the exit code is 0.
    """
    from dataclasses import asdict

    from moekd import console
    from moekd.attack import stage
    from moekd.settings_loading import attack_settings

    console.set_quiet(quiet)
    settings = attack_settings(
        {
            "attacks": [name.strip() for name in attacks.split(",")],
            "budget": budget,
            "samples": samples,
            "seed": seed,
            "masked_lm": masked_lm,
            "minimal": minimal,
        }
    )
    found = stage.attack_file(model, data, settings, out=out, names_from=names_from)
    if as_json:
        measures = {
            name: {
                "measures": {metric: _without_nan(asdict(value)) for metric, value in one["measures"].items()},
                "counts": one["counts"],
            }
            for name, one in found.items()
        }
        _print_json({"results": str(out), "attacks": measures})
    else:
        typer.echo(stage.render(found))
        typer.echo(out)


@data_app.command(epilog=EXIT_CODES)
def describe(
    config: Config,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read, clean and split the data of CONFIG (or reuse that) and print the data report."""
    from moekd import console
    from moekd.files import read_json
    from moekd.stages import data_step
    from moekd.steps import run_steps

    console.set_quiet(quiet)
    settings = _settings(config, overrides)
    step = data_step()
    report = read_json(run_steps([step], settings)[step.label] / "report.json")
    if as_json:
        _print_json(report)
    else:
        from moekd.data.describe import render

        typer.echo(render(report))


@config_app.command(epilog=EXIT_CODES)
def show(config: Config, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Print every setting of CONFIG with its value and where that came from."""
    import json

    from moekd import settings_loading

    rows = settings_loading.show(settings_loading.load(config, overrides))
    if as_json:
        _print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    lines = [(f"{key} = {json.dumps(value, ensure_ascii=False)}", origin) for key, value, origin in rows]
    width = min(60, max(len(text) for text, _ in lines))
    for text, origin in lines:
        typer.echo(f"{text:{width}}  # {origin}")


def _settings(config: Path, overrides: Sequence[str]) -> MoekdSettings:
    from moekd.settings_loading import load_settings

    return load_settings(config, overrides)


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """NaN, where a measure is undefined, is no JSON."""
    return {name: None if value != value else value for name, value in values.items()}


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
