"""The round transcript: the canonical record from which everything else is derived.

Events, proofs, receipts, resumption and replay follow from it. Its bytes are canonical
(``workflows.canonical``), it names its predecessor, and its schema is versioned from the first day.

A site commits itself to its update before anything is aggregated, and signs that with its key. A
simulated site has no key, so its commitment is unsigned: one that anybody could derive would prove
nothing, and took a third of the time of a site that trains nothing. Its salt follows from the run
(HKDF, RFC 5869), so that a resumed run writes the same bytes.

Source: Ed25519, RFC 8032; commitments by a salted hash.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from functools import cache
from typing import Any, Final, Literal

import msgspec
import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sharing.object_store import Digest
from strategies import ROOT, Parameters
from workflows.canonical import canonical_bytes, digest_value
from workflows.causes import CauseCode

VERSION: Final = 1
SALT_BYTES: Final = 32
_EXTRACTED: Final = hmac.digest(bytes(32), b"simulated, no secret", "sha256")
"""What HKDF-Extract gives without a salt; 32 bytes are one block of HKDF-Expand over it."""


class TranscriptInvalid(Exception):
    """A transcript does not follow from the one before, or a signature in it does not hold.

    Attributes:
        round: Round of the first transcript that is wrong, counted from 1 by position.
    """

    def __init__(self, round: int, problem: str) -> None:
        super().__init__(f"round {round}: {problem}")
        self.round = round


class Commitment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site bound itself to before anything was aggregated.

    Attributes:
        site: Who.
        num_examples: Behind the update; its weight, unless ``RoundTranscript.counts`` is there.
        update: SHA-256 over salt and update as it travelled (``commit``), so that it hides it.
        public_key: Ed25519, 32 bytes as hex; absent of a simulated site.
        signature: Over plan digest, the round in which it was asked, site, num_examples and
            update; 64 bytes as hex; absent of a simulated site.
    """

    site: str
    num_examples: int
    update: Digest
    public_key: str | msgspec.UnsetType = msgspec.UNSET
    signature: str | msgspec.UnsetType = msgspec.UNSET


class Dropped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site that was asked and is not in the sum."""

    site: str
    cause: CauseCode


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site that told how the global model fares with it, for the draw to go by."""

    site: str
    loss: float


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
        previous_model: Digest of the model in force before it, which the cohort was given
            unless ``asked`` tells of an earlier round.
        cohort: Sites that were asked, sorted; empty if the draw had too few. Where ``asked`` is
            there, those whose answers arrived or were given up.
        counts: How often each site of the cohort counts in the sum, in the order of the cohort;
            absent where it counts by its examples. (What is absent is not in the bytes, so that
            transcripts from before there were counts keep their digest.)
        keys: Whether the sites have keys of their own, or are simulated and have none.
        commitments: Of the updates in the sum, sorted by site.
        dropped: Sorted by site.
        sum: Digest of the folded delta in the ring (see ``strategies.digest_of_fold``).
        model: Digest of the new model.
        asked: Round in which each site of the cohort was asked, in the order of the cohort: it was
            given the ``previous_model`` of that round. Absent where it is this one.
        candidates: Whose losses the draw went by, sorted by site; absent where it asks for none.
        privacy: What was spent.
        root: Of the server's own update, by which the fold went (``strategies.ROOT``); absent where
            it goes by none.
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
    counts: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    asked: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    candidates: tuple[Candidate, ...] | msgspec.UnsetType = msgspec.UNSET
    root: Commitment | msgspec.UnsetType = msgspec.UNSET


def commit(salt: bytes, update: Parameters) -> Digest:
    """Commitment to ``update``: SHA-256 over the salt, then names, dtypes, shapes and values.

    Layers come sorted by name, values in row order as little-endian bytes, all after a header that
    says how many follow, so that two different updates never give the same input.

    Raises:
        ValueError: The salt has not ``SALT_BYTES`` bytes.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    layers = sorted(update)
    header = [(name, _name_of(update[name].dtype), update[name].shape) for name in layers]
    digest = hashlib.sha256(salt + msgspec.json.encode(("foedus-update-1", header)) + b"\n")
    for name in layers:
        little_endian = update[name].dtype.newbyteorder("<")
        digest.update(np.ascontiguousarray(update[name], little_endian).reshape(-1).data)
    return f"sha256:{digest.hexdigest()}"


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which numpy makes anew each time, slower than small updates are hashed."""
    return dtype.name


def simulated_salt(job: str, plan: Digest, site: str, round: int) -> bytes:
    """Salt of a simulated site's commitment in a round; anyone can derive it."""
    info = canonical_bytes(("foedus-simulation-1", "salt", job, plan, site, round))
    return hmac.digest(_EXTRACTED, info + b"\x01", "sha256")


def sign(
    key: Ed25519PrivateKey,
    plan: Digest,
    round: int,
    *,
    site: str,
    num_examples: int,
    update: Digest,
) -> Commitment:
    """What a site binds itself to in a round of ``plan``, signed with its key."""
    statement = _statement(plan, round, site, num_examples, update)
    return Commitment(
        site=site,
        num_examples=num_examples,
        update=update,
        public_key=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(statement).hex(),
    )


def verify(commitment: Commitment, plan: Digest, round: int) -> None:
    """Check that the holder of the commitment's key signed it for this plan and round.

    Raises:
        TranscriptInvalid: Nobody did.
    """
    try:
        statement = _statement(
            plan, round, commitment.site, commitment.num_examples, commitment.update
        )
        public_key = Ed25519PublicKey.from_public_bytes(_from_hex(commitment.public_key))
        public_key.verify(_from_hex(commitment.signature), statement)
    except (InvalidSignature, ValueError) as error:
        problem = f"the signature of {commitment.site} does not hold"
        raise TranscriptInvalid(round, problem) from error


def _statement(plan: Digest, round: int, site: str, num_examples: int, update: Digest) -> bytes:
    return canonical_bytes(
        {
            "statement": "foedus-commitment-1",
            "plan": plan,
            "round": round,
            "site": site,
            "num_examples": num_examples,
            "update": update,
        }
    )


def _from_hex(text: str | msgspec.UnsetType) -> bytes:
    """Bytes of lower-case hex without spaces, so that a value has one spelling only."""
    if isinstance(text, str) and (content := bytes.fromhex(text)).hex() == text:
        return content
    raise ValueError("not canonical hex")


def verify_chain(
    transcripts: Iterable[RoundTranscript], *, plan: Digest, head: Digest | None = None
) -> Digest | None:
    """Check a run's transcripts from round 1 on: chain, plan, cohorts, keys and signatures.

    Args:
        transcripts: In order of rounds; none is a valid run so far.
        plan: Digest of the plan they must be of.
        head: Digest that the last one must have, from the model card; without it nobody can
            tell whether the last transcript's unsigned parts were altered.

    Returns:
        Digest of the last transcript; None if there is none.

    Raises:
        TranscriptInvalid: It names the first round that is wrong.
    """
    before: RoundTranscript | None = None
    previous: Digest | None = None
    keys: dict[str, str] = {}
    answered: set[tuple[str, int]] = set()
    for number, transcript in enumerate(transcripts, start=1):
        _verify_link(transcript, number, plan, before, previous)
        _verify_cohort(transcript)
        for commitment in transcript.commitments:
            asked = asked_in(transcript, commitment.site)
            _verify_signature(transcript, commitment, asked, keys)
            if (commitment.site, asked) in answered:
                problem = f"the answer of {commitment.site} to round {asked} is in a sum already"
                raise TranscriptInvalid(number, problem)
            answered.add((commitment.site, asked))
        if isinstance(transcript.root, Commitment):
            _verify_root(transcript, transcript.root, keys)
        before, previous = transcript, digest_value(transcript)
    if head is not None and head != previous:
        raise TranscriptInvalid(before.round if before else 0, f"its digest is not {head}")
    return previous


def asked_in(transcript: RoundTranscript, site: str) -> int:
    """Round in which a site of the cohort was asked."""
    if isinstance(transcript.asked, tuple):
        return transcript.asked[transcript.cohort.index(site)]
    return transcript.round


def _verify_link(
    transcript: RoundTranscript,
    number: int,
    plan: Digest,
    before: RoundTranscript | None,
    previous: Digest | None,
) -> None:
    claims: list[tuple[str, object, object]] = [
        ("round", transcript.round, number),
        ("plan", transcript.plan, plan),
        ("previous", transcript.previous, previous),
    ]
    if before is not None:
        claims += [
            ("job", transcript.job, before.job),
            ("keys", transcript.keys, before.keys),
            ("previous_model", transcript.previous_model, before.model),
        ]
    for field, found, expected in claims:
        if found != expected:
            raise TranscriptInvalid(number, f"{field} is {found}, not {expected}")


def _verify_cohort(transcript: RoundTranscript) -> None:
    committed = [commitment.site for commitment in transcript.commitments]
    dropped = [dropped.site for dropped in transcript.dropped]
    for field, sites in (
        ("cohort", list(transcript.cohort)),
        ("commitments", committed),
        ("dropped", dropped),
    ):
        if sites != sorted(set(sites)):
            raise TranscriptInvalid(transcript.round, f"{field} is not sorted, each site once")
    if sorted(committed + dropped) != list(transcript.cohort):
        problem = "commitments and dropped are not together the cohort"
        raise TranscriptInvalid(transcript.round, problem)
    counts = transcript.counts
    if isinstance(counts, tuple) and (
        len(counts) != len(transcript.cohort) or min(counts, default=1) < 1
    ):
        raise TranscriptInvalid(transcript.round, "counts are not of the cohort, one at least")
    asked = transcript.asked
    if isinstance(asked, tuple) and (
        len(asked) != len(transcript.cohort)
        or not all(1 <= round_ <= transcript.round for round_ in asked)
    ):
        problem = "asked is not of the cohort, in this round or before"
        raise TranscriptInvalid(transcript.round, problem)
    if isinstance(transcript.candidates, tuple):
        told = [candidate.site for candidate in transcript.candidates]
        if told != sorted(set(told)) or not set(transcript.cohort) <= set(told):
            problem = "candidates are not sorted, each site once, with the cohort among them"
            raise TranscriptInvalid(transcript.round, problem)


def _verify_root(transcript: RoundTranscript, root: Commitment, keys: dict[str, str]) -> None:
    """Check that the server's own update is none of a site's, under a key that it keeps."""
    if root.site != ROOT or ROOT in transcript.cohort or not transcript.cohort:
        raise TranscriptInvalid(transcript.round, f"root is not of {ROOT} beside a cohort")
    _verify_signature(transcript, root, transcript.round, keys)


def _verify_signature(
    transcript: RoundTranscript, commitment: Commitment, asked: int, keys: dict[str, str]
) -> None:
    """Check that a site signed and keeps its key; ``keys`` collects those seen.

    A simulated one signs nothing; where it did, as in runs of before, what it signed must hold.
    """
    is_unsigned = commitment.public_key is commitment.signature is msgspec.UNSET
    if transcript.keys == "simulated" and is_unsigned:
        return
    verify(commitment, transcript.plan, asked)
    key = str(commitment.public_key)
    if keys.setdefault(commitment.site, key) != key:
        raise TranscriptInvalid(transcript.round, f"{commitment.site} signed with another key")
