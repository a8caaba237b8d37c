"""Which jobs may step while sites are training, and what each refusal names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.workflows.jobs import CAPABILITIES, HEAVY, HOOKED, OWN_TRAIN, job
from workflows.job import Inconsistent
from workflows.rules import check_job

VIRTUAL: dict[str, Any] = {"arrivals": {"kind": "virtual"}}


def with_buffer(buffer: int, **cohort: Any) -> dict[str, Any]:
    return {"strategy": {"kind": "fedbuff", "buffer": buffer}, "cohort": VIRTUAL | cohort}


FITS: dict[str, dict[str, Any]] = {
    "a buffer of a few": with_buffer(3, size=6, minimum=3),
    "a buffer of as many as there are sites": with_buffer(10),
    "a buffer larger than the sites at work": with_buffer(5, size=2),
    "FedAsync": {"strategy": {"kind": "fedasync"}, "cohort": VIRTUAL},
    "uniform by name": with_buffer(3, selection={"kind": "uniform"}),
    "FedAsync and hooks": {
        "strategy": {"kind": "fedasync"},
        "cohort": VIRTUAL,
        "program": {"kind": "bundle", "digest": HOOKED},
    },
    "FedAsync without its proximal term": {
        "strategy": {"kind": "fedasync", "rho": 0},
        "cohort": VIRTUAL,
        "program": {"kind": "bundle", "digest": OWN_TRAIN},
    },
    "large models in little use": {
        "program": {"kind": "bundle", "digest": HEAVY},
        "data": {"sites": 100},
        **with_buffer(3, arrivals={"kind": "virtual", "max_staleness": 64}),
    },
    "updates as bytes": {
        "runtime": {"kind": "zipping"},
        "codec": {"kind": "int8"},
        **with_buffer(3),
    },
}
MISFITS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "FedBuff, and no word of when answers arrive": (
        {"strategy": {"kind": "fedbuff"}},
        ("cohort.arrivals", "strategy.kind"),
        "set cohort.arrivals, as {kind: virtual, sigma: 0.5}",
    ),
    "arrivals, and a strategy that waits": (
        {"strategy": {"kind": "fedavg"}, "cohort": VIRTUAL},
        ("cohort.arrivals", "strategy.kind"),
        "use fedasync or fedbuff",
    ),
    "arrivals, and sites that keep something": (
        {"strategy": {"kind": "scaffold"}, "cohort": VIRTUAL},
        ("cohort.arrivals", "strategy.kind"),
        "leave cohort.arrivals out",
    ),
    "a selection of a cohort": (
        with_buffer(2, size=3, selection={"kind": "over-selection"}),
        ("cohort.selection.kind", "cohort.arrivals"),
        "use uniform",
    ),
    "a buffer of more than all sites": (
        with_buffer(11),
        ("strategy.buffer", "data.sites"),
        "buffer at most 10",
    ),
    "a minimum above the buffer": (
        with_buffer(3, minimum=4),
        ("cohort.minimum", "strategy.kind"),
        "at most 3",
    ),
    "a minimum above FedAsync's one": (
        {"strategy": {"kind": "fedasync"}, "cohort": VIRTUAL | {"minimum": 2}},
        ("cohort.minimum", "strategy.kind"),
        "at most 1",
    ),
    "FedAsync and a loop of the program's own": (
        {
            "strategy": {"kind": "fedasync"},
            "cohort": VIRTUAL,
            "program": {"kind": "bundle", "digest": OWN_TRAIN},
        },
        ("strategy.kind", "program"),
        "hooks",
    ),
    "more earlier models than a checkpoint takes": (
        {"program": {"kind": "bundle", "digest": HEAVY}, "data": {"sites": 100}, **with_buffer(3)},
        ("cohort.arrivals.max_staleness", "cohort.size"),
        "lower one of them to 64",
    ),
    "more at work than there are sites": (
        with_buffer(3, size=11),
        ("cohort.size", "data.sites"),
        "at most 10",
    ),
}


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_a_job_that_fits_is_admitted(fields: dict[str, Any]) -> None:
    spec = job(**fields)

    assert check_job(spec, CAPABILITIES) is spec


@pytest.mark.parametrize(("fields", "named", "mend"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_names_its_fields_and_what_would_fit(
    fields: dict[str, Any], named: tuple[str, ...], mend: str
) -> None:
    with pytest.raises(Inconsistent) as caught:
        check_job(job(**fields), CAPABILITIES)

    assert caught.value.fields == named
    assert mend in caught.value.mend


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "real"},
        {"kind": "virtual", "sigma": -1},
        {"kind": "virtual", "sigma": float("inf")},
        {"kind": "virtual", "max_staleness": -1},
        {"kind": "virtual", "mu": 0},
    ],
)
def test_what_are_no_arrivals_is_refused(arrivals: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        job(strategy={"kind": "fedbuff"}, cohort={"arrivals": arrivals})


def test_a_round_folds_what_the_buffer_holds() -> None:
    spec = job(**with_buffer(3, size=6))

    assert (spec.answers_a_round, spec.most_updates, spec.cohort_size) == (3, 3, 6)
    assert (spec.most_versions, job().most_versions) == (6, 0)
    fresh = with_buffer(3, arrivals={"kind": "virtual", "max_staleness": 2})
    assert job(**fresh).most_versions == 2
    assert (job().answers_a_round, job(cohort={"size": 4}).answers_a_round) == (10, 4)
