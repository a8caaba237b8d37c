"""What a step made, by digest: the one proof that it succeeded. Written and stored last."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sharing.object_store import Digest, StoredObject
from workflows.plan import StepKind


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Outputs of one step.

    Attributes:
        job: Id of the job.
        attempt: Attempt that made them.
        step: Which step.
        plan_digest: What was computed.
        outputs: Objects by file name.
    """

    job: str
    attempt: int
    step: StepKind
    plan_digest: Digest
    outputs: Mapping[str, StoredObject]


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What a step leaves to steps on other machines.

    Attributes:
        manifest: Digest of what it made.
        events: Digest of what it told, as its file of events.
    """

    manifest: Digest
    events: Digest
