"""Commands about the platform itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from clients.cli.connection import connect
from clients.cli.output import AsJson, say, say_json

_CLIENT_SECRETS: Final = frozenset({"FOEDUS_TOKEN", "FOEDUS_CLIENT_SECRET"})


def serve(
    data: Annotated[
        Path | None, typer.Option(help="Folder of everything that lasts (FOEDUS_DATA).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (FOEDUS_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 for any free one (FOEDUS_PORT).")
    ] = None,
) -> None:
    """Run the control plane here. The first start prints a token for `foedus login`, once."""
    given = {"FOEDUS_DATA": data, "FOEDUS_HOST": host, "FOEDUS_PORT": port}
    environment = server_environment(os.environ, given)
    os.execve(sys.executable, [sys.executable, "-m", "control_plane"], environment)  # noqa: S606


def server_environment(
    environment: Mapping[str, str], given: Mapping[str, Path | str | int | None]
) -> dict[str, str]:
    """The server's environment: this one without the client's secrets, and what was given."""
    inherited = {key: value for key, value in environment.items() if key not in _CLIENT_SECRETS}
    return inherited | {key: str(value) for key, value in given.items() if value is not None}


def capabilities(as_json: AsJson = False) -> None:
    """Show what the platform can do: runtimes, strategies, programs, data sets."""
    with connect() as foedus:
        found = foedus.capabilities()
    if as_json:
        say_json(found)
        return
    say("runtimes")
    for runtime in found.runtimes:
        say(f"  {runtime.name:<16} {runtime.summary}")
        say(f"  {'':<16} {', '.join(runtime.modes)}; strategies {', '.join(runtime.strategies)}")
        mechanisms = ", ".join(runtime.mechanisms) or "none"
        say(f"  {'':<16} privacy mechanisms: {mechanisms}; codecs: {', '.join(runtime.codecs)}")
    say("programs")
    for name, program in found.programs.items():
        say(f"  {name:<16} {program.framework}: {program.summary}")
    say("data sets")
    for name, dataset in found.datasets.items():
        classes = f"{dataset.num_classes} classes" if dataset.num_classes else "real targets"
        say(f"  {name:<16} {dataset.num_examples} examples, {classes}: {dataset.summary}")
    say(f"strategies   {', '.join(found.strategies)}")
    say(f"partitioners {', '.join(found.partitioners)}")
    say(f"selections   {', '.join(found.selections)}")
    say(f"analyses     {', '.join(found.analyses)}")
    say(f"optimizers   {', '.join(found.optimizers)}")
    say(f"ONNX         {', '.join(found.onnx)}")
