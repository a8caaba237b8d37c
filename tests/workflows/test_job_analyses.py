"""What an analysis leaves out is filled in; what contradicts it is refused by its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from control_plane.capabilities import read_capabilities
from strategies import FedAvg, Ring
from strategies.tally import Tally
from tests.workflows.jobs import CAPABILITIES, TABLE, job
from workflows.analyses.terms import ring_of
from workflows.canonical import digest_value
from workflows.job import Inconsistent, JobError, JobSpec, Unsupported
from workflows.job_document import read_job
from workflows.plan import compile_plan
from workflows.rules import check_job

FACTS = msgspec.structs.replace(
    CAPABILITIES.datasets[TABLE], num_examples=1000, features=(3,), columns=("age", "bmi", "stay")
)
HERE = msgspec.structs.replace(
    CAPABILITIES,
    datasets={**CAPABILITIES.datasets, TABLE: FACTS},
    runtimes={
        **CAPABILITIES.runtimes,
        "zipping": msgspec.structs.replace(CAPABILITIES.runtimes["flower"], codecs=("fp16",)),
    },
)
AGES = {"kind": "histogram", "column": "age", "low": 0, "high": 120, "bins": 24}
QUANTILE = {"kind": "quantile", "column": "age", "levels": [0.5], "low": 0, "high": 120}
HITTERS = {"kind": "heavy-hitters", "column": "age", "threshold": 20, "length": 4}
COUNT = {"kind": "count", "column": "readmitted", "values": ["yes", "no"]}
LARGE = {**HITTERS, "length": 32, "most": 1000}
DATA = {"kind": "partitioned", "dataset": TABLE, "label": "readmitted", "sites": 5}


def analysis(query: dict[str, Any], **fields: Any) -> JobSpec:
    data = {**DATA, **fields.pop("data", {})}
    return job(program={"kind": "analysis", "query": query}, data=data, **fields)


def mean(**column: Any) -> dict[str, Any]:
    return {"kind": "mean", "columns": [{"column": "age", "low": 0, "high": 120, **column}]}


@pytest.mark.parametrize(
    ("query", "rounds"),
    [(AGES, 1), (mean(), 1), (COUNT, 1), (QUANTILE, 3), (HITTERS, 8)],
    ids=lambda value: str(value["kind"]) if isinstance(value, dict) else "",
)
def test_a_short_job_gets_what_its_query_needs(query: dict[str, Any], rounds: int) -> None:
    spec = check_job(analysis(query), HERE)

    assert (spec.rounds, spec.strategy) == (rounds, Tally())
    assert spec.ring == Ring(fraction_bits=40, magnitude=1000.0, max_weight=1)
    assert (spec.evaluate.metrics, spec.data.holdout) == ((), 0.0)  # type: ignore[union-attr]
    assert (spec.output.onnx, spec.output.publish) == ((), False)


def test_what_was_filled_in_is_accepted_again_and_is_the_same() -> None:
    spec = check_job(analysis(QUANTILE), HERE)
    again = msgspec.json.decode(msgspec.json.encode(spec), type=JobSpec)

    assert check_job(again, HERE) == spec
    assert digest_value(again) == digest_value(spec)


def test_what_a_job_of_an_analysis_may_still_say_is_kept() -> None:
    fields = {
        "runtime": {"kind": "native", "workers": 4},
        "cohort": {"minimum": 3, "deadline_s": 60.0, "on_site_failure": "fail"},
        "evaluate": {"minimum_count": 10},
        "limits": {"memory_mb": 512},
    }
    runtimes = {"native": HERE.runtimes["flower"]}

    spec = check_job(analysis(AGES, **fields), msgspec.structs.replace(HERE, runtimes=runtimes))

    assert (spec.runtime.workers, spec.cohort.minimum, spec.evaluate.minimum_count) == (4, 3, 10)
    assert spec.limits.memory_mb == 512


def test_an_analysis_is_planned_without_a_model() -> None:
    plan = compile_plan("job-1", 1, check_job(analysis(AGES), HERE), "sha256:" + "e0" * 32, {})

    assert [(step.name, step.outputs) for step in plan.steps] == [
        ("federate", ("tally.safetensors", "result.json", "transcripts.jsonl", "spent.json"))
    ]


BAD_QUERIES = {
    "nearly a column": (
        {**AGES, "column": "agee"},
        ("program.query.column",),
        "did you mean `age`",
    ),
    "no column": ({**AGES, "column": "zzz"}, ("program.query.column",), "there are `age`, `bmi`"),
    "no feature": ({**AGES, "column": 3}, ("program.query.column",), "from 0 to 2"),
    "a column of many": (
        {"kind": "mean", "columns": [*mean()["columns"], *mean(column="q")["columns"]]},
        ("program.query.columns[1].column",),
        "there is no column `q`",
    ),
    "another label's name": ({**COUNT, "column": "y"}, ("program.query.column",), "readmitted"),
    "bounds turned round": (
        {**AGES, "low": 5, "high": 5},
        ("program.query.low", "program.query.high"),
        "5 is not below 5",
    ),
    "a mean's bounds": (
        mean(low=900),
        ("program.query.columns[0].low", "program.query.columns[0].high"),
        "give the lower bound first",
    ),
    "a quantile's bounds": (
        {**QUANTILE, "high": -1},
        ("program.query.low", "program.query.high"),
        "0 is not below -1",
    ),
    "too wide": (
        {**QUANTILE, "low": -1.7e308, "high": 1.7e308},
        ("program.query.low", "program.query.high"),
        "too wide",
    ),
    "bins given twice": (
        {**AGES, "edges": [0, 1]},
        ("program.query.edges", "program.query.low", "program.query.high", "program.query.bins"),
        "leave one of the two out",
    ),
    "half a range": (
        {"kind": "histogram", "column": "age", "low": 0, "bins": 4},
        ("program.query.high",),
        "give low, high and bins, or edges",
    ),
    "edges that fall": (
        {"kind": "histogram", "column": "age", "edges": [0, 2, 1]},
        ("program.query.edges",),
        "do not rise",
    ),
    "bins that vanish": (
        {**AGES, "low": 1e16, "high": 1e16 + 4, "bins": 24},
        ("program.query.low", "program.query.high", "program.query.bins"),
        "do not rise",
    ),
    "a level of all": (
        {**QUANTILE, "levels": [0.5, 1]},
        ("program.query.levels[1]",),
        "above 0 and below 1",
    ),
    "a level of none": ({**QUANTILE, "levels": [0]}, ("program.query.levels[0]",), "0 is no level"),
    "finer than numbers": (
        {**QUANTILE, "bins": 1024, "rounds": 6},
        ("program.query.rounds", "program.query.bins"),
        "at most 4 rounds",
    ),
    "a value twice": (
        {**COUNT, "values": ["1", 1.0]},
        ("program.query.values[1]",),
        "name each value once",
    ),
    "a threshold that many pass": (
        {**HITTERS, "threshold": 10},
        ("program.query.threshold", "program.query.most"),
        "raise threshold to 16, or most to 100",
    ),
    "a table too large": (
        {**HITTERS, "length": 64, "most": 4096},
        ("program.query.length", "program.query.most"),
        "lower most to 512",
    ),
}


@pytest.mark.parametrize("case", BAD_QUERIES, ids=str)
def test_a_query_that_cannot_be_asked_is_refused_by_its_fields(case: str) -> None:
    query, fields, words = BAD_QUERIES[case]

    with pytest.raises(Inconsistent) as refused:
        check_job(analysis(query), HERE)

    assert refused.value.fields == fields
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({**AGES, "bins": 5000}, "bins"),
        ({**AGES, "bins": 1}, "bins"),
        ({**QUANTILE, "levels": []}, "levels"),
        ({"kind": "mean", "columns": []}, "columns"),
        ({**HITTERS, "threshold": 0}, "threshold"),
        ({**AGES, "column": -1}, "column"),
        ({"kind": "median", "column": "age"}, "median"),
        ({**AGES, "colour": "red"}, "colour"),
    ],
    ids=["many bins", "one bin", "no level", "no column", "threshold", "negative", "kind", "field"],
)
def test_what_is_no_query_is_no_job(query: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        analysis(query)


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("rounds", 4, "leave rounds out (3)"),
        ("strategy", {"kind": "fedadam"}, 'leave strategy out ({"kind":"tally"})'),
        ("ring", {"fraction_bits": 20}, "leave ring out"),
        ("local", {"epochs": 2}, "leave local out"),
        ("init", {"kind": "seed", "seed": 3}, "leave init out"),
        ("codec", {"kind": "fp16"}, "leave codec out"),
        ("cohort", {"size": 3}, "leave cohort.size out (null)"),
        (
            "cohort",
            {"selection": {"kind": "round-robin"}},
            'leave cohort.selection out ({"kind":"uniform"})',
        ),
        ("evaluate", {"metrics": ["auroc"]}, "leave evaluate.metrics out ([])"),
        ("evaluate", {"select": "best"}, "leave evaluate.select out"),
        ("evaluate", {"every": 2}, "leave evaluate.every out"),
        ("evaluate", {"where": "central"}, "leave evaluate.where out"),
        ("output", {"onnx": ["int8"]}, "leave output.onnx out ([])"),
        ("data", {"holdout": 0.5}, "leave data.holdout out"),
        ("data", {"central": 0.5}, "leave data.central out"),
    ],
)
def test_what_has_no_meaning_for_a_query_is_refused(field: str, value: Any, mend: str) -> None:
    runtime = {"kind": "zipping"} if field == "codec" else {"kind": "flower"}
    spec = analysis(QUANTILE, runtime=runtime, **{field: value})

    with pytest.raises(Inconsistent) as refused:
        check_job(spec, HERE)

    assert refused.value.fields[0].startswith(field)
    assert refused.value.fields[1] == "program.query"
    assert mend in str(refused.value)


def test_a_tally_folds_no_model() -> None:
    with pytest.raises(Inconsistent) as refused:
        check_job(job(strategy={"kind": "tally"}), HERE)

    assert refused.value.fields == ("strategy.kind", "program.kind")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"runtime": {"kind": "other"}}, "runtime.kind"),
        ({"data": {"dataset": "nowhere"}}, "data.dataset"),
        ({"data": {"kind": "at-sites", "dataset": "x", "version": 1}}, "data.kind"),
        ({"data": {"sites": 2000}}, "data.sites"),
        ({"cohort": {"minimum": 6}}, "cohort.minimum"),
        ({"evaluate": {"minimum_count": 201}}, "evaluate.minimum_count"),
        ({"limits": {"memory_mb": 255}}, "limits.memory_mb"),
        ({"limits": {"output_mb": 1}, "program": LARGE}, "limits.output_mb"),
        ({"privacy": [{"kind": "dp-sgd", "epsilon": 8, "delta": 1e-6}]}, "privacy[0].kind"),
    ],
    ids=[
        "runtime",
        "data set",
        "real sites",
        "sites",
        "cohort",
        "minimum",
        "memory",
        "output",
        "privacy",
    ],
)
def test_the_rules_of_every_job_hold_for_an_analysis(fields: dict[str, Any], field: str) -> None:
    if "kind" in fields.get("data", {}):
        spec = job(program={"kind": "analysis", "query": AGES}, data=fields["data"])
    else:
        query = fields.get("program", AGES)
        spec = analysis(query, **{k: v for k, v in fields.items() if k != "program"})

    with pytest.raises(JobError) as refused:
        check_job(spec, HERE)

    assert refused.value.fields[0] == field
    assert isinstance(refused.value, Inconsistent | Unsupported)


@pytest.mark.parametrize("num_sites", [1, 5, 4096, 100_000])
@pytest.mark.parametrize("num_examples", [1, 2, 1000, 1 << 20, (1 << 31) - 1])
def test_the_ring_of_an_analysis_never_wraps(num_examples: int, num_sites: int) -> None:
    ring = ring_of(num_examples, num_sites)

    ring.check(num_sites)
    assert ring.magnitude >= num_examples
    assert num_sites * num_examples * 2**ring.fraction_bits < 2**63


def test_a_job_that_trains_is_returned_as_it_is() -> None:
    spec = job()
    assert check_job(spec, HERE) is spec
    assert spec.strategy == FedAvg()


def test_the_example_is_a_job_that_fits() -> None:
    path = Path(__file__).parents[2] / "examples" / "analysis.yaml"

    spec = check_job(read_job(path.read_text(), str(path)), read_capabilities())

    assert (spec.rounds, spec.evaluate.minimum_count) == (3, 20)
