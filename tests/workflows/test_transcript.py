"""The round transcript: canonical, chained, signed; and what tampering with it gets."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from strategies import ROOT
from workflows.canonical import canonical_bytes, digest_value
from workflows.causes import CauseCode
from workflows.transcript import (
    SALT_BYTES,
    Candidate,
    Commitment,
    Dropped,
    RoundTranscript,
    TranscriptInvalid,
    commit,
    sign,
    simulated_salt,
    verify,
    verify_chain,
)

PLAN = "sha256:" + "11" * 32
OTHER = "sha256:" + "22" * 32
JOB = "job-1"
SALT = bytes(SALT_BYTES)
SITES = ("site-0001", "site-0002", "site-0003")


CANDIDATES = tuple(Candidate(site=site, loss=0.5) for site in (*SITES, "site-0004"))


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def committed(site: str, number: int, key: Ed25519PrivateKey | None = None) -> Commitment:
    update = commit(simulated_salt(JOB, PLAN, site, number), {"w": np.full(2, number, np.float32)})
    return sign(key or key_of(site), PLAN, number, site=site, num_examples=10, update=update)


def key_of(site: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest())


def chain(length: int = 3, **fields: Any) -> list[RoundTranscript]:
    """A run in which the last site drops out of round 2, and the second counts twice in round 3."""
    transcripts: list[RoundTranscript] = []
    for number in range(1, length + 1):
        dropped = SITES[2:] if number == 2 else ()
        transcripts.append(
            msgspec.structs.replace(
                RoundTranscript(
                    plan=PLAN,
                    job=JOB,
                    round=number,
                    previous=digest_value(transcripts[-1]) if transcripts else None,
                    previous_model=digest(f"model {number - 1}"),
                    cohort=SITES,
                    keys="own",
                    commitments=tuple(
                        committed(site, number) for site in SITES if site not in dropped
                    ),
                    dropped=tuple(
                        Dropped(site=site, cause=CauseCode.PROGRAM_HUNG) for site in dropped
                    ),
                    sum=digest(f"sum {number}"),
                    model=digest(f"model {number}"),
                    counts=(1, 2, 1) if number == 3 else msgspec.UNSET,
                    asked=(3, 3, 3) if number == 3 else msgspec.UNSET,
                    candidates=CANDIDATES if number == 3 else msgspec.UNSET,
                    root=committed(ROOT, number) if number == 3 else msgspec.UNSET,
                ),
                **fields,
            )
        )
    return transcripts


CHAIN = chain()
HEAD = digest_value(CHAIN[-1])


def test_a_whole_run_verifies_and_gives_its_head() -> None:
    assert verify_chain(CHAIN, plan=PLAN) == HEAD
    assert verify_chain(CHAIN, plan=PLAN, head=HEAD) == HEAD


def test_a_run_that_has_not_begun_verifies() -> None:
    assert verify_chain([], plan=PLAN) is None


def test_a_transcript_survives_its_canonical_bytes() -> None:
    for transcript in CHAIN:
        again = msgspec.json.decode(canonical_bytes(transcript), type=RoundTranscript)
        assert again == transcript


def plain(transcript: RoundTranscript) -> Any:
    return msgspec.json.decode(canonical_bytes(transcript))


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    match value:
        case dict():
            return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]
        case list() if value:
            return [leaf for i, part in enumerate(value) for leaf in leaves(part, (*path, i))]
        case _:
            return [path]


def altered(leaf: Any) -> Any:
    match leaf:
        case str() if leaf.startswith("sha256:"):
            return digest(leaf)
        case "own":
            return "simulated"
        case CauseCode.PROGRAM_HUNG.value:
            return CauseCode.PROGRAM_RAISED.value
        case str() if len(leaf) >= 64:
            return ("1" if leaf[0] == "0" else "0") + leaf[1:]
        case str():
            return leaf + "x"
        case int() | float():
            return leaf + 1
        case None:
            return digest("none")
        case _:
            return [{"mechanism": "dp-sgd", "epsilon": 1.0, "delta": 1e-6}]


PLACES = [
    (number, path)
    for number, transcript in enumerate(CHAIN)
    for path in leaves(plain(transcript))
    if path not in (("version",), ("dropped",))
]


@pytest.mark.parametrize(
    ("number", "path"), PLACES, ids=lambda part: str(part).replace("'", "").replace(", ", ".")
)
def test_whatever_is_altered_the_chain_breaks(number: int, path: tuple[str | int, ...]) -> None:
    document = plain(CHAIN[number])
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = altered(place[path[-1]])
    forged = msgspec.convert(document, RoundTranscript)
    assert forged != CHAIN[number]

    with pytest.raises(TranscriptInvalid) as refusal:
        verify_chain([*CHAIN[:number], forged, *CHAIN[number + 1 :]], plan=PLAN, head=HEAD)
    assert refusal.value.round in (number + 1, number + 2)


def test_counts_that_are_not_there_are_not_in_the_bytes() -> None:
    assert not {"counts", "candidates", "root"} & plain(CHAIN[0]).keys()
    assert plain(CHAIN[2])["counts"] == [1, 2, 1]


def test_the_places_that_were_altered_are_all_there_are() -> None:
    assert {path[0] for _, path in PLACES} == set(RoundTranscript.__struct_fields__) - {"version"}


@pytest.mark.parametrize(
    ("forged", "round"),
    [
        (CHAIN[1:], 1),
        (CHAIN[:1] + CHAIN[2:], 2),
        ([CHAIN[0], CHAIN[2], CHAIN[1]], 2),
        ([CHAIN[0], CHAIN[0], *CHAIN[1:]], 2),
        (CHAIN[:2], 2),
        ([], 0),
    ],
    ids=["first gone", "middle gone", "swapped", "twice", "last gone", "all gone"],
)
def test_a_transcript_that_is_missing_or_out_of_place_is_noticed(
    forged: list[RoundTranscript], round: int
) -> None:
    with pytest.raises(TranscriptInvalid) as refusal:
        verify_chain(forged, plan=PLAN, head=HEAD)
    assert refusal.value.round == round


def forged_at(number: int, **fields: Any) -> list[RoundTranscript]:
    """The run with another round ``number``, and all digests after it made anew."""
    before: RoundTranscript | None = None
    transcripts = []
    for transcript in CHAIN:
        changes: dict[str, Any] = {"previous": digest_value(before) if before else None}
        if transcript.round == number:
            changes |= fields
        before = msgspec.structs.replace(transcript, **changes)
        transcripts.append(before)
    return transcripts


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"round": 3}, "round is 3, not 2"),
        ({"counts": (1, 1)}, "counts are not of the cohort"),
        ({"counts": (1, 0, 1)}, "counts are not of the cohort"),
        ({"candidates": CANDIDATES[:2]}, "candidates are not"),
        ({"candidates": CANDIDATES[::-1]}, "candidates are not"),
        ({"root": committed("site-0004", 2)}, "root is not of root"),
        ({"root": committed(ROOT, 1)}, "the signature of root does not hold"),
        ({"plan": OTHER}, "plan is"),
        ({"job": "job-2"}, "job is job-2, not job-1"),
        ({"keys": "simulated"}, "keys is simulated, not own"),
        ({"previous_model": OTHER}, "previous_model is"),
        ({"previous": OTHER}, "previous is"),
        ({"commitments": CHAIN[2].commitments[:2]}, "the signature of site-0001 does not hold"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_forger_who_makes_the_digests_anew_is_noticed_too(
    fields: dict[str, Any], problem: str
) -> None:
    verify_chain(forged_at(2), plan=PLAN, head=HEAD)

    with pytest.raises(TranscriptInvalid, match=f"round 2: {problem}"):
        verify_chain(forged_at(2, **fields), plan=PLAN)


def test_a_chain_of_another_plan_is_refused() -> None:
    with pytest.raises(TranscriptInvalid, match="round 1: plan is"):
        verify_chain(CHAIN, plan=OTHER)


@pytest.mark.parametrize(
    "fields",
    [
        {"cohort": SITES[::-1]},
        {"cohort": SITES[:2]},
        {"cohort": (*SITES, "site-0004")},
        {"commitments": (CHAIN[0].commitments[0], *CHAIN[0].commitments)},
        {"commitments": CHAIN[0].commitments[::-1]},
        {"dropped": (Dropped(site="site-0001", cause=CauseCode.PROGRAM_HUNG),)},
    ],
    ids=["unsorted", "stranger", "forgotten", "twice", "commitments unsorted", "both"],
)
def test_a_cohort_is_those_who_answered_and_those_who_dropped(fields: dict[str, Any]) -> None:
    """The head is made anew, so that only the cohort itself is at fault."""
    with pytest.raises(TranscriptInvalid, match="round 1"):
        verify_chain(chain(1, **fields), plan=PLAN)


def test_a_commitment_holds_for_its_plan_round_and_site_alone() -> None:
    commitment = committed("site-0001", 1)
    verify(commitment, PLAN, 1)

    for plan, number in ((OTHER, 1), (PLAN, 2)):
        with pytest.raises(TranscriptInvalid, match="site-0001"):
            verify(commitment, plan, number)


@pytest.mark.parametrize(
    "fields",
    [
        {"signature": ""},
        {"signature": "zz"},
        {"public_key": "00"},
        {"num_examples": 2**60},
        {"signature": committed("site-0001", 1).signature.upper()},
    ],
    ids=["none", "no hex", "short key", "no JSON number", "another spelling"],
)
def test_what_is_no_signature_is_refused_as_one_that_does_not_hold(fields: dict[str, Any]) -> None:
    with pytest.raises(TranscriptInvalid):
        verify(msgspec.structs.replace(committed("site-0001", 1), **fields), PLAN, 1)


def with_keys(kind: str, keys: list[Ed25519PrivateKey]) -> list[RoundTranscript]:
    """Two rounds of one site, with the key of each."""
    transcripts: list[RoundTranscript] = []
    for number, key in enumerate(keys, start=1):
        made = chain(
            1, keys=kind, cohort=SITES[:1], commitments=(committed(SITES[0], number, key),)
        )
        transcripts.append(
            msgspec.structs.replace(
                made[0],
                round=number,
                previous=digest_value(transcripts[-1]) if transcripts else None,
                previous_model=transcripts[-1].model if transcripts else digest("model 0"),
            )
        )
    return transcripts


def test_a_site_with_a_key_of_its_own_keeps_it() -> None:
    mine, thine = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))

    verify_chain(with_keys("own", [mine, mine]), plan=PLAN)
    with pytest.raises(TranscriptInvalid, match="round 2: site-0001 signed with another key"):
        verify_chain(with_keys("own", [mine, thine]), plan=PLAN)


def unsigned(commitment: Commitment) -> Commitment:
    return msgspec.structs.replace(commitment, public_key=msgspec.UNSET, signature=msgspec.UNSET)


def test_a_simulated_site_signs_nothing_and_one_with_a_key_does() -> None:
    bare = tuple(unsigned(commitment) for commitment in CHAIN[0].commitments)

    verify_chain(chain(1, keys="simulated", commitments=bare), plan=PLAN)
    with pytest.raises(TranscriptInvalid, match="the signature of site-0001 does not hold"):
        verify_chain(chain(1, keys="own", commitments=bare), plan=PLAN)


def test_what_simulated_sites_signed_in_runs_of_before_must_hold() -> None:
    mine, thine = key_of("mine"), key_of("thine")
    forged = msgspec.structs.replace(CHAIN[0].commitments[0], signature=msgspec.UNSET)

    verify_chain(with_keys("simulated", [mine, mine]), plan=PLAN)
    with pytest.raises(TranscriptInvalid, match="round 2: site-0001 signed with another key"):
        verify_chain(with_keys("simulated", [mine, thine]), plan=PLAN)
    with pytest.raises(TranscriptInvalid, match="the signature of site-0001 does not hold"):
        verify_chain(chain(1, keys="simulated", cohort=SITES[:1], commitments=(forged,)), plan=PLAN)


def test_an_unsigned_commitment_is_not_longer_for_it() -> None:
    written = canonical_bytes(unsigned(CHAIN[0].commitments[0])).decode()
    assert "signature" not in written
    assert "public_key" not in written


def test_simulated_salts_follow_from_the_run_alone() -> None:
    salts = {simulated_salt(JOB, PLAN, site, number) for site in "ab" for number in (1, 2)}
    assert len(salts) == 4
    assert simulated_salt(JOB, PLAN, "a", 1) in salts
    assert simulated_salt("job-2", PLAN, "a", 1) not in salts
    assert simulated_salt(JOB, OTHER, "a", 1) not in salts


def test_the_commitment_is_written_down() -> None:
    header = b'["foedus-update-1",[["b","float32",[]],["w","float32",[2]]]]\n'
    values = np.array([3.0, 1.0, 2.0], "<f4").tobytes()
    expected = hashlib.sha256(SALT + header + values).hexdigest()

    update = {"w": np.array([1, 2], np.float32), "b": np.array(3, np.float32)}

    assert commit(SALT, update) == f"sha256:{expected}"


@given(st.binary(min_size=SALT_BYTES, max_size=SALT_BYTES))
def test_another_salt_is_another_commitment(salt: bytes) -> None:
    update = {"w": np.ones(1)}
    assert (commit(salt, update) == commit(SALT, update)) == (salt == SALT)


@pytest.mark.parametrize(
    "update",
    [
        {"w": np.array([[1.0, 2.0]])},
        {"w": np.array([1.0, 2.0], np.float32)},
        {"v": np.array([1.0, 2.0])},
        {"w": np.array([1.0]), "w2": np.array([2.0])},
        {"w": np.array([1.0, np.nextafter(2.0, 3)])},
    ],
    ids=["shape", "dtype", "name", "layers", "last bit"],
)
def test_another_update_is_another_commitment(update: dict[str, np.ndarray]) -> None:
    assert commit(SALT, update) != commit(SALT, {"w": np.array([1.0, 2.0])})


def test_memory_layout_does_not_show() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for same in (np.asfortranarray(x), x.astype(">f8"), np.repeat(x, 2, axis=0)[::2]):
        assert commit(SALT, {"w": same}) == commit(SALT, {"w": x})


def test_a_short_salt_hides_nothing_and_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        commit(b"salt", {})


def test_simulated_salts_are_what_hkdf_derives() -> None:
    info = canonical_bytes(("foedus-simulation-1", "salt", "job-1", PLAN, "s", 3))
    hkdf = HKDF(hashes.SHA256(), length=32, salt=None, info=info)

    assert simulated_salt("job-1", PLAN, "s", 3) == hkdf.derive(b"simulated, no secret")
