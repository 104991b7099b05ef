"""The command line: arguments in, one function call, exit code out.

Heavy imports lie inside the commands: `moekd --help` is fast and works without the `train` extra.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moekd.errors import MissingExtraError, MoekdError, SettingsError

if TYPE_CHECKING:
    from moekd.config import MoekdSettings
    from moekd.scan.findings import Outcome

EXIT_CODES = """Exit codes: 0 done, 2 wrong usage or settings, 3 internal error, 5 bad input data,
6 the output cannot be written, 7 an optional package is missing, 130 interrupted."""

SCAN_EXIT_CODES = """Exit codes: 0 clean, 1 findings to fail on, 2 wrong usage, settings or model, 3 internal error,
4 no such finding but some file was not scanned, 6 a report cannot be written, 130 interrupted."""

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

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of settings.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. distill.temperature=2. Repeatable."),
]
Format = Literal["text", "json", "sarif", "junit", "gitlab"]
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
def run(
    config: Config,
    overrides: Overrides = [],  # noqa: B006
    only: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Finish this system or stage alone; the table is of all that is finished."),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole pipeline of CONFIG and print the table of results.

    Finished steps are reused, and a run that was stopped at any moment continues. The last line on stdout is
    the folder of the results.
    """
    from moekd import console, stages

    console.set_quiet(quiet)
    folder = stages.run(_settings(config, overrides), only)
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
def pretrain(config: Config, overrides: Overrides = [], as_json: AsJson = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Pre-train a small code encoder on the C and C++ sources of CONFIG.

    A run that was stopped continues. Several processes: `torchrun --nproc_per_node N -m moekd pretrain CONFIG`.
    The last line on stdout is the folder of the encoder.
    """
    from moekd import console, stages
    from moekd.settings_loading import load_pretrain_settings
    from moekd.steps import read_manifest

    helper = os.environ.get("RANK", "0") != "0"
    console.set_quiet(quiet or helper)
    folder = stages.pretrain(load_pretrain_settings(config, overrides))
    if helper:
        return
    facts = read_manifest(folder)["facts"]
    if as_json:
        _print_json({"folder": str(folder / "model"), **facts})
        return
    typer.echo(f"{facts['tokens_per_second']:,.0f} tokens/s")
    for name, value in facts["held_out"].items():
        typer.echo(f"held-out {name.replace('_', ' ')}: {value:.3f}")
    typer.echo(folder / "model")


@app.command(epilog=EXIT_CODES)
def export(
    student: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a saved student.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the exported model.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Labelled validation functions (.jsonl, .parquet, BigVul's .csv), or the folder of a data stage.",
            show_default=False,
        ),
    ],
    natural: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labelled functions at natural ratio, for thresholds; default: --data."),
    ] = None,
    precision: Annotated[Literal["float32", "int8"], typer.Option(help="Of the weights.")] = "float32",
    min_agreement: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Of functions that must keep their label.")
    ] = 0.99,
    budget: Annotated[str, typer.Option(metavar="SIZE", help="Limit of all exported files together.")] = "3MB",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a saved student into the files that `moekd scan` loads, checked against the student itself.

    Example: moekd export runs/distill/KEY model --data valid.jsonl --natural test.parquet --precision int8
    """
    from moekd import console
    from moekd import export as stage
    from moekd.students.search import parse_bytes

    console.set_quiet(quiet)
    facts = stage.export(
        student,
        out,
        data=data,
        natural=natural,
        precision=precision,
        min_agreement=min_agreement,
        max_bytes=parse_bytes(budget),
    )
    if as_json:
        _print_json(facts)
    else:
        typer.echo(stage.render(facts))
        typer.echo(out)


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


@app.command(epilog=SCAN_EXIT_CODES)
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

    Example: moekd scan src/ --model model --false-alarm-rate 0.005 --out sarif=moekd.sarif
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
    typer.echo(render(outcome, format), nl=False)
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=SCAN_EXIT_CODES)
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
        _complain(f"not scanned: {one.path}: {one.reason}")
    raise typer.Exit(4 if outcome.unread else 0)


@app.command(epilog=SCAN_EXIT_CODES)
def lsp(
    model: Model = None,
    false_alarm_rate: FalseAlarmRate = None,
    max_alarms_per_kloc: AlarmsPerKloc = None,
    no_cache: NoCache = False,
) -> None:
    """Serve an editor over stdin and stdout: diagnostics, hover and an action to suppress (Language Server Protocol).

    Example, for an editor that takes a command: moekd lsp --model model
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
    """Merge options with the settings file and scan; a bar on a terminal. `known` false: any baseline is left aside."""
    from moekd import console
    from moekd.scan.run import scan as scan_paths
    from moekd.scan.settings import load

    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    settings = load(Path.cwd(), options)
    if not known:
        settings = settings.model_copy(update={"baseline": None, "top": None})
    console.set_quiet(quiet or not sys.stderr.isatty())  # hooks and logs want the report only
    with console.bar(None, "files") as advance:
        return scan_paths(paths, settings, advance=advance, **selection)


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


@app.command(epilog=EXIT_CODES)
def attack(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Saved or exported model.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Labelled functions.", show_default=False)],
    attacks: Annotated[str, typer.Option("--attack", help="alert, mhm, wir-random; several with commas.")] = (
        "mhm,wir-random"
    ),
    budget: Annotated[int, typer.Option(help="Most texts that the model is asked for in one attack.")] = 2000,
    samples: Annotated[int, typer.Option(help="How many functions of FILE are attacked, drawn by seed.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draw and the attacks.")] = 0,
    masked_lm: Annotated[
        str, typer.Option(metavar="NAME", help="alert: masked language model that proposes names.")
    ] = "moekd-mini",
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


@app.command(epilog=EXIT_CODES)
def search(
    kind: Annotated[
        Literal["compressor", "avatar", "morph", "moekd"],
        typer.Argument(metavar="KIND", help="compressor, avatar, morph or moekd.", show_default=False),
    ],
    budget: Annotated[str, typer.Option(metavar="SIZE", help="Of the student, such as 1.6MB.")] = "3MB",
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Evaluated candidates, JSON lines; all but compressor need some."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Or: train the candidates that `search.points` of this config asks for."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the result and a picture of the front here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a student's architecture within a size.

    `compressor` needs no data: it prints the exact optimum of its published fitness, and what the published genetic
    algorithm finds. The others guess accuracy from candidates that were trained.
    """
    from moekd.students import search as searches

    budget_bytes = searches.parse_bytes(budget)
    result: dict[str, Any]
    if kind == "compressor":
        result = {
            "search": kind,
            "budget_bytes": budget_bytes,
            **searches.search_compressor(budget_bytes, seed=seed),
        }
    else:
        from moekd.students.ledger import read_ledger

        if config is not None:
            from moekd import stages

            points = stages.candidates(_settings(config, overrides), kind, budget_bytes)
        evaluated = [] if points is None else read_ledger(points)
        found = searches.search(kind, budget_bytes, evaluated, seed=seed)
        result = searches.as_json(kind, budget_bytes, found, seed=seed)
        if out is not None:
            searches.plot_front(found, out / "front.png")
    if out is not None:
        from moekd.files import write_json

        write_json(out / "search.json", result)
    if as_json:
        _print_json(result)
    else:
        typer.echo(searches.render(result))


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

    rows = settings_loading.show(settings_loading.load_any(config, overrides))
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
