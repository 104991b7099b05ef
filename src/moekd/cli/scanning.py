"""Commands of the scanner: scan, baseline, lsp. Nothing here imports torch or transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moekd.cli.common import Quiet, complain
from moekd.errors import OutputError, SettingsError

if TYPE_CHECKING:
    from moekd.scan.findings import Outcome

Format = Literal["text", "json", "sarif", "junit", "gitlab"]
Model = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="An exported model; default: the one in the package.")
]
FalseAlarmRate = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Report at most this share of functions that are not vulnerable. [default: 0.01]"
    ),
]
AlarmsPerKloc = Annotated[
    float | None, typer.Option(metavar="N", help="Or: report at most N functions per 1,000 lines.")
]
Top = Annotated[int | None, typer.Option(metavar="N", help="Or: report the N functions to review first.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Processes; 0: one for each core. [default: 0]")]
CacheFolder = Annotated[Path | None, typer.Option("--cache", metavar="FOLDER", help="Where scores are remembered.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Remember no scores.")]
MaxFileBytes = Annotated[
    int | None, typer.Option(metavar="N", help="List larger files as not scanned. [default: 10,000,000]")
]
ScanPaths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Files and folders, or - for stdin.", show_default=False)
]


def scan(
    paths: ScanPaths,
    model: Model = None,
    false_alarm_rate: FalseAlarmRate = None,
    max_alarms_per_kloc: AlarmsPerKloc = None,
    top: Top = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="P|never", help="Exit with 1 from this probability on. [default: any finding; --top: never]"
        ),
    ] = None,
    changed_since: Annotated[
        str | None, typer.Option(metavar="REV", help="Only functions changed since this branch left REV of git.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only functions that a unified diff touches; - for stdin.")
    ] = None,
    stdin_filename: Annotated[
        Path | None, typer.Option(metavar="NAME", help="What the source on stdin is called.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="Findings in it are known, not new.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Name the lines that carry each score.")] = False,
    stability: Annotated[
        int | None,
        typer.Option(metavar="N", help="Try each finding under N renamings of its variables; say how many keep it."),
    ] = None,
    format: Annotated[Format, typer.Option(help="Of what is printed on stdout.")] = "text",
    out: Annotated[
        list[str] | None,
        typer.Option("--out", metavar="FORMAT=FILE", help="Write a report to a file as well. Repeatable."),
    ] = None,
    workers: Workers = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    max_file_bytes: MaxFileBytes = None,
    quiet: Quiet = False,
) -> None:
    """Score each C and C++ function under PATH and report the likely vulnerable ones.

    Example: moekd scan src/ --false-alarm-rate 0.005 --out sarif=moekd.sarif
    """
    from moekd.scan.outputs import render, write

    wanted = [_format_and_file(text) for text in out or []]
    options = {
        "model": model,
        "false_alarm_rate": false_alarm_rate,
        "max_alarms_per_kloc": max_alarms_per_kloc,
        "top": top,
        "fail_on": _number_or_text(fail_on),
        "baseline": baseline,
        "explain": explain or None,
        "stability": stability,
        "workers": workers,
        "cache": False if no_cache else cache,
        "max_file_bytes": max_file_bytes,
    }
    outcome = _scan(paths, options, quiet, changed_since=changed_since, diff_file=diff, stdin_filename=stdin_filename)
    for name, path in wanted:
        write(outcome, name, path)
    _print_report(render(outcome, format))
    raise typer.Exit(outcome.exit_code)


def baseline(
    paths: ScanPaths,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The baseline.")] = Path("moekd-baseline.json"),
    model: Model = None,
    false_alarm_rate: FalseAlarmRate = None,
    max_alarms_per_kloc: AlarmsPerKloc = None,
    workers: Workers = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    max_file_bytes: MaxFileBytes = None,
    quiet: Quiet = False,
) -> None:
    """Write today's findings to a file, so that `moekd scan --baseline FILE` fails on new ones only.

    Example: moekd baseline src/ --out moekd-baseline.json
    """
    from moekd.scan.baseline import write

    options = {
        "model": model,
        "false_alarm_rate": false_alarm_rate,
        "max_alarms_per_kloc": max_alarms_per_kloc,
        "workers": workers,
        "cache": False if no_cache else cache,
        "max_file_bytes": max_file_bytes,
    }
    outcome = _scan(paths, options, quiet, known=False)
    write(out, outcome.findings)
    typer.echo(out)
    for one in outcome.unread:
        complain(f"not scanned: {one.path}: {one.reason}")
    raise typer.Exit(4 if outcome.unread else 0)


def lsp(
    model: Model = None,
    false_alarm_rate: FalseAlarmRate = None,
    max_alarms_per_kloc: AlarmsPerKloc = None,
    no_cache: NoCache = False,
) -> None:
    """Serve an editor over stdin and stdout: diagnostics, hover and an action to suppress (Language Server Protocol).

    Example, for an editor that takes a command: moekd lsp
    """
    from moekd.scan.lsp import serve
    from moekd.scan.settings import load

    options = {
        "model": None if model is None else str(model),
        "false_alarm_rate": false_alarm_rate,
        "max_alarms_per_kloc": max_alarms_per_kloc,
        "cache": False if no_cache else None,
    }
    serve(load(Path.cwd(), options))


def _scan(paths: list[Path], options: dict[str, Any], quiet: bool, *, known: bool = True, **selection: Any) -> Outcome:
    """Merge options with the settings file and scan; a bar on a terminal. `known` is false where a baseline is made."""
    from moekd import console
    from moekd.scan.run import scan as scan_paths
    from moekd.scan.settings import load

    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    settings = load(Path.cwd(), options)
    if not known:
        settings = settings.model_copy(update={"baseline": None, "top": None, "explain": False, "stability": 0})
    console.set_quiet(quiet or not sys.stderr.isatty())  # hooks and logs want the report only
    with console.bar(None, "files") as advance:
        return scan_paths(paths, settings, advance=advance, **selection)


def _print_report(text: str) -> None:
    try:
        typer.echo(text, nl=False)
    except BrokenPipeError:
        raise  # who reads has seen enough, as with `| head`
    except OSError as error:
        raise OutputError(f"cannot write the report to stdout: {error.strerror}") from error


def _format_and_file(text: str) -> tuple[str, Path]:
    from moekd.scan.outputs import FORMATS

    name, equals, path = text.partition("=")
    if not (equals and path and name in FORMATS):
        raise SettingsError(f"--out wants FORMAT=FILE with one of {', '.join(FORMATS)}, got {text!r}")
    return name, Path(path)


def _number_or_text(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
