"""Commands of the pipeline: run, status, pretrain, data describe, config show."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from moekd.cli.common import AsJson, Config, Overrides, Quiet, load_settings, print_json


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
    folder = stages.run(load_settings(config, overrides), only)
    if as_json:
        print_json({"folder": str(folder), "results": str(folder / "results.json")})
    else:
        typer.echo((folder / "results.md").read_text(encoding="utf-8"))
        typer.echo(folder)


def status(config: Config, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show which steps of CONFIG are fresh, partial, stale or missing, and which setting made them stale."""
    from moekd import steps
    from moekd.stages import plan

    settings = load_settings(config, overrides)
    found = steps.status(plan(settings), settings)
    if as_json:
        print_json(
            [
                {"step": one.label, "state": one.state, "reasons": one.reasons, "folder": str(one.folder)}
                for one in found
            ]
        )
        return
    width = max(len(one.label) for one in found)
    for one in found:
        typer.echo(f"{one.state:8} {one.label:{width}} {'; '.join(one.reasons)}".rstrip())


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
        print_json({"folder": str(folder / "model"), **facts})
        return
    typer.echo(f"{facts['tokens_per_second']:,.0f} tokens/s")
    for name, value in facts["held_out"].items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
        typer.echo(f"held-out {name.replace('_', ' ')}: {shown}")
    typer.echo(folder / "model")


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
    settings = load_settings(config, overrides)
    step = data_step()
    report = read_json(run_steps([step], settings)[step.label] / "report.json")
    if as_json:
        print_json(report)
    else:
        from moekd.data.describe import render

        typer.echo(render(report))


def show(config: Config, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Print every setting of CONFIG with its value and where that came from."""
    import json

    from moekd import settings_loading

    rows = settings_loading.show(settings_loading.load_any(config, overrides))
    if as_json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    lines = [(f"{key} = {json.dumps(value, ensure_ascii=False)}", origin) for key, value, origin in rows]
    width = min(60, max(len(text) for text, _ in lines))
    for text, origin in lines:
        typer.echo(f"{text:{width}}  # {origin}")
