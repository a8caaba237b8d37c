"""The state of a run between two rounds, as one safetensors file; and the model as another.

Tensors are named ``params/LAYER``, ``moments/SYMBOL/LAYER``, where the best model so far is not the
last one ``best/LAYER``, what a simulated site keeps ``sites/SITE/LAYER``, and models that sites at
work were given ``versions/ROUND/LAYER``. Everything else is canonical JSON under one metadata key,
so that the same state is the same bytes.

Source: safetensors format, version 0.x (an 8-byte header length, a JSON header, raw tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from sharing.object_store import Digest, digest_of
from strategies import Parameters, ServerState
from workflows.canonical import canonical_bytes

KEY: Final = "foedus"
VERSION: Final = 1


class CheckpointUnreadable(Exception):
    """The bytes are no checkpoint, or one of another version."""


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The model with the best metric so far.

    Attributes:
        round: Round that made it.
        value: Its metric.
        params: The model.
    """

    round: int
    value: float
    params: Parameters


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        state: Of the server.
        best: None where nothing was measured, or the last model is the result anyway.
        memories: What simulated sites keep from round to round, by site; only those that keep
            something. (A real site keeps it itself.)
        versions: Models that sites still at work were given, by the round in which they were
            asked; without the one in force. Empty where rounds wait for their cohort.
    """

    state: ServerState
    best: Best | None = None
    memories: Mapping[str, Parameters] = field(default_factory=dict)
    versions: Mapping[int, Parameters] = field(default_factory=dict)

    def given(self, asked: int) -> Parameters:
        """The model that sites were given that were asked in the round after this, or earlier."""
        return self.versions[asked] if asked <= self.state.round else self.state.params


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    round: int
    best_round: int | None
    best_value: float | None


def model_bytes(params: Parameters) -> bytes:
    """``params`` as a safetensors file; the same arrays are the same bytes."""
    content: bytes = safetensors.numpy.save(
        {name: _contiguous(params[name]) for name in sorted(params)}
    )
    return content


def model_digest(params: Parameters) -> Digest:
    """Name of a model: the digest of its safetensors file."""
    return digest_of(model_bytes(params))


def read_model(content: bytes) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file, by name in sorted order.

    Raises:
        CheckpointUnreadable: It is none.
    """
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointUnreadable(f"no safetensors file: {error}") from error
    return {name: arrays[name] for name in sorted(arrays)}


def write_checkpoint(checkpoint: Checkpoint) -> bytes:
    """``checkpoint`` as a file."""
    state, best = checkpoint.state, checkpoint.best
    tensors = _prefixed("params", state.params)
    for symbol, moment in state.moments.items():
        tensors |= _prefixed(f"moments/{symbol}", moment)
    if best and best.round != state.round:
        tensors |= _prefixed("best", best.params)
    for site, memory in checkpoint.memories.items():
        tensors |= _prefixed(f"sites/{site}", memory)
    for round_, params in checkpoint.versions.items():
        tensors |= _prefixed(f"versions/{round_}", params)
    header = _Header(
        version=VERSION,
        round=state.round,
        best_round=best.round if best else None,
        best_value=best.value if best else None,
    )
    ordered = {name: tensors[name] for name in sorted(tensors)}
    metadata = {KEY: canonical_bytes(header).decode()}
    content: bytes = safetensors.numpy.save(ordered, metadata=metadata)
    return content


def read_checkpoint(content: bytes) -> Checkpoint:
    """The checkpoint that a file holds.

    Raises:
        CheckpointUnreadable: It holds none.
    """
    tensors = read_model(content)
    header = _header(content)
    params = _under("params/", tensors)
    symbols = sorted({n.split("/", 2)[1] for n in tensors if n.startswith("moments/")})
    moments = {symbol: _under(f"moments/{symbol}/", tensors) for symbol in symbols}
    best = None
    if header.best_round is not None and header.best_value is not None:
        kept = params if header.best_round == header.round else _under("best/", tensors)
        best = Best(header.best_round, header.best_value, kept)
    sites = sorted({n.split("/", 2)[1] for n in tensors if n.startswith("sites/")})
    memories = {site: _under(f"sites/{site}/", tensors) for site in sites}
    rounds = sorted({n.split("/", 2)[1] for n in tensors if n.startswith("versions/")})
    versions = {int(round_): _under(f"versions/{round_}/", tensors) for round_ in rounds}
    return Checkpoint(ServerState(params, moments, header.round), best, memories, versions)


def _header(content: bytes) -> _Header:
    size = int.from_bytes(content[:8], "little")
    try:
        metadata: Mapping[str, Any] = msgspec.json.decode(content[8 : 8 + size])["__metadata__"]
        header = msgspec.json.decode(metadata[KEY], type=_Header)
    except (msgspec.MsgspecError, KeyError) as error:
        raise CheckpointUnreadable(f"no checkpoint: {error}") from error
    if header.version != VERSION:
        raise CheckpointUnreadable(f"a checkpoint of version {header.version}, not {VERSION}")
    return header


def _prefixed(prefix: str, arrays: Parameters) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": _contiguous(array) for name, array in arrays.items()}


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(array.shape)
