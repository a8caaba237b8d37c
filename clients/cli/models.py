"""Commands about models."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.connection import connect
from clients.cli.output import AsJson, moment, number, say, say_json, say_table, size

app = typer.Typer(no_args_is_help=True, help="Trained models: list, fetch, try.")
Variant = Annotated[str, typer.Option(help="onnx-fp32 or safetensors.")]


@app.command("list")
def list_models(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List published models, newest first."""
    with connect() as foedus:
        found = tuple(islice(foedus.models.list(), limit))
    if as_json:
        say_json(found)
        return
    say_table(
        ("ID", "NAME", "METRICS", "VARIANTS", "PUBLISHED"),
        (
            (
                model.id,
                model.name,
                " ".join(f"{key}={number(value)}" for key, value in model.metrics.items()),
                " ".join(f"{form.name}({size(form.size_bytes)})" for form in model.variants),
                moment(model.created_at),
            )
            for model in found
        ),
    )


@app.command()
def pull(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File or folder to write to.")
    ] = Path(),
    variant: Variant = "onnx-fp32",
    as_json: AsJson = False,
) -> None:
    """Fetch a model, verified by its digest; a broken download is resumed."""
    with connect() as foedus:
        path = foedus.models.pull(model_id, variant, output)
    if as_json:
        say_json({"model": model_id, "variant": variant, "path": str(path)})
    else:
        say(f"{path} ({size(path.stat().st_size)})")
