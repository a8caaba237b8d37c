"""Admission of jobs over more sites than anybody lists."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.workflows.jobs import CAPABILITIES, TABLE, job
from workflows.capabilities import DatasetFacts, RuntimeAbilities
from workflows.job import Inconsistent, JobError, Unsupported

LARGE = msgspec.structs.replace(
    CAPABILITIES,
    runtimes={
        **CAPABILITIES.runtimes,
        "native": RuntimeAbilities(summary="N", modes=("simulation",), most_sites=10_000_000),
    },
    datasets={
        **CAPABILITIES.datasets,
        TABLE: DatasetFacts(num_examples=1_000_000, features=(64,), num_classes=10),
    },
)
VIRTUAL: dict[str, Any] = {
    "runtime": {"kind": "native"},
    "data": {
        "sites": 1_000_000,
        "partitioner": {"kind": "virtual", "examples": 20, "alpha": 0.5},
        "central": 0.1,
    },
    "cohort": {"size": 1000},
    "evaluate": {"where": "central"},
}


def asked(**fields: Any) -> dict[str, Any]:
    changed = {
        name: {**VIRTUAL.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return VIRTUAL | changed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": {"sites": 10_000_000}},
        {"data": {"sites": 50_000}, "runtime": {"kind": "flower"}},
        {"evaluate": {"metrics": []}},
        {"cohort": {"size": 10, "selection": {"kind": "poisson"}}, "ring": {"max_weight": 20}},
    ],
    ids=["a million", "ten million", "few through Flower", "not measured", "by coins"],
)
def test_a_virtual_population_is_let_in(fields: dict[str, Any]) -> None:
    spec = job(**asked(**fields))

    assert spec.check(LARGE) is spec


REFUSED: dict[str, tuple[dict[str, Any], type[JobError], tuple[str, ...], str]] = {
    "as many sites that are not virtual": (
        {"data": {"dataset": TABLE, "sites": 100_001, "partitioner": {"kind": "iid"}}},
        Inconsistent,
        ("data.sites", "data.partitioner.kind"),
        "use virtual",
    ),
    "a runtime that lists its sites": (
        {"runtime": {"kind": "flower"}},
        Unsupported,
        ("data.sites", "runtime.kind"),
        "use native",
    ),
    "a draw that looks at each site": (
        {"cohort": {"selection": {"kind": "weighted"}}},
        Inconsistent,
        ("cohort.selection.kind", "data.sites"),
        "use uniform or poisson",
    ),
    "all of them in a round": (
        {"cohort": {"size": None}},
        Inconsistent,
        ("cohort.size", "data.sites"),
        "set cohort.size to 100000",
    ),
    "measuring at each": (
        {"evaluate": {"where": "sites"}},
        Inconsistent,
        ("evaluate.where", "data.partitioner.kind"),
        "use central",
    ),
    "more examples than a weight holds": (
        {"ring": {"max_weight": 19}},
        Inconsistent,
        ("ring.max_weight", "data.partitioner.examples"),
        "raise ring.max_weight to 20",
    ),
    "no examples to draw from": (
        {"data": {"central": 0.9999}},
        Inconsistent,
        ("data.central", "data.dataset"),
        "lower data.central",
    ),
}


@pytest.mark.parametrize(("fields", "error", "paths", "mend"), REFUSED.values(), ids=REFUSED)
def test_what_a_virtual_population_cannot_have_is_refused(
    fields: dict[str, Any], error: type[JobError], paths: tuple[str, ...], mend: str
) -> None:
    with pytest.raises(error) as refusal:
        job(**asked(**fields)).check(LARGE)

    assert type(refusal.value) is error
    assert refusal.value.fields == paths
    assert mend in refusal.value.mend
