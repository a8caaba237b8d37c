"""What a step tells while it runs: one JSON line per event in ``events.jsonl``.

The file is the buffer: the wrapper posts its lines in order and remembers how many were taken, so
the control plane may be away for any time. (attempt, step, number) names an event for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sharing.object_store import Digest
from workflows.causes import Cause


class StepEvent(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """One line.

    Attributes:
        number: Position in its step's file, from 1.
        at: Seconds since the epoch.
    """

    number: int
    at: float


class StepStarted(StepEvent, frozen=True, kw_only=True, tag="step.started"):
    """The step's process runs; its inputs are in place."""


class Waiting(StepEvent, frozen=True, kw_only=True, tag="waiting"):
    """The step can not go on by itself just now.

    Attributes:
        reason: What it waits for, for people: ``2 of 5 sites; site-c: program not approved``.
    """

    reason: str


class RoundStarted(StepEvent, frozen=True, kw_only=True, tag="round.started"):
    """A cohort was drawn and asked to train."""

    round: int
    cohort: int


class SiteDropped(StepEvent, frozen=True, kw_only=True, tag="site.dropped"):
    """A site's part in a round was lost; the round goes on without it."""

    round: int
    site: str
    cause: Cause


class RoundFinished(StepEvent, frozen=True, kw_only=True, tag="round.finished"):
    """A round is on record and can be resumed from.

    Attributes:
        round: Its number, from 1.
        rounds: How many there will be.
        sites: Updates that were folded.
        dropped: Sites that were asked and did not answer well.
        loss: Mean training loss over the cohort, weighted by examples; None if not reported.
        metrics: Of the new global model, by name; empty in rounds without evaluation.
        bytes_up: Bytes of updates from sites to server, as the codec encoded them.
        bytes_down: Bytes of models from server to sites.
        seconds: Wall time of the round.
        epsilon: Privacy loss so far; None without a mechanism that spends any.
        model: Digest of the new global model's safetensors bytes.
        checkpoint: The server state after the round, as an object to be stored.
        transcript: The round's transcript, as an object to be stored.
        staleness: Mean over the updates of the server steps since their sites were asked; None
            where the round waited for its cohort.
        virtual_time: When the round ended, where arrivals are simulated
            (``workflows.arrivals``); None elsewhere.
    """

    round: int
    rounds: int
    sites: int
    dropped: int
    loss: float | None
    metrics: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float
    epsilon: float | None = None
    model: Digest
    checkpoint: Digest
    transcript: Digest
    staleness: float | None = None
    virtual_time: float | None = None


class StepFailed(StepEvent, frozen=True, kw_only=True, tag="step.failed"):
    """The step ended without a result; always its last line."""

    cause: Cause


class StepSucceeded(StepEvent, frozen=True, kw_only=True, tag="step.succeeded"):
    """The step's outputs and its manifest are stored; always its last line.

    Written by the wrapper, after the process ended and everything was uploaded.
    """

    manifest: Digest


AnyStepEvent = (
    StepStarted | Waiting | RoundStarted | SiteDropped | RoundFinished | StepFailed | StepSucceeded
)
