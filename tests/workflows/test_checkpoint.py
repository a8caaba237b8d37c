from __future__ import annotations

import numpy as np
import pytest

from sharing.object_store import digest_of
from strategies import KINDS, ServerState
from workflows.checkpoint import (
    Best,
    Checkpoint,
    CheckpointUnreadable,
    model_bytes,
    model_digest,
    read_checkpoint,
    read_model,
    write_checkpoint,
)

PARAMS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/b": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "strided": np.arange(8.0)[::2],
}


def same(left: object, right: object) -> bool:
    assert isinstance(left, dict)
    assert isinstance(right, dict)
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name])
        for name in left
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back_as_it_was(kind: str) -> None:
    state = KINDS[kind]().init(PARAMS)
    state = ServerState(state.params, state.moments, 7)

    back = read_checkpoint(write_checkpoint(Checkpoint(state)))

    assert back.state.round == 7
    assert back.best is None
    assert same(back.state.params, PARAMS)
    assert back.state.moments.keys() == state.moments.keys()
    for symbol in state.moments:
        assert same(back.state.moments[symbol], dict(state.moments[symbol]))


def test_what_sites_keep_comes_along_by_site() -> None:
    memories = {"site-0002": PARAMS, "site-0010": {n: x + 1 for n, x in PARAMS.items()}}

    back = read_checkpoint(write_checkpoint(Checkpoint(ServerState(PARAMS), memories=memories)))

    assert back.memories.keys() == memories.keys()
    assert all(same(dict(back.memories[site]), dict(memories[site])) for site in memories)
    assert same(dict(back.state.params), PARAMS)


def test_models_that_sites_at_work_were_given_come_along_by_round() -> None:
    versions = {2: PARAMS, 11: {n: x + 1 for n, x in PARAMS.items()}}

    back = read_checkpoint(write_checkpoint(Checkpoint(ServerState(PARAMS), versions=versions)))

    assert back.versions.keys() == versions.keys()
    assert all(same(dict(back.versions[k]), dict(versions[k])) for k in versions)
    assert back.memories == {}


@pytest.mark.parametrize("round_", [3, 7], ids=["an earlier model", "the last one"])
def test_the_best_model_comes_along(round_: int) -> None:
    earlier = {name: x + 1 for name, x in PARAMS.items()}
    best = Best(round_, 0.1 + 0.2, PARAMS if round_ == 7 else earlier)

    back = read_checkpoint(write_checkpoint(Checkpoint(ServerState(PARAMS, round=7), best))).best

    assert back
    assert (back.round, back.value) == (round_, 0.1 + 0.2)
    assert same(back.params, dict(best.params))


def test_the_same_state_is_the_same_bytes_in_any_order_of_layers() -> None:
    turned = dict(reversed(PARAMS.items()))

    once, again = (
        write_checkpoint(Checkpoint(ServerState(params, {"m": params}, 1), Best(1, 0.5, params)))
        for params in (PARAMS, turned)
    )

    assert once == again
    assert model_digest(PARAMS) == model_digest(turned) == digest_of(model_bytes(PARAMS))
    assert same(read_model(model_bytes(PARAMS)), {n: PARAMS[n] for n in sorted(PARAMS)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish" * 10,
        model_bytes(PARAMS),
        write_checkpoint(Checkpoint(ServerState(PARAMS)))[:-1],
        write_checkpoint(Checkpoint(ServerState(PARAMS))).replace(
            rb"\"version\":1", rb"\"version\":2"
        ),
    ],
    ids=["nothing", "rubbish", "a model", "cut short", "another version"],
)
def test_what_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointUnreadable):
        read_checkpoint(content)
