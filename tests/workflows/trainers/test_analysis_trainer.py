"""A worker that answers a query, and what it does where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from strategies.tally import Tally
from workflows.analyses import Query
from workflows.analyses.count import Count
from workflows.analyses.mean import Mean, Ranged
from workflows.answering import answer_to
from workflows.causes import CauseCode
from workflows.job import Local, Partitioned
from workflows.model_file import lay_model
from workflows.tasks import Failed, Initial, OpenQuery, Prepare, Train, TrainedSite
from workflows.workbench import NotOpened, Workbench

TEXTS = Count(column="y", values=("cat", "dog"))


def answered(folder: Path, query: Query, minimum_count: int = 1) -> TrainedSite | Failed:
    """What the first of two sites with ten examples each answers."""
    inputs = folder / "inputs"
    inputs.mkdir()
    x, y = np.arange(20.0).reshape(20, 1), np.array(["cat", "dog"] * 10)
    np.savez(inputs / "dataset.npz", x=x, y=y)
    bench = Workbench()
    data = Partitioned(dataset="mine", sites=2, holdout=0)
    bench.handle(Prepare(data=data, inputs=str(inputs), folder=str(folder / "data")), [])
    bench.handle(OpenQuery(query=query, label="y", minimum_count=minimum_count), [])
    bench.handle(Initial(), [])
    model = lay_model(query.blank(), folder / "table", 1)
    task = Train(site="site-0001", model=model, local=Local(), strategy=Tally(), seed=0)
    answer, _ = answer_to(bench.handle, task, [], 64)
    assert isinstance(answer, TrainedSite | Failed)
    return answer


def test_an_answer_has_the_weight_one_and_tells_nothing_beside_it(tmp_path: Path) -> None:
    answer = answered(tmp_path, TEXTS, minimum_count=10)

    assert isinstance(answer, TrainedSite)
    assert (answer.num_examples, answer.loss, answer.scalars) == (1, None, {})
    assert sorted(spec.name for spec in answer.arrays) == ["counts", "sites"]


def test_too_few_examples_are_a_cause_that_does_not_tell_how_many(tmp_path: Path) -> None:
    answer = answered(tmp_path, TEXTS, minimum_count=11)

    assert isinstance(answer, Failed)
    assert answer.cause.code is CauseCode.TOO_FEW_EXAMPLES
    assert answer.cause.detail == "fewer examples than evaluate.minimum_count = 11"


def test_a_mean_of_text_is_a_cause_with_the_column_and_the_mend(tmp_path: Path) -> None:
    answer = answered(tmp_path, Mean(columns=(Ranged(column="y", low=0, high=1),)))

    assert isinstance(answer, Failed)
    assert answer.cause.code is CauseCode.DATA_UNREADABLE
    assert "column `y` holds text, not numbers; ask for count" in answer.cause.detail


def test_a_query_needs_the_data_first() -> None:
    with pytest.raises(NotOpened):
        Workbench().handle(OpenQuery(query=TEXTS, label="y", minimum_count=1), [])
