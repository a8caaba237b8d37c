from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.resources import JobPatch, NewToken, NewUser
from control_plane.api.decoding import Undecodable, decode
from workflows.job import JobSpec

JOB: dict[str, Any] = {
    "name": "digits",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits"},
}


def refusal(document: object, type_: type[Any] = JobSpec) -> Undecodable:
    with pytest.raises(Undecodable) as refused:
        decode(msgspec.json.encode(document), type_)
    return refused.value


def test_a_job_is_read() -> None:
    assert decode(msgspec.json.encode(JOB), JobSpec).name == "digits"


@pytest.mark.parametrize(
    ("extra", "field", "mend"),
    [
        pytest.param({"round": 3}, "round", "`rounds`", id="a misspelt field of the job"),
        pytest.param({"epochs": 3}, "epochs", "`local.epochs`", id="a field that lives elsewhere"),
        pytest.param(
            {"strategy": {"kind": "fedadam", "etta": 1}}, "strategy.etta", "`eta`", id="in a kind"
        ),
        pytest.param(
            {"strategy": {"kind": "fedsgd"}}, "strategy.kind", "fedadam", id="an unknown kind"
        ),
        pytest.param(
            {"data": {"kind": "partitioned", "dataset": "d", "partitioner": {"kind": "dirichle"}}},
            "data.partitioner.kind",
            "`dirichlet`",
            id="an unknown kind in a kind",
        ),
        pytest.param(
            {"privacy": [{"kind": "dp-sgd", "epsilon": 1, "delta": 0.1, "clip": 1}]},
            "privacy[0].clip",
            "`clip_norm`",
            id="in a list",
        ),
        pytest.param(
            {"runtime": {"mode": "simulated"}}, "runtime.mode", "`simulation`", id="a closed set"
        ),
        pytest.param({"rounds": "12"}, "rounds", "/schema", id="text where a number belongs"),
        pytest.param({"rounds": 0}, "rounds", "/schema", id="a number out of bounds"),
        pytest.param({"cohort": {"minimum": 1.5}}, "cohort.minimum", "/schema", id="half a site"),
    ],
)
def test_the_field_at_fault_and_a_mend_are_named(
    extra: dict[str, Any], field: str, mend: str
) -> None:
    error = refusal(JOB | extra)

    assert error.fields == (field,)
    assert mend in error.mend
    assert field in str(error)


def test_a_missing_field_is_named() -> None:
    assert refusal({"name": "x", "data": JOB["data"]}).fields == ("program",)


def test_an_enumeration_lists_its_values() -> None:
    error = refusal({"name": "eva", "organisation": "home", "roles": ["boss"]}, NewUser)

    assert error.fields == ("roles[0]",)
    assert "data-owner" in error.mend


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1,]", b"nul", b"[" * 100_000])
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(Undecodable) as refused:
        decode(content, JobSpec)

    assert refused.value.fields == ()


def test_the_wrong_thing_altogether_is_refused() -> None:
    assert refusal([JOB]).fields == ()
    assert refusal(7, JobPatch).fields == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "kind", "program", "data", "strategy", "a.b", "[0]", ""]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from([JobSpec, JobPatch, NewUser, NewToken]))
def test_any_json_is_read_or_refused_as_undecodable(document: Any, type_: type[Any]) -> None:
    with contextlib.suppress(Undecodable):
        decode(msgspec.json.encode(document), type_)
