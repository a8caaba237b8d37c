"""Job documents: YAML 1.2 and JSON, and the line that every mistake is at."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy import DpSgd, Protection, SecureAggregation
from strategies.fedopt import FedAdam
from tests.workflows.jobs import CAPABILITIES, JOB, SMALLEST
from workflows.job import AtSites, Bundle, Cohort, Evaluate, JobSpec, Seed, Unsupported
from workflows.job_document import DocumentInvalid, read_job
from workflows.rules import check_job

DIGEST = "sha256:" + "0123456789abcdef" * 4
ARCHITECTURE = """\
name: chest-xray-triage
collaboration: north-hospitals
program:  {kind: bundle, digest: "sha256:DIGEST", config: {width: 32}}
runtime:  {kind: flower, mode: sites}
data:     {kind: at-sites, dataset: chest-xray, version: 3}
init:     {kind: seed, seed: 7}
local:    {epochs: 1, batch_size: 32, optimizer: {kind: sgd, lr: 0.05}}
strategy: {kind: fedadam, eta: 0.1}
privacy:  [{kind: dp-sgd, epsilon: 8, delta: 1.0e-6, clip_norm: 1.0}, {kind: secure-aggregation,
            threshold: 0.7}]
protect:  {unit: patient, against: [honest-but-curious-server, other-sites]}
cohort:   {size: 8, minimum: 6, deadline_s: 900, on_site_failure: drop, selection: {kind: uniform}}
codec:    {kind: none}
ring:     {fraction_bits: 24}
rounds:   40
limits:   {import_s: 60, train_s: 600, memory_mb: 4096, output_mb: 64}
resources: {server: {cpu: 2, memory_mb: 4096}, site: {cpu: 1, gpu: 0}, priority: normal}
evaluate: {every: 1, metrics: [auroc], where: sites, minimum_count: 10, select: best}
output:   {onnx: [fp32, int8], publish: true}
"""
"""The job that the design of the house shows."""

BASE = """\
name: digits
program: {kind: builtin, name: digits-cnn}
data: {kind: partitioned, dataset: digits}
"""


def test_the_document_of_the_architecture_is_a_job() -> None:
    spec = read_job(ARCHITECTURE.replace("sha256:DIGEST", DIGEST))

    assert spec.program == Bundle(digest=DIGEST, config={"width": 32})
    assert spec.data == AtSites(dataset="chest-xray", version=3)
    assert spec.init == Seed(seed=7)
    assert spec.strategy == FedAdam(eta=0.1)
    assert spec.privacy == (
        DpSgd(epsilon=8.0, delta=1e-6, clip_norm=1.0),
        SecureAggregation(threshold=0.7),
    )
    assert spec.protect == Protection(
        unit="patient", against=("honest-but-curious-server", "other-sites")
    )
    assert spec.cohort == Cohort(size=8, minimum=6)
    assert spec.evaluate == Evaluate(metrics=("auroc",), minimum_count=10, select="best")
    assert (spec.rounds, spec.collaboration) == (40, "north-hospitals")
    assert (spec.runtime.mode, spec.output.onnx) == ("sites", ("fp32", "int8"))


def test_what_it_asks_for_is_refused_and_not_ignored() -> None:
    spec = read_job(ARCHITECTURE.replace("sha256:DIGEST", DIGEST))

    with pytest.raises(Unsupported) as refusal:
        check_job(spec, CAPABILITIES)
    assert refusal.value.fields == ("runtime.mode",)

    spec = msgspec.structs.replace(spec, runtime=JOB.runtime, data=JOB.data)
    with pytest.raises(Unsupported) as refusal:
        check_job(spec, CAPABILITIES)
    assert refusal.value.fields == ("privacy[0].kind", "runtime.kind")


def test_yaml_and_json_say_the_same() -> None:
    assert read_job(BASE) == read_job(json.dumps(SMALLEST)) == JOB
    assert read_job(json.dumps(SMALLEST, indent="\t")) == JOB
    assert read_job(BASE.replace("\n", "\r\n")) == JOB


@given(st.text(st.characters(codec="utf-8"), max_size=20))
@example("\U00010000")
@example("a\x85b\u2028c\u2029d")
@example("a \n\n b\r\tc  ")
def test_any_text_of_a_json_document_comes_through(text: str) -> None:
    document = {**SMALLEST, "program": {**SMALLEST["program"], "config": {"text": text}}}
    for ascii_only in (True, False):
        content = json.dumps(document, ensure_ascii=ascii_only)
        try:
            program = read_job(content).program
        except DocumentInvalid:
            assert not ascii_only  # YAML wants some characters escaped
        else:
            assert program.config == {"text": text}


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("010", 10),
        ("0o10", 8),
        ("0x1f", 31),
        ("true", True),
        ("~", None),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(scalar: str, value: object) -> None:
    text = BASE.replace("name: digits-cnn", f"name: digits-cnn, config: {{x: {scalar}}}")
    assert read_job(text).program.config == {"x": value}


@pytest.mark.parametrize(
    ("addition", "line", "path", "problem"),
    [
        ("rouds: 3", 4, "rouds", "no such field. Did you mean `rounds`?"),
        ("cohort:\n  size: 5\n  sise: 5", 6, "cohort.sise", "Did you mean `size`?"),
        ("rounds: ten", 4, "rounds", "expected int, got str"),
        ("strategy:\n  kind: fedadam\n  eta: -1", 6, "strategy.eta", "> 0.0"),
        (
            "strategy:\n  kind: fedsgd",
            5,
            "strategy.kind",
            "no such value 'fedsgd'. Did you mean `fed",
        ),
        ("evaluate:\n  metrics:\n    - mse\n    - 5", 7, "evaluate.metrics[1]", "got int"),
        ("limits: null", 4, "limits", "got null"),
        ("ring: {magnitude: 1e300}", 4, "ring", "must not exceed"),
        ("ring: {magnitude: .inf}", 4, "ring.magnitude", "no number that a job can hold"),
        ("ring: {magnitude: .nan}", 4, "ring.magnitude", "no number that a job can hold"),
        ("rounds: 2026-01-01", 4, "rounds", "a timestamp is not read"),
        ("rounds: 1\nrounds: 2", 5, "rounds", "written twice"),
        ("rounds: &n 1\ncohort: {size: *n}", 5, "cohort.size", "aliases are not read"),
        ("limits: &l\n  <<: *l", 4, "limits", "the name << is no text"),
        ("limits: {[1]: 2}", 4, "limits", "is no text"),
        ('protect: {unit: "\\ud800"}', 4, "protect.unit", "cannot be read"),
        ("rounds: !!python/object/apply:os.getpid []", 4, "rounds", "got array"),
        ("rounds: !!binary aGk=", 4, "rounds", "a binary is not read"),
        ("rounds: !!int ten", 4, "rounds", "invalid literal"),
        ("7: 7", 1, "", "the name 7 is no text"),
        ("rounds: [1", 5, "", "expected ',' or ']'"),
        ("rounds: 1: 2", 4, "", "mapping values are not allowed"),
        ("\trounds: 1", 4, "", "cannot start any token"),
        ("---\nrounds: 3", 4, "", "another document"),
        ("rounds: \x00", 1, "", "not allowed"),
        ("rounds: " + "[" * 500, 1, "", "nested too deeply"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    addition: str, line: int, path: str, problem: str
) -> None:
    with pytest.raises(DocumentInvalid) as refusal:
        read_job(BASE + addition + "\n", "job.yaml")

    assert (refusal.value.line, refusal.value.path) == (line, path)
    assert problem in refusal.value.problem
    assert str(refusal.value).startswith(f"job.yaml:{line}: {path}")


def test_a_field_that_is_missing_is_named_where_it_belongs() -> None:
    with pytest.raises(DocumentInvalid, match=r"program\.name: is missing"):
        read_job(BASE.replace(", name: digits-cnn", ""))


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "[]", "3", "{"], ids=repr)
def test_what_is_no_mapping_is_no_job(text: str) -> None:
    with pytest.raises(DocumentInvalid, match="job:1"):
        read_job(text)


def test_a_client_can_rewrite_what_was_written_and_keeps_the_lines() -> None:
    text = BASE.replace("kind: builtin, name: digits-cnn", "folder: ./mine") + "rounds: ten\n"

    def rewrite(written: dict[str, object]) -> dict[str, object]:
        assert written["program"] == {"folder": "./mine"}
        return {**written, "program": {"kind": "bundle", "digest": DIGEST}}

    assert read_job(text.replace("ten", "10"), rewrite=rewrite).program == Bundle(digest=DIGEST)
    with pytest.raises(DocumentInvalid, match="job:4: rounds"):
        read_job(text, rewrite=rewrite)


def test_a_mistake_in_json_has_a_line_too() -> None:
    text = json.dumps({**SMALLEST, "rounds": "3"}, indent=2)
    with pytest.raises(DocumentInvalid) as refusal:
        read_job(text)
    assert text.splitlines()[refusal.value.line - 1].strip() == '"rounds": "3"'


def outcome(text: str) -> JobSpec | DocumentInvalid:
    try:
        return read_job(text)
    except DocumentInvalid as refusal:
        return refusal


@given(st.text(max_size=60))
def test_any_text_is_a_job_or_refused(text: str) -> None:
    for document in (text, BASE + text):
        result = outcome(document)
        assert isinstance(result, JobSpec) or result.line >= 1
