"""Commands about models."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.connection import connect
from clients.cli.output import AsJson, moment, number, say, say_each, say_json, size

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
    say_each(
        found,
        ("ID", "NAME", "METRICS", "VARIANTS", "PUBLISHED"),
        lambda model: (
            model.id,
            model.name,
            " ".join(f"{key}={number(value)}" for key, value in model.metrics.items()),
            " ".join(f"{form.name}({size(form.size_bytes)})" for form in model.variants),
            moment(model.created_at),
        ),
        as_json=as_json,
    )


@app.command()
def pull(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File or folder to write to.")
    ] = Path(),
    variant: Variant = "onnx-fp32",
    direct: Annotated[
        bool,
        typer.Option("--direct", help="From the object store itself, if it hands out links."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model, verified by its digest; a broken download is resumed."""
    with connect() as foedus:
        path = foedus.models.pull(model_id, variant, output, direct=direct)
    if as_json:
        say_json({"model": model_id, "variant": variant, "path": str(path)})
    else:
        say(f"{path} ({size(path.stat().st_size)})")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="ID|FILE", help="A model, or an .onnx file.")],
    examples: Annotated[Path, typer.Argument(metavar="INPUT", help=".npz or .csv of examples.")],
    as_json: AsJson = False,
) -> None:
    """Let a model answer: the class of each example on its line, or its values."""
    from clients.predict import predict as answer
    from clients.predict import read_examples

    inputs = read_examples(examples)
    classes: tuple[str, ...] = ()
    path = Path(model)
    if not path.is_file():
        path, classes = _fetched(model)
    found = answer(path, inputs)
    labels = None if found.labels is None else [_name(classes, int(k)) for k in found.labels]
    if as_json:
        say_json({"labels": labels, "scores": found.scores.tolist()})
        return
    for row, scores in enumerate(found.scores):
        say(" ".join(f"{score:g}" for score in scores.flat) if labels is None else labels[row])


def _fetched(model_id: str) -> tuple[Path, tuple[str, ...]]:
    """The model's ONNX file in the user's cache, and what its classes are called."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with connect() as foedus:
        model = foedus.models.get(model_id)
        target = cache / "foedus" / f"{model.id}.onnx"
        return foedus.models.pull(model.id, path=target), model.classes


def _name(classes: tuple[str, ...], index: int) -> str:
    return classes[index] if index < len(classes) else str(index)
