"""The catalogue of causes: closed, complete, and of use to whoever reads it."""

from __future__ import annotations

import msgspec
import pytest

from workflows.causes import CATALOGUE, Cause, CauseCode

RETRYABLE = {
    "manifest-invalid",
    "step-died",
    "attempt-lost",
    "disk-full",
}  # what may succeed if the same run is tried again by itself


@pytest.mark.parametrize("code", CauseCode)
def test_every_cause_says_who_can_act_and_how(code: CauseCode) -> None:
    explanation = CATALOGUE[code]

    assert explanation.actor in ("user", "site", "platform")
    assert explanation.hint.endswith(".")
    assert explanation.hint[0].isupper()
    assert Cause(code=code).explanation == explanation


def test_the_catalogue_holds_the_codes_and_no_more() -> None:
    assert set(CATALOGUE) == set(CauseCode)


def test_only_what_is_the_platforms_fault_is_tried_again() -> None:
    assert {code.value for code in CATALOGUE if CATALOGUE[code].retryable} == RETRYABLE
    assert all(CATALOGUE[CauseCode(code)].actor == "platform" for code in RETRYABLE)


def test_what_the_program_does_is_for_the_developer() -> None:
    actors = {CATALOGUE[code].actor for code in CauseCode if code.startswith(("program", "update"))}
    assert actors == {"user"}


def test_a_cause_survives_the_wire_and_an_unknown_code_does_not() -> None:
    cause = Cause(code=CauseCode.PROGRAM_RAISED, detail="ValueError", site="site-0001", round=2)
    assert msgspec.json.decode(msgspec.json.encode(cause), type=Cause) == cause

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"code": "gremlins"}', type=Cause)
