"""Admission of jobs over more sites than anybody lists, or whose sites are trained together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.workflows.jobs import CAPABILITIES, HEAVY, OWN_STEPS, OWN_TRAIN, TABLE, job
from workflows.capabilities import DatasetFacts, RuntimeAbilities
from workflows.job import Inconsistent, JobError, Unsupported
from workflows.rules import check_job

LARGE = msgspec.structs.replace(
    CAPABILITIES,
    runtimes={
        **CAPABILITIES.runtimes,
        "native": RuntimeAbilities(
            summary="N",
            modes=("simulation",),
            most_sites=10_000_000,
            vectorizes=True,
            codecs=("none", "top-k"),
        ),
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

    assert check_job(spec, LARGE) is spec


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
        check_job(job(**asked(**fields)), LARGE)

    assert type(refusal.value) is error
    assert refusal.value.fields == paths
    assert mend in refusal.value.mend


TOGETHER = {"runtime": {"kind": "native", "vectorized": True}}


@pytest.mark.parametrize("kind", ["fedavg", "fedprox", "fednova", "fedyogi", "norm-bounding"])
def test_small_sites_may_be_trained_together(kind: str) -> None:
    spec = job(**TOGETHER, strategy={"kind": kind})

    assert check_job(spec, LARGE) is spec


NOT_TOGETHER: dict[str, tuple[dict[str, Any], type[JobError], tuple[str, ...], str]] = {
    "by a runtime that does not": (
        {"runtime": {"kind": "flower", "vectorized": True}},
        Unsupported,
        ("runtime.vectorized", "runtime.kind"),
        "use native",
    ),
    "another framework": (
        {"program": {"kind": "builtin", "name": "linear"}},
        Inconsistent,
        ("runtime.vectorized", "program"),
        "set runtime.vectorized to false",
    ),
    "a loop of the program's own": (
        {"program": {"kind": "bundle", "digest": OWN_TRAIN}},
        Inconsistent,
        ("runtime.vectorized", "program"),
        "set runtime.vectorized to false",
    ),
    "an optimiser of the program's own": (
        {"program": {"kind": "bundle", "digest": OWN_STEPS}},
        Inconsistent,
        ("runtime.vectorized", "program"),
        "set runtime.vectorized to false",
    ),
    "sites that remember": (
        {"strategy": {"kind": "scaffold"}},
        Inconsistent,
        ("runtime.vectorized", "strategy.kind"),
        "set runtime.vectorized to false",
    ),
    "a codec that remembers": (
        {"codec": {"kind": "top-k", "fraction": 0.1}},
        Inconsistent,
        ("runtime.vectorized", "codec.kind"),
        "set runtime.vectorized to false",
    ),
    "a fold of updates": (
        {"strategy": {"kind": "coordinate-median"}},
        Inconsistent,
        ("runtime.vectorized", "strategy.kind"),
        "set runtime.vectorized to false",
    ),
    "steps while sites are training": (
        {"strategy": {"kind": "fedbuff", "buffer": 3}, "cohort": {"arrivals": {"kind": "virtual"}}},
        Inconsistent,
        ("runtime.vectorized", "strategy.kind"),
        "set runtime.vectorized to false",
    ),
    "a loss before training": (
        {"strategy": {"kind": "qfedavg"}},
        Inconsistent,
        ("runtime.vectorized", "strategy.kind"),
        "set runtime.vectorized to false",
    ),
    "a sum that is too large": (
        {"program": {"kind": "bundle", "digest": HEAVY}, "limits": {"output_mb": 31}},
        Inconsistent,
        ("limits.output_mb", "runtime.vectorized"),
        "raise limits.output_mb to 32",
    ),
}


@pytest.mark.parametrize(
    ("fields", "error", "paths", "mend"), NOT_TOGETHER.values(), ids=NOT_TOGETHER
)
def test_what_cannot_be_trained_together_is_refused(
    fields: dict[str, Any], error: type[JobError], paths: tuple[str, ...], mend: str
) -> None:
    with pytest.raises(error) as refusal:
        check_job(job(**(TOGETHER | fields)), LARGE)

    assert type(refusal.value) is error
    assert refusal.value.fields == paths
    assert mend in refusal.value.mend
