"""Commands on models: export, attack, search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moekd.cli.common import AsJson, Overrides, Quiet, load_settings, print_json
from moekd.errors import SettingsError
from moekd.files import require_folder, write_json


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

    Example: moekd export runs/student/KEY/model model --data valid.jsonl --natural test.parquet --precision int8
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
        print_json(facts)
    else:
        typer.echo(stage.render(facts))
        typer.echo(out)


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
        print_json({"results": str(out), "attacks": measures})
    else:
        typer.echo(stage.render(found))
        typer.echo(out)


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
    algorithm finds. The others guess accuracy from candidates that were trained; `moekd` also times students with
    random weights, half a minute.
    """
    from moekd.students import search as searches

    _require_one_source(kind, points, config, overrides)
    if out is not None:
        require_folder(out)
    budget_bytes = searches.parse_bytes(budget)
    result: dict[str, Any]
    if kind == "compressor":
        result = {
            "search": kind,
            "budget_bytes": budget_bytes,
            **searches.search_compressor(budget_bytes, seed=seed),
        }
    else:
        from moekd.export.latency import measure_latency, processor_ms
        from moekd.students.ledger import read_ledger

        if config is not None:
            from moekd import stages

            points = stages.candidates(load_settings(config, overrides), kind, budget_bytes)
        evaluated = [] if points is None else read_ledger(points)
        found = searches.search(
            kind, budget_bytes, evaluated, seed=seed, latency=lambda budget: measure_latency(budget, out)
        )
        picked = found.picked.configuration
        measured = processor_ms(picked, [picked.max_length])[0] if found.latency else None
        result = searches.as_json(kind, budget_bytes, found, seed=seed, measured_ms=measured)
        if out is not None:
            searches.plot_front(found, out / "front.png")
    if out is not None:
        write_json(out / "search.json", result)
    if as_json:
        print_json(result)
    else:
        typer.echo(searches.render(result))


def _require_one_source(kind: str, points: Path | None, config: Path | None, overrides: Sequence[str]) -> None:
    """Refuse candidates, and settings of how to train them, that would be passed over in silence."""
    given = {"--points": points, "--config": config, "--set": overrides}
    if kind == "compressor" and (unread := [name for name, value in given.items() if value]):
        raise SettingsError(
            f"compressor's fitness is a formula and reads no candidates: leave {' and '.join(unread)} out"
        )
    if overrides and not config:
        raise SettingsError(
            f"--set {overrides[0]} changes a setting of a config, and none is given: add --config CONFIG"
        )
    if points and config:
        raise SettingsError(
            f"--points gives evaluated candidates ({points}) and --config trains others ({config}): "
            "leave one of them out"
        )


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """NaN, where a measure is undefined, is no JSON."""
    return {name: None if value != value else value for name, value in values.items()}
