"""What a job may ask for, and what each refusal names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from strategies import FedAvg
from tests.workflows.jobs import (
    ABSENT,
    BUNDLE,
    CAPABILITIES,
    HEAVY,
    HOOKED,
    JOB,
    MODEL,
    OTHER_MODEL,
    OWN_STEPS,
    OWN_TRAIN,
    TABLE,
    job,
)
from workflows.canonical import canonical_bytes
from workflows.capabilities import Capabilities, EngineAbilities, Parameter
from workflows.data.partitioners import Iid
from workflows.job import Inconsistent, JobError, JobSpec, Unsupported
from workflows.rules import check_job

DP_SGD = {"kind": "dp-sgd", "epsilon": 8, "delta": 1e-6}
MASKS = {"kind": "secure-aggregation"}
ANY_SHAPE = {"kind": "builtin", "name": "any-shape"}
IMAGE = {"kind": "image", "image": f"registry.example/digits@{ABSENT}"}


def on(dataset: str, **data: Any) -> dict[str, Any]:
    return {"program": ANY_SHAPE, "data": {"dataset": dataset, **data}}


FITS = {
    "every field at its default": {},
    "a bundle that was uploaded": {"program": {"kind": "bundle", "digest": BUNDLE}},
    "a table that was uploaded, and its label": {"data": {"dataset": TABLE, "label": "digit"}},
    "another runtime": {"runtime": {"kind": "native", "workers": 4}, "codec": {"kind": "none"}},
    "a program of any shape": on("breast-cancer"),
    "two classes and auroc": on("breast-cancer") | {"evaluate": {"metrics": ["auroc", "accuracy"]}},
    "real targets and mse": on("diabetes") | {"evaluate": {"metrics": ["mse"]}},
    "a metric of the program": {"evaluate": {"metrics": ["top2"], "select": "best"}},
    "no metric and nothing held out": {"evaluate": {"metrics": []}, "data": {"holdout": 0}},
    "a central part": {"evaluate": {"where": "central"}, "data": {"central": 0.2, "holdout": 0}},
    "fewer sites a round": {"cohort": {"size": 5, "minimum": 5}},
    "updates as bytes": {"runtime": {"kind": "zipping"}, "codec": {"kind": "int8"}},
    "a Poisson draw": {"cohort": {"size": 5, "selection": {"kind": "poisson"}}},
    "the worst of some": {
        "cohort": {"size": 5, "selection": {"kind": "power-of-choice", "candidates": 8}}
    },
    "the first of more than are needed": {
        "cohort": {"size": 5, "selection": {"kind": "over-selection", "factor": 3}}
    },
    "turns of sites that come and go": {
        "cohort": {"size": 5, "selection": {"kind": "round-robin", "availability": 0.5}}
    },
    "FedProx and the platform's trainer": {"strategy": {"kind": "fedprox", "mu": 0.1}},
    "FedProx and hooks": {
        "strategy": {"kind": "fedprox"},
        "program": {"kind": "bundle", "digest": HOOKED},
    },
    "control variates and hooks": {
        "strategy": {"kind": "scaffold"},
        "program": {"kind": "bundle", "digest": HOOKED},
    },
    "FedNova and momentum": {
        "strategy": {"kind": "fednova"},
        "local": {"optimizer": {"kind": "sgd", "momentum": 0.9}},
    },
    "FedDyn and Adam": {
        "strategy": {"kind": "feddyn"},
        "local": {"optimizer": {"kind": "adam"}},
    },
    "q-FedAvg and scikit-learn": {
        "strategy": {"kind": "qfedavg"},
        "program": {"kind": "builtin", "name": "linear"},
    },
    "FedAvg and a train without hooks": {"program": {"kind": "bundle", "digest": OWN_TRAIN}},
    "FLTrust and a central part": {"strategy": {"kind": "fltrust"}, "data": {"central": 0.1}},
    "FLTrust, measured nowhere": {
        "strategy": {"kind": "fltrust"},
        "data": {"central": 0.1},
        "evaluate": {"metrics": [], "where": "central"},
    },
    "a median of three": {"strategy": {"kind": "coordinate-median"}, "cohort": {"size": 3}},
    "a model that fits": {"init": {"kind": "model", "digest": MODEL}},
    "a model for a program with another configuration": {
        "init": {"kind": "model", "digest": OTHER_MODEL},
        "program": {"kind": "builtin", "name": "digits-cnn", "config": {"width": 8}},
    },
    "no ONNX": {"output": {"onnx": [], "publish": False}},
    "a site for every example": {
        "data": {"sites": 1797, "holdout": 0},
        "evaluate": {"metrics": []},
    },
    "reservations as they are by default": {
        "resources": {"server": {"cpu": 2, "memory_mb": 4096}, "site": {"cpu": 1, "gpu": 0}}
    },
    "a linear model": {"program": {"kind": "builtin", "name": "linear"}},
}


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_what_fits_is_returned_as_it_is(fields: dict[str, Any]) -> None:
    spec = job(**fields)
    assert check_job(spec, CAPABILITIES) is spec


def test_an_engine_that_reserves_is_asked_for_what_a_job_needs() -> None:
    able = EngineAbilities(reserves=True, gpus=True)
    asked = {"server": {"cpu": 8}, "site": {"memory_mb": 64, "gpu": 1}, "priority": "high"}
    spec = job(resources=asked)

    assert check_job(spec, msgspec.structs.replace(CAPABILITIES, engine=able)) is spec


REFUSED: dict[str, tuple[dict[str, Any], type[JobError], tuple[str, ...], str]] = {
    "a runtime that is not there": (
        {"runtime": {"kind": "tff"}},
        Unsupported,
        ("runtime.kind",),
        "flower, native, zipping, sparse or sites",
    ),
    "real sites on a runtime that only simulates": (
        {"runtime": {"mode": "sites"}},
        Unsupported,
        ("runtime.mode",),
        "use simulation",
    ),
    "shards of a runtime that has none": (
        {"runtime": {"shards": 2}},
        Unsupported,
        ("runtime.shards", "runtime.kind"),
        "use native",
    ),
    "shards of real sites": (
        {"runtime": {"kind": "sites", "mode": "sites", "shards": 2}},
        Inconsistent,
        ("data.kind", "runtime.mode"),
        "simulation",
    ),
    "data at sites": (
        {"data": {"kind": "at-sites", "dataset": "chest-xray"}},
        Unsupported,
        ("data.kind",),
        "use partitioned",
    ),
    "simulated data at real sites": (
        {"runtime": {"kind": "sites", "mode": "sites"}},
        Inconsistent,
        ("data.kind", "runtime.mode"),
        "simulation",
    ),
    "a codec that the runtime does not speak": (
        {"codec": {"kind": "int8"}},
        Unsupported,
        ("codec.kind",),
        "use none",
    ),
    "a mechanism that nothing enforces": (
        {"privacy": [MASKS]},
        Unsupported,
        ("privacy[0].kind", "runtime.kind"),
        "leave it out",
    ),
    "a claim of protection": (
        {"protect": {"unit": "patient"}},
        Unsupported,
        ("protect",),
        "leave it out",
    ),
    "an image": ({"program": IMAGE}, Unsupported, ("program.kind",), "use builtin or bundle"),
    "a builtin program that is not there": (
        {"program": {"name": "digits-rnn"}},
        Unsupported,
        ("program.name",),
        "any-shape, digits-cnn or linear",
    ),
    "a bundle that was not uploaded": (
        {"program": {"kind": "bundle", "digest": ABSENT}},
        Unsupported,
        ("program.digest",),
        "upload it first",
    ),
    "FedProx and a train without hooks": (
        {"strategy": {"kind": "fedprox"}, "program": {"kind": "bundle", "digest": OWN_TRAIN}},
        Inconsistent,
        ("strategy.kind", "program"),
        "hooks = true",
    ),
    "FedProx and scikit-learn": (
        {"strategy": {"kind": "fedprox"}, "program": {"kind": "builtin", "name": "linear"}},
        Inconsistent,
        ("strategy.kind", "program"),
        "use fedavg",
    ),
    "SCAFFOLD and scikit-learn": (
        {"strategy": {"kind": "scaffold"}, "program": {"kind": "builtin", "name": "linear"}},
        Inconsistent,
        ("strategy.kind", "program"),
        "use fedavg",
    ),
    "FedDyn and scikit-learn": (
        {"strategy": {"kind": "feddyn"}, "program": {"kind": "builtin", "name": "linear"}},
        Inconsistent,
        ("strategy.kind", "program"),
        "use fedavg",
    ),
    "FedNova and a train that counts no steps": (
        {"strategy": {"kind": "fednova"}, "program": {"kind": "bundle", "digest": OWN_TRAIN}},
        Inconsistent,
        ("strategy.kind", "program"),
        "hooks = true",
    ),
    "SCAFFOLD and more than a checkpoint should hold": (
        {
            "strategy": {"kind": "scaffold"},
            "program": {"kind": "bundle", "digest": HEAVY},
            "data": {"sites": 65},
        },
        Inconsistent,
        ("strategy.kind", "data.sites"),
        "at most 64 sites",
    ),
    "client momentum and more than a checkpoint should hold": (
        {
            "strategy": {"kind": "coordinate-median", "client_momentum": 0.9},
            "program": {"kind": "bundle", "digest": HEAVY},
            "data": {"sites": 65},
        },
        Inconsistent,
        ("strategy.kind", "data.sites"),
        "at most 64 sites",
    ),
    "client momentum and a codec": (
        {
            "strategy": {"kind": "coordinate-median", "client_momentum": 0.9},
            "runtime": {"kind": "zipping"},
            "codec": {"kind": "int8"},
        },
        Inconsistent,
        ("codec.kind", "strategy.kind"),
        "use the codec none",
    ),
    "SCAFFOLD and answers of three models": (
        {
            "strategy": {"kind": "scaffold"},
            "program": {"kind": "bundle", "digest": HEAVY},
            "limits": {"output_mb": 47},
        },
        Inconsistent,
        ("limits.output_mb", "program"),
        "raise limits.output_mb to 48",
    ),
    "SCAFFOLD and momentum": (
        {
            "strategy": {"kind": "scaffold"},
            "local": {"optimizer": {"kind": "sgd", "momentum": 0.9}},
        },
        Inconsistent,
        ("local.optimizer", "strategy.kind"),
        "kind: sgd",
    ),
    "FedNova and Adam": (
        {"strategy": {"kind": "fednova"}, "local": {"optimizer": {"kind": "adam"}}},
        Inconsistent,
        ("local.optimizer", "strategy.kind"),
        "kind: sgd",
    ),
    "FedNova and an optimizer of the program's own": (
        {"strategy": {"kind": "fednova"}, "program": {"kind": "bundle", "digest": OWN_STEPS}},
        Inconsistent,
        ("strategy.kind", "program"),
        "leave optimizer() out",
    ),
    "Adam and scikit-learn": (
        {
            "program": {"kind": "builtin", "name": "linear"},
            "local": {"optimizer": {"kind": "adam"}},
        },
        Inconsistent,
        ("local.optimizer", "program"),
        "kind: sgd",
    ),
    "momentum and scikit-learn": (
        {
            "program": {"kind": "builtin", "name": "linear"},
            "local": {"optimizer": {"kind": "sgd", "momentum": 0.9}},
        },
        Inconsistent,
        ("local.optimizer", "program"),
        "kind: sgd",
    ),
    "batches and scikit-learn": (
        {"program": {"kind": "builtin", "name": "linear"}, "local": {"batch_size": 8}},
        Inconsistent,
        ("local.batch_size", "program"),
        "leave local.batch_size out",
    ),
    "a data set that is not there": (
        {"data": {"dataset": "mnist"}},
        Unsupported,
        ("data.dataset",),
        "breast-cancer, diabetes or digits",
    ),
    "a table that was not uploaded": (
        {"data": {"dataset": ABSENT}},
        Unsupported,
        ("data.dataset",),
        "upload it first",
    ),
    "a label column of a bundled set": (
        {"data": {"label": "digit"}},
        Inconsistent,
        ("data.label", "data.dataset"),
        "leave data.label out",
    ),
    "a program of another shape": (
        {"data": {"dataset": "breast-cancer"}},
        Inconsistent,
        ("program", "data.dataset"),
        "that fit",
    ),
    "more sites than samples": (
        {"data": {"sites": 1798}},
        Inconsistent,
        ("data.sites", "data.dataset"),
        "at most 1797",
    ),
    "more sites than samples beside the central part": (
        {"data": {"sites": 1000, "central": 0.5}},
        Inconsistent,
        ("data.sites", "data.dataset"),
        "at most 899",
    ),
    "more shards than samples": (
        {"data": {"sites": 900, "partitioner": {"kind": "label-shards"}}},
        Inconsistent,
        ("data.sites", "data.dataset"),
        "at most 898",
    ),
    "more least examples than samples": (
        {"data": {"sites": 100, "partitioner": {"kind": "dirichlet", "minimum": 20}}},
        Inconsistent,
        ("data.sites", "data.dataset"),
        "at most 89",
    ),
    "FLTrust and no data of the server's own": (
        {"strategy": {"kind": "fltrust"}},
        Inconsistent,
        ("data.central", "strategy.kind"),
        "set data.central above 0",
    ),
    "FLTrust and a central part of nothing": (
        {"strategy": {"kind": "fltrust"}, "data": {"central": 0.0002}},
        Inconsistent,
        ("data.central", "strategy.kind"),
        "set data.central above 0",
    ),
    "FLTrust and a measure on what the server trained on": (
        {
            "strategy": {"kind": "fltrust"},
            "data": {"central": 0.1},
            "evaluate": {"where": "central"},
        },
        Inconsistent,
        ("evaluate.where", "strategy.kind"),
        "set evaluate.where to sites",
    ),
    "FLTrust and a weight below the server's own examples": (
        {
            "strategy": {"kind": "fltrust"},
            "data": {"central": 0.9},
            "ring": {"max_weight": 1000},
        },
        Inconsistent,
        ("ring.max_weight", "data.central"),
        "to 1617",
    ),
    "a weight below a site's examples": (
        {"ring": {"max_weight": 1000}},
        Inconsistent,
        ("ring.max_weight", "data.dataset"),
        "to 1797",
    ),
    "a strategy that the runtime does not fold": (
        {"runtime": {"kind": "native"}, "strategy": {"kind": "fedadam"}},
        Unsupported,
        ("strategy.kind", "runtime.kind"),
        "use fedavg",
    ),
    "a cohort larger than all sites": (
        {"cohort": {"size": 11}},
        Inconsistent,
        ("cohort.size", "data.sites"),
        "at most 10",
    ),
    "more sites called than there are": (
        {"cohort": {"selection": {"kind": "over-selection"}}},
        Inconsistent,
        ("cohort.size", "cohort.selection.kind"),
        "set cohort.size",
    ),
    "fewer candidates than the cohort": (
        {"cohort": {"size": 5, "selection": {"kind": "power-of-choice", "candidates": 4}}},
        Inconsistent,
        ("cohort.selection.candidates", "cohort.size"),
        "set candidates to 5..10",
    ),
    "a minimum larger than the cohort": (
        {"cohort": {"size": 3, "minimum": 4}},
        Inconsistent,
        ("cohort.minimum", "cohort.size"),
        "at most 3",
    ),
    "a minimum larger than all sites": (
        {"cohort": {"minimum": 11}},
        Inconsistent,
        ("cohort.minimum", "cohort.size"),
        "at most 10",
    ),
    "a median of two": (
        {"strategy": {"kind": "coordinate-median"}, "data": {"sites": 2}},
        Inconsistent,
        ("strategy.kind", "cohort.size"),
        "at least 3",
    ),
    "sums that could wrap": (
        {"ring": {"fraction_bits": 40}},
        Inconsistent,
        ("ring.fraction_bits", "ring.magnitude", "ring.max_weight", "cohort.size"),
        "lower fraction_bits by 7",
    ),
    "a model that is not there": (
        {"init": {"kind": "model", "digest": ABSENT}},
        Unsupported,
        ("init.digest",),
        "a model you may see",
    ),
    "a model of another program": (
        {"init": {"kind": "model", "digest": OTHER_MODEL}},
        Inconsistent,
        ("init.digest", "program"),
        "same program",
    ),
    "the best round without a metric": (
        {"evaluate": {"metrics": [], "select": "best"}},
        Inconsistent,
        ("evaluate.select", "evaluate.metrics"),
        "use last",
    ),
    "central evaluation without a central part": (
        {"evaluate": {"where": "central"}},
        Inconsistent,
        ("data.central", "evaluate.where"),
        "set data.central above 0",
    ),
    "evaluation at sites that hold nothing out": (
        {"data": {"holdout": 0}},
        Inconsistent,
        ("data.holdout", "evaluate.where"),
        "set data.holdout above 0",
    ),
    "sites too small to hold anything out": (
        {"data": {"sites": 1797}},
        Inconsistent,
        ("evaluate.minimum_count", "data.holdout"),
        "raise data.holdout",
    ),
    "more examples behind a metric than a site holds out": (
        {"evaluate": {"minimum_count": 37}},
        Inconsistent,
        ("evaluate.minimum_count", "data.holdout"),
        "minimum_count to 36",
    ),
    "more examples behind a metric than the largest site can hold out": (
        {
            "data": {"partitioner": {"kind": "dirichlet", "minimum": 100}},
            "evaluate": {"minimum_count": 180},
        },
        Inconsistent,
        ("evaluate.minimum_count", "data.holdout"),
        "minimum_count to 179",
    ),
    "more examples behind a metric than the central part has": (
        {"evaluate": {"where": "central", "minimum_count": 181}, "data": {"central": 0.1}},
        Inconsistent,
        ("evaluate.minimum_count", "data.central"),
        "minimum_count to 180",
    ),
    "a metric that nobody knows": (
        {"evaluate": {"metrics": ["accuracy", "f1"]}},
        Unsupported,
        ("evaluate.metrics[1]", "program"),
        "accuracy, auroc, mse or top2",
    ),
    "a metric twice": (
        {"evaluate": {"metrics": ["accuracy", "accuracy"]}},
        Inconsistent,
        ("evaluate.metrics",),
        "once",
    ),
    "accuracy on real targets": (
        on("diabetes"),
        Inconsistent,
        ("evaluate.metrics[0]", "data.dataset"),
        "use mse",
    ),
    "mse on classes": (
        {"evaluate": {"metrics": ["mse"]}},
        Inconsistent,
        ("evaluate.metrics[0]", "data.dataset"),
        "use accuracy",
    ),
    "auroc on ten classes": (
        {"evaluate": {"metrics": ["auroc"]}},
        Inconsistent,
        ("evaluate.metrics[0]", "data.dataset"),
        "use accuracy",
    ),
    "int8": ({"output": {"onnx": ["fp32", "int8"]}}, Unsupported, ("output.onnx[1]",), "use fp32"),
    "fp32 twice": (
        {"output": {"onnx": ["fp32", "fp32"]}},
        Inconsistent,
        ("output.onnx[1]",),
        "leave one out",
    ),
    "a GPU": (
        {"resources": {"site": {"gpu": 1}}},
        Unsupported,
        ("resources.site.gpu",),
        "leave it out",
    ),
    "processors that nobody reserves": (
        {"resources": {"server": {"cpu": 8}}},
        Unsupported,
        ("resources.server.cpu",),
        "leave it out",
    ),
    "memory that nobody reserves": (
        {"resources": {"site": {"memory_mb": 64}}},
        Unsupported,
        ("resources.site.memory_mb",),
        "limits",
    ),
    "an integer that JSON cannot carry": (
        {"program": {"config": {"sizes": [1, 2**53]}}},
        Inconsistent,
        ("program.config.sizes[1]",),
        "smaller number or text",
    ),
    "a bound that JSON cannot carry": (
        {"limits": {"memory_mb": 2**60}},
        Inconsistent,
        ("limits.memory_mb",),
        "smaller number",
    ),
    "a codec under a strategy whose sites keep something": (
        {
            "strategy": {"kind": "scaffold"},
            "codec": {"kind": "int8"},
            "runtime": {"kind": "zipping"},
        },
        Inconsistent,
        ("codec.kind", "strategy.kind"),
        "use the codec none",
    ),
    "a codec that makes up for what a fold does not add up": (
        {"strategy": {"kind": "krum"}, "codec": {"kind": "top-k"}, "runtime": {"kind": "sparse"}},
        Inconsistent,
        ("codec.kind", "strategy.kind"),
        "a strategy that folds a sum",
    ),
    "more than can be kept of what does not travel": (
        {
            "program": {"kind": "bundle", "digest": HEAVY},
            "codec": {"kind": "top-k"},
            "runtime": {"kind": "sparse"},
            "data": {"sites": 65},
        },
        Inconsistent,
        ("codec.kind", "data.sites"),
        "at most 64 sites, or use another codec",
    ),
    "less memory than the framework takes": (
        {"limits": {"memory_mb": 256}},
        Inconsistent,
        ("limits.memory_mb", "program"),
        "raise limits.memory_mb to 512",
    ),
    "a limit without an end": (
        {"limits": {"train_s": float("inf")}},
        Inconsistent,
        ("limits.train_s",),
        "finite",
    ),
}


@pytest.mark.parametrize(("fields", "error", "paths", "mend"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name_with_a_mend(
    fields: dict[str, Any], error: type[JobError], paths: tuple[str, ...], mend: str
) -> None:
    with pytest.raises(error) as refusal:
        check_job(job(**fields), CAPABILITIES)

    assert type(refusal.value) is error
    assert refusal.value.fields == paths
    assert mend in refusal.value.mend
    assert str(refusal.value) == (
        f"{' and '.join(paths)}: {refusal.value.problem}; {refusal.value.mend}"
    )


def test_every_refusal_names_fields_that_a_job_has() -> None:
    everything = msgspec.to_builtins(job(data={"kind": "at-sites", "dataset": "x"}))
    for spec in (
        job(),
        job(init={"kind": "model", "digest": MODEL}),
        job(program={"kind": "bundle", "digest": BUNDLE}),
        job(cohort={"selection": {"kind": "power-of-choice", "candidates": 8}}),
    ):
        for name, part in msgspec.to_builtins(spec).items():
            if isinstance(part, dict):
                everything[name] = {**(everything[name] or {}), **part}

    for _, _, paths, _ in REFUSED.values():
        for path in paths:
            place: Any = everything
            for name in path.split("[")[0].split("."):
                if path.startswith("program.config."):
                    break
                assert name in place, path
                place = place[name]


def test_a_mechanism_twice_is_refused() -> None:
    with pytest.raises(Inconsistent) as refusal:
        check_job(job(runtime={"kind": "native"}, privacy=[DP_SGD, DP_SGD]), CAPABILITIES)
    assert refusal.value.fields == ("privacy[1].kind",)

    spec = job(runtime={"kind": "native"}, privacy=[DP_SGD])
    assert check_job(spec, CAPABILITIES) is spec


@pytest.mark.parametrize(
    ("output_mb", "shape", "needed_mb"),
    [(8, (2**20, 2), 8), (7, (2**20 - 1, 2), 8), (8, (2**20 - 1, 3), 12)],
    ids=["just enough", "too few", "far too few"],
)
def test_a_model_must_fit_into_its_limit(
    output_mb: int, shape: tuple[int, int], needed_mb: int
) -> None:
    large = (Parameter(name="w", shape=shape, dtype="float32"),)
    facts = msgspec.structs.replace(CAPABILITIES.programs["digits-cnn"], parameters=large)
    programs = {"digits-cnn": facts}
    capabilities = msgspec.structs.replace(CAPABILITIES, programs=programs)
    spec = job(limits={"output_mb": output_mb})

    if needed_mb <= output_mb:
        assert check_job(spec, capabilities) is spec
    else:
        with pytest.raises(Inconsistent, match=rf"raise limits\.output_mb to {needed_mb}"):
            check_job(spec, capabilities)


def test_the_mend_of_the_ring_mends_it() -> None:
    with pytest.raises(Inconsistent, match="lower fraction_bits by 7"):
        check_job(job(ring={"fraction_bits": 40}), CAPABILITIES)
    check_job(job(ring={"fraction_bits": 33}), CAPABILITIES)


def test_the_ring_is_proved_for_the_largest_cohort_of_the_kind() -> None:
    wide = {"fraction_bits": 34, "magnitude": 64, "max_weight": 1 << 20}
    few = {"size": 5}

    check_job(job(ring=wide, cohort=few), CAPABILITIES)
    with pytest.raises(Inconsistent, match="a sum of 10 updates"):
        check_job(job(ring=wide, cohort=few | {"selection": {"kind": "poisson"}}), CAPABILITIES)


def test_a_platform_without_anything_refuses_in_words() -> None:
    empty = Capabilities(runtimes={}, strategies=(), programs={}, datasets={})
    with pytest.raises(Unsupported, match="there is no runtime flower"):
        check_job(JOB, empty)


def test_a_job_of_three_fields_is_the_job_of_all_defaults() -> None:
    assert job() == JOB
    assert JOB.strategy == FedAvg()
    assert JOB.data == msgspec.structs.replace(JOB.data, sites=10, partitioner=Iid())  # type: ignore[type-var]


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_a_job_survives_its_canonical_form(fields: dict[str, Any]) -> None:
    spec = job(**fields)
    again = msgspec.json.decode(canonical_bytes(spec), type=JobSpec)

    assert again == spec
    assert canonical_bytes(again) == canonical_bytes(spec)


def test_every_field_is_written_out() -> None:
    """A stored job means the same when a default changes later."""
    written = msgspec.to_builtins(JOB)
    assert set(written) == {
        "name", "program", "data", "collaboration", "runtime", "init", "local", "strategy",
        "privacy", "protect", "cohort", "codec", "ring", "rounds", "limits", "resources",
        "evaluate", "output",
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"rouds": 3},
        {"cohort": {"sise": 3}},
        {"cohort": {"selection": {"kind": "alphabetical"}}},
        {"codec": {"kind": "zip"}},
        {"codec": {"kind": "random-mask", "fraction": 0}},
        {"cohort": {"selection": {"kind": "round-robin", "availability": 0}}},
        {"cohort": {"selection": {"kind": "over-selection", "factor": 0.9}}},
        {"rounds": "ten"},
        {"rounds": 0},
        {"rounds": 2.5},
        {"data": {"holdout": 1}},
        {"data": {"sites": 0}},
        {"strategy": {"kind": "fedsgd"}},
        {"strategy": {"kind": "fedavg", "eta": "1"}},
        {"program": {"kind": "bundle", "digest": "sha256:12"}},
        {"program": {"kind": "image", "image": "registry.example/digits:latest"}},
        {"init": {"seed": -1}},
        {"ring": {"magnitude": 1e300}},
        {"name": ""},
        {"output": {"onnx": ["fp16"]}},
    ],
    ids=str,
)
def test_what_is_no_job_does_not_decode(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        job(**fields)
