"""What this platform can do: gathered from headers and constants, without frameworks."""

from __future__ import annotations

from typing import get_args

import msgspec

from clients.resources import CapabilitiesView, RuntimeView
from strategies import KINDS
from workflows.analyses import KINDS as QUERIES
from workflows.capabilities import Capabilities
from workflows.data.datasets import BUNDLED
from workflows.data.partitioners import AnyPartitioner
from workflows.job import Local
from workflows.programs import BUILTIN
from workflows.runtime_headers import read_runtimes
from workflows.selection import KINDS as SELECTIONS


def read_capabilities() -> Capabilities:
    """All that a job can ask for here before anything was uploaded; reads the runtimes' headers."""
    return Capabilities(
        runtimes=read_runtimes(),
        strategies=tuple(sorted(KINDS)),
        programs=dict(BUILTIN),
        datasets=dict(BUNDLED),
    )


def view(capabilities: Capabilities) -> CapabilitiesView:
    """The capability matrix as the API shows it."""
    return CapabilitiesView(
        runtimes=tuple(
            RuntimeView(
                name=name,
                summary=runtime.summary,
                modes=runtime.modes,
                strategies=(
                    capabilities.strategies if runtime.strategies == ("*",) else runtime.strategies
                ),
                mechanisms=runtime.mechanisms,
                codecs=runtime.codecs,
            )
            for name, runtime in sorted(capabilities.runtimes.items())
        ),
        strategies=capabilities.strategies,
        programs=capabilities.programs,
        datasets=capabilities.datasets,
        onnx=capabilities.onnx,
        partitioners=_kinds(AnyPartitioner),
        selections=tuple(SELECTIONS),
        analyses=tuple(QUERIES),
        optimizers=_kinds(_optimizers()),
    )


def _optimizers() -> object:
    return next(f.type for f in msgspec.structs.fields(Local) if f.name == "optimizer")


def _kinds(union: object) -> tuple[str, ...]:
    """Tags of a tagged union."""
    return tuple(sorted(member.__struct_config__.tag for member in get_args(union)))
