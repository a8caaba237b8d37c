"""Jobs whose model is an ensemble of trees: what goes with them, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.workflows.jobs import CAPABILITIES, job
from workflows.capabilities import Capabilities, Parameter
from workflows.job import Inconsistent, JobSpec
from workflows.programs import BUILTIN
from workflows.rules import check_job
from workflows.rules.sizes import most_model_bytes

TREES = "sha256:" + "c1" * 32
OTHERS = "sha256:" + "c2" * 32
LENGTH = 200_000
RUNTIMES = {
    **CAPABILITIES.runtimes,
    "native": msgspec.structs.replace(
        CAPABILITIES.runtimes["native"], strategies=("*",), codecs=("none", "int8")
    ),
}
PLATFORM: Capabilities = msgspec.structs.replace(
    CAPABILITIES,
    runtimes=RUNTIMES,
    programs={**CAPABILITIES.programs, **BUILTIN},
    models={
        TREES: (Parameter(name="trees", shape=(LENGTH,), dtype="uint8"),),
        OTHERS: (Parameter(name="w", shape=(3,), dtype="float32"),),
    },
)
TURNS = {"size": 1, "selection": {"kind": "round-robin"}}


def trees(**fields: Any) -> JobSpec:
    program = {"kind": "builtin", "name": "digits-xgb"}
    fields = {"program": program, "strategy": {"kind": "xgb-bagging"}, **fields}
    return job(runtime={"kind": "native"}, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"local": {"epochs": 5}},
        {"strategy": {"kind": "xgb-cyclic"}, "cohort": TURNS},
        {"cohort": {"size": 3, "selection": {"kind": "poisson"}}},
        {"cohort": {"size": 2, "selection": {"kind": "power-of-choice", "candidates": 4}}},
        {"init": {"kind": "model", "digest": TREES}},
    ],
    ids=["a bag", "more local rounds", "turns", "Poisson", "the worst", "from an earlier one"],
)
def test_what_fits_is_taken(fields: dict[str, Any]) -> None:
    assert check_job(trees(**fields), PLATFORM)


MLP = {"program": {"kind": "builtin", "name": "digits-mlp"}}
DP_SGD = {"kind": "dp-sgd", "epsilon": 8, "delta": 1e-6}
WEIGHTED = {"size": 3, "selection": {"kind": "weighted"}}
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str, str]] = {
    "trees of a network": (
        MLP,
        ("strategy.kind", "program"),
        "xgb-bagging appends trees, and the program is in torch",
        "use a program in xgboost, as digits-xgb",
    ),
    "a mean of trees": (
        {"strategy": {"kind": "fedavg"}},
        ("strategy.kind", "program"),
        "an ensemble of trees, of which fedavg can make no mean",
        "use xgb-bagging or xgb-cyclic",
    ),
    "a median of trees": (
        {"strategy": {"kind": "coordinate-median"}},
        ("strategy.kind", "program"),
        "coordinate-median can make no mean",
        "use xgb-bagging or xgb-cyclic",
    ),
    "noise": (
        {"privacy": [DP_SGD]},
        ("privacy[0].kind", "strategy.kind"),
        "dp-sgd is made for sums",
        "leave privacy out",
    ),
    "a codec": (
        {"codec": {"kind": "int8"}},
        ("codec.kind", "strategy.kind"),
        "int8 is made for real numbers",
        "use the codec none",
    ),
    "an optimizer": (
        {"local": {"optimizer": {"kind": "adam"}}},
        ("local.optimizer", "program"),
        "by the rate \\(eta\\) that build\\(\\) sets",
        "leave local.optimizer out",
    ),
    "batches": (
        {"local": {"batch_size": 8}},
        ("local.batch_size", "program"),
        "on all examples at once",
        "leave local.batch_size out",
    ),
    "draws with replacement": (
        {"cohort": WEIGHTED},
        ("cohort.selection.kind", "strategy.kind"),
        "no mean in which",
        "use the selection uniform",
    ),
    "turns of many": (
        {"strategy": {"kind": "xgb-cyclic"}},
        ("cohort", "strategy.kind"),
        "trains at one site a round",
        "use cohort {size: 1, selection: {kind: round-robin}}",
    ),
    "turns by chance": (
        {"strategy": {"kind": "xgb-cyclic"}, "cohort": {"size": 1}},
        ("cohort", "strategy.kind"),
        "trains at one site a round",
        "use cohort {size: 1, selection: {kind: round-robin}}",
    ),
    "too little memory": (
        {"limits": {"memory_mb": 128}},
        ("limits.memory_mb", "program"),
        "workers for xgboost need 256 MiB before they hold anything",
        "raise limits.memory_mb to 256 or more",
    ),
    "more trees than a model may have": (
        {"rounds": 200},
        ("limits.output_mb", "program"),
        "after 200 rounds the trees may take 89600[0-9]{3} bytes, more than 64 MiB",
        "raise limits.output_mb to 86, or ask for fewer rounds or smaller trees",
    ),
    "a model that is no ensemble": (
        {"init": {"kind": "model", "digest": OTHERS}},
        ("init.digest", "program"),
        "name, shape or dtype differ",
        "start from a model of the same program",
    ),
}


@pytest.mark.parametrize(("fields", "at", "problem", "mend"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named_with_what_would(
    fields: dict[str, Any], at: tuple[str, ...], problem: str, mend: str
) -> None:
    with pytest.raises(Inconsistent, match=problem) as refused:
        check_job(trees(**fields), PLATFORM)

    assert (refused.value.fields, refused.value.mend) == (at, mend)


def test_a_model_grows_by_what_its_sites_may_add() -> None:
    spec, facts = trees(local={"epochs": 2}, cohort={"size": 4}), BUILTIN["digits-xgb"]
    (parameter,) = facts.parameters

    assert facts.growth_bytes == 10 * (512 + 128 * 31)
    assert most_model_bytes(spec, facts, 3) == parameter.shape[0] + 3 * 4 * 2 * facts.growth_bytes
