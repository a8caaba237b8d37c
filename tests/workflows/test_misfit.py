"""What does not fit a job, in words for its writer. (Whole documents: test_job_document.)"""

from __future__ import annotations

import msgspec
import pytest

from workflows.job import JobSpec
from workflows.misfit import Misfit, explain

JOB = {
    "name": "x",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits"},
}


def misfit_of(change: dict[str, object]) -> Misfit:
    document = JOB | change
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(document, JobSpec)
    return explain(str(error.value), document, JobSpec)


@pytest.mark.parametrize(
    ("change", "path", "mend"),
    [
        pytest.param({"roundz": 3}, "roundz", "Did you mean `rounds`?", id="a misspelt field"),
        pytest.param({"lr": 3}, "lr", "Did you mean `local.optimizer.lr`?", id="a field's place"),
        pytest.param(
            {"strategy": {"kind": "fedadm"}}, "strategy.kind", "`fedadam`", id="a misspelt kind"
        ),
        pytest.param(
            {"strategy": {"kind": "fedadam", "et": 1}},
            "strategy.et",
            "Did you mean `eta`?",
            id="a misspelt field of a kind",
        ),
        pytest.param(
            {"cohort": {"on_site_failure": "drip"}},
            "cohort.on_site_failure",
            "Did you mean `drop`? Known: drop, fail.",
            id="a misspelt value",
        ),
        pytest.param({"program": {"kind": "builtin"}}, "program.name", "Give this", id="missing"),
    ],
)
def test_a_mistake_has_a_place_and_a_mend(change: dict[str, object], path: str, mend: str) -> None:
    misfit = misfit_of(change)

    assert misfit.path == path
    assert mend in misfit.mend


def test_what_has_no_nearer_words_keeps_its_problem() -> None:
    assert misfit_of({"rounds": "many"}) == Misfit("rounds", "expected int, got str")
