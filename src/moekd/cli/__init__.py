"""The command line: arguments in, one function call, exit code out.

Heavy imports lie inside the commands: `moekd --help` is fast and works without the `train` extra.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from moekd.cli import models, pipeline, scanning
from moekd.cli.common import EXIT_CODES, SCAN_EXIT_CODES, complain
from moekd.errors import MissingExtraError, MoekdError

_TRAIN_PACKAGES = (
    "accelerate",
    "onnx",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
_SEARCH_PACKAGES = ("joblib", "matplotlib", "pymoo", "z3")
_EXTRA_OF = (
    dict.fromkeys(_TRAIN_PACKAGES, "train")
    | dict.fromkeys(_SEARCH_PACKAGES, "search")
    | {"datasets": "hub", "pygls": "lsp", "lsprotocol": "lsp"}
)

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to those of the process."""
    try:
        app(arguments, prog_name="moekd")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
        if code == 130:
            complain("interrupted; the same command continues from here")
        return code
    except Exception as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    if os.environ.get("MOEKD_DEBUG") == "1":
        traceback.print_exception(error)
    known = _as_user_error(error)
    if known is not None:
        complain(str(known))
        return known.exit_code
    complain(
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


app.command(epilog=EXIT_CODES)(pipeline.run)
app.command(epilog=EXIT_CODES)(pipeline.status)
app.command(epilog=EXIT_CODES)(pipeline.pretrain)
app.command(epilog=EXIT_CODES)(models.export)
app.command(epilog=SCAN_EXIT_CODES)(scanning.scan)
app.command(epilog=SCAN_EXIT_CODES)(scanning.baseline)
app.command(epilog=SCAN_EXIT_CODES)(scanning.lsp)
app.command(epilog=EXIT_CODES)(models.attack)
app.command(epilog=EXIT_CODES)(models.search)
data_app.command(epilog=EXIT_CODES)(pipeline.describe)
config_app.command(epilog=EXIT_CODES)(pipeline.show)
