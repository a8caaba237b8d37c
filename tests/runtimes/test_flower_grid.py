from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

from workflows.causes import CauseCode
from workflows.flower_grid import (
    ANSWERS,
    WorkerGrid,
    cause_of,
    identify,
    to_array,
    to_arrays,
    to_numpy,
    to_record,
)
from workflows.job import Limits
from workflows.workers import WorkerPool

SITES = ["site-0001", "site-0002", "site-0003"]
ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(1.5),
    "empty": np.zeros((0, 4), np.float32),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "counts": np.arange(3),
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGrid]:
    identify()
    with WorkerPool(
        num_workers=2,
        limits=Limits(),
        folder=tmp_path_factory.mktemp("grid"),
        entry=("tests.runtimes.echo_app",),
        answers=ANSWERS,
        log=subprocess.DEVNULL,
    ) as pool:
        yield WorkerGrid(pool, SITES)


def messages(grid: WorkerGrid, **records: object) -> list[Message]:
    return [
        Message(RecordDict(records), node_id, MessageType.TRAIN, group_id="7")
        for node_id in grid.get_node_ids()
    ]


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_what_flowers_own_conversion_makes(name: str) -> None:
    theirs, ours = (
        Array(np.ascontiguousarray(ARRAYS[name]).reshape(ARRAYS[name].shape)),
        to_array(ARRAYS[name]),
    )

    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data
    for converted in (ours.numpy(), to_numpy(ours), to_numpy(theirs)):
        assert converted.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(converted, ARRAYS[name])


def test_an_array_in_another_form_is_left_to_flower() -> None:
    turned = Array(np.asfortranarray(ARRAYS["matrix"]))

    np.testing.assert_array_equal(to_numpy(turned), ARRAYS["matrix"])


@pytest.mark.parametrize("is_shared", [True, False], ids=["one record for all", "one for each"])
def test_a_message_gets_there_whole_and_its_reply_back(grid: WorkerGrid, is_shared: bool) -> None:
    one = to_record(ARRAYS)
    asked = [
        Message(
            RecordDict({"model": one if is_shared else to_record(ARRAYS)}),
            node_id,
            MessageType.TRAIN,
            group_id="7",
        )
        for node_id in grid.get_node_ids()
    ]

    replies = list(grid.send_and_receive(asked))

    assert sorted(str(reply.content["where"]["site"]) for reply in replies) == SITES
    for reply in replies:
        assert SITES[reply.metadata.src_node_id - 2] == reply.content["where"]["site"]
        assert reply.content["where"]["group"] == "7"
        assert reply.content["metrics"]["values"] == [0.5, 1.5]
        for name, x in to_arrays(reply.content["model"]).items():
            np.testing.assert_array_equal(x, ARRAYS[name] + 1)


def test_replies_are_pulled_by_the_ids_of_their_messages(grid: WorkerGrid) -> None:
    model = to_record({"x": np.ones(2)})
    first, second = (list(grid.push_messages(messages(grid, model=model))) for _ in range(2))

    late = [r.metadata.reply_to_message_id for _ in second for r in grid.pull_messages(second)]
    early = [r.metadata.reply_to_message_id for _ in first for r in grid.pull_messages(first[::-1])]

    assert sorted(late) == sorted(second)
    assert sorted(early) == sorted(first)
    assert grid.pull_messages([*first, *second]) == []


def test_a_new_model_of_the_same_form_is_another_model(grid: WorkerGrid) -> None:
    for value in (1.0, 2.0, 3.0):
        model = to_record({"x": np.full(2, value)})
        for reply in grid.send_and_receive(messages(grid, model=model)):
            np.testing.assert_array_equal(to_arrays(reply.content["model"])["x"], value + 1)


def test_a_client_that_raises_becomes_an_error_reply(grid: WorkerGrid) -> None:
    config = ConfigRecord({"fail-at": "site-0002"})

    replies = list(grid.send_and_receive(messages(grid, config=config)))

    (failed,) = (reply for reply in replies if reply.has_error())
    assert len(replies) == 3
    assert failed.metadata.src_node_id == 3
    cause = cause_of(failed.error)
    assert cause.code is CauseCode.PLATFORM_BUG
    assert "no training at site-0002" in cause.detail


def test_flowers_own_strategy_runs_over_it(grid: WorkerGrid, tmp_path: Path) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, weighted_by_key="num-examples", min_available_nodes=3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = strategy.start(grid, ArrayRecord([np.zeros(3, np.float32)]), num_rounds=2)

    assert [x.tolist() for x in result.arrays.to_numpy_ndarrays()] == [[2.0, 2.0, 2.0]]
