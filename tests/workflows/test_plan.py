"""From a job to its steps, and what the plan digest names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.workflows.jobs import ABSENT, BUNDLE, JOB, job
from workflows.plan import Plan, compile_plan, plan_digest

ENVIRONMENT = "sha256:" + "e0" * 32


def plan(attempt: int = 1, **fields: Any) -> Plan:
    return compile_plan("job-1", attempt, job(**fields), ENVIRONMENT, {"bundle.tar": BUNDLE})


def test_a_job_becomes_three_steps_in_order() -> None:
    steps = plan(runtime={"kind": "native"}).steps

    assert [(step.name, step.argv, step.after) for step in steps] == [
        ("federate", ("workflows.runtimes.native",), ()),
        ("translate", ("workflows.steps.translate",), ("federate",)),
        ("publish", ("workflows.steps.publish",), ("federate", "translate")),
    ]
    assert [(step.outputs, step.optional_outputs) for step in steps] == [
        (("model.safetensors", "transcripts.jsonl", "spent.json"), ()),
        (("signature.json",), ("model.onnx",)),
        (("model.json",), ()),
    ]


def test_a_job_that_does_not_publish_has_no_such_step() -> None:
    steps = plan(output={"publish": False}).steps
    assert [step.name for step in steps] == ["federate", "translate"]


def test_a_plan_carries_what_it_was_made_of() -> None:
    made = plan(attempt=3)

    assert (made.job, made.attempt, made.spec) == ("job-1", 3, JOB)
    assert made.inputs == {"bundle.tar": BUNDLE}
    assert made.plan_digest == plan_digest(JOB, ENVIRONMENT)


def test_a_step_may_take_as_long_as_its_rounds_may() -> None:
    fields = {"rounds": 1000, "cohort": {"deadline_s": 900}}
    assert plan(**fields).steps[0].timeout_s > 1000 * 900


def test_a_plan_survives_the_run_directory() -> None:
    made = plan()
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"rounds": 11},
        {"init": {"kind": "seed", "seed": 1}},
        {"runtime": {"kind": "native"}},
        {"data": {"seed": 1}},
        {"strategy": {"kind": "fedavg", "eta": 0.5}},
        {"program": {"config": {"width": 8}}},
        {"ring": {"fraction_bits": 20}},
    ],
    ids=str,
)
def test_the_digest_tells_apart_what_computes_something_else(fields: dict[str, Any]) -> None:
    assert plan(**fields).plan_digest != plan().plan_digest


def test_the_environment_is_part_of_the_digest() -> None:
    assert plan_digest(JOB, ENVIRONMENT) != plan_digest(JOB, ABSENT)


def test_neither_workers_nor_attempts_change_what_is_computed() -> None:
    digests = {plan(runtime={"workers": workers}).plan_digest for workers in (0, 1, 4)}
    assert digests | {plan(attempt=2).plan_digest} == {plan().plan_digest}
    assert plan(runtime={"workers": 4}).spec.runtime.workers == 4


def test_shards_change_the_first_step_and_not_what_is_computed() -> None:
    alone, spread = (plan(runtime={"kind": "native", "shards": shards}) for shards in (1, 3))

    assert spread.plan_digest == alone.plan_digest
    assert [step.shards for step in alone.steps] == [0, 0, 0]
    assert [step.shards for step in spread.steps] == [3, 0, 0]


def test_the_digest_of_a_plan_is_known() -> None:
    """Whoever changes it changes what every site has consented to."""
    assert plan().plan_digest == (
        "sha256:f45303f5aa28485bce229a4735a89c93d0aad69a6affaf4bee6d060199293f2a"
    )
