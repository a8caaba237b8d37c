"""The round transcript: the canonical record from which everything else is derived.

Events, proofs, receipts, resumption and replay follow from it. Its bytes are canonical
(``workflows.canonical``), it names its predecessor, and its schema is versioned from the first day.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sharing.object_store import Digest
from workflows.causes import CauseCode

VERSION = 1


class Commitment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site bound itself to before anything was aggregated.

    Attributes:
        site: Who.
        num_examples: Weight of the update.
        update: SHA-256 over salt and update (``commit``), so that it hides the update.
        public_key: Ed25519, 32 bytes as hex.
        signature: Over plan digest, round, site, num_examples and update; 64 bytes as hex.
    """

    site: str
    num_examples: int
    update: Digest
    public_key: str
    signature: str


class Dropped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site that was asked and is not in the sum."""

    site: str
    cause: CauseCode


class PrivacyEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a mechanism spent in this round."""

    mechanism: str
    epsilon: float
    delta: float


class RoundTranscript(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round.

    Attributes:
        version: Of this schema.
        plan: Plan digest.
        job: Id of the run.
        round: From 1.
        previous: Digest of the transcript before; None in round 1.
        previous_model: Digest of the model that the cohort was given.
        cohort: Sites that were asked, sorted.
        keys: Whether the sites' keys are their own, or made for a simulation.
        commitments: Of the updates in the sum, sorted by site.
        dropped: Sorted by site.
        sum: Digest of the folded delta in the ring (see ``strategies.digest_of_fold``).
        model: Digest of the new model.
        privacy: What was spent.
    """

    version: Literal[1] = 1
    plan: Digest
    job: str
    round: int
    previous: Digest | None
    previous_model: Digest
    cohort: tuple[str, ...]
    keys: Literal["simulated", "own"]
    commitments: tuple[Commitment, ...]
    dropped: tuple[Dropped, ...]
    sum: Digest
    model: Digest
    privacy: tuple[PrivacyEvent, ...] = ()
