"""What travels of the largest entries, what stays for the next round, and what is no such thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.codecs import Undecodable, Unencodable
from workflows.codecs.top_k import TopK


def as_bytes(tree: Any) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in tree.items()}


def test_two_rounds_in_plain_numbers() -> None:
    """Stich et al., Algorithm 1, with k = 2 of 6 entries."""
    codec = TopK(fraction=1 / 3)
    model = {"w": np.zeros((2, 3))}
    first = {"w": np.array([[0.5, -2.0, 0.25], [1.0, -0.75, 0.0]])}
    second = {"w": np.array([[0.5, 0.25, 0.0], [-0.5, -0.5, 0.125]])}

    one = codec.conclude(first, {}, 1)
    two = codec.conclude(second, one.memory, 2)

    # m_1 + delta_1 = delta_1; the largest are -2 and 1.
    sent = codec.decode(one.sent, model, 1)["w"]
    np.testing.assert_array_equal(sent, [[0, -2, 0], [1, 0, 0]])
    np.testing.assert_array_equal(one.memory["w"], [[0.5, 0, 0.25], [0, -0.75, 0]])
    # m_2 + delta_2 = [1, 0.25, 0.25, -0.5, -1.25, 0.125]; the largest are 1 and -1.25.
    sent = codec.decode(two.sent, model, 2)["w"]
    np.testing.assert_array_equal(sent, [[1, 0, 0], [0, -1.25, 0]])
    np.testing.assert_array_equal(two.memory["w"], [[0, 0.25, 0.25], [-0.5, 0, 0.125]])


def test_the_bytes_of_a_layer_are_as_the_docstring_says() -> None:
    x = np.zeros(96, np.float32)
    x[[3, 70]] = 1.5, -4.0

    sparse = TopK(fraction=2 / 96).encode({"w": x}, 0)["w"].tobytes()
    dense = TopK(fraction=4 / 96).encode({"w": x}, 0)["w"].tobytes()
    whole = TopK(fraction=1).encode({"w": x}, 0)["w"].tobytes()

    values = np.array([1.5, -4.0], "<f4").tobytes()
    assert sparse == np.array([3, 70], "<u4").tobytes() + values  # 8 bytes of 12
    marks = bytearray(12)
    for place in (0, 1, 3, 70):  # zeros are equal, so the first of them
        marks[place // 8] |= 0x80 >> place % 8
    assert dense == bytes(marks) + np.array([0, 0, 1.5, -4.0], "<f4").tobytes()  # 12 bytes of 16
    assert whole == x.tobytes()


def test_of_equal_entries_the_earlier_go_first() -> None:
    x = np.array([1.0, -2.0, 2.0, -1.0, 1.0, -1.0])

    found = {
        count: np.flatnonzero(
            TopK(fraction=count / 6).decode(
                TopK(fraction=count / 6).encode({"w": x}, 0), {"w": x}, 0
            )["w"]
        ).tolist()
        for count in range(1, 6)
    }

    assert found == {1: [1], 2: [1, 2], 3: [0, 1, 2], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3, 4]}


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 90),
    fraction=st.floats(0.001, 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_what_travels_is_no_smaller_than_what_stays_and_is_as_it_was(
    seed: int, size: int, fraction: float, dtype: type
) -> None:
    x = np.random.default_rng(seed).integers(-5, 6, size).astype(dtype) / 4
    codec, model = TopK(fraction=fraction), {"w": x}

    share = codec.conclude(model, {}, 0)

    sent = codec.decode(share.sent, model, 0)["w"]
    np.testing.assert_array_equal(sent[sent != 0], x[sent != 0])
    np.testing.assert_array_equal(sent + share.memory["w"], x)
    left = np.abs(share.memory["w"]).max()
    assert not sent.any() or np.abs(sent[sent != 0]).min() >= left
    count = min(size, max(1, round(fraction * size)))
    # Definition 2.1: ||x - top_k(x)||^2 <= (1 - k/d) ||x||^2.
    kept = float(np.sum(share.memory["w"].astype(float) ** 2))
    assert kept <= (1 - count / size) * float(np.sum(x.astype(float) ** 2)) + 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_that_was_sent_and_the_last_memory_are_all_the_deltas(dtype: type) -> None:
    """Exactly, where no addition rounds; else within one rounding a round."""
    codec, rng = TopK(fraction=0.07), np.random.default_rng(5)
    model = {"a": np.zeros((9, 7), dtype), "b": np.zeros(3, dtype), "c": np.zeros((), dtype)}

    for grid in (2.0**-10, None):
        memory: Any = {}
        sent = {name: np.zeros(x.shape) for name, x in model.items()}
        total = {name: np.zeros(x.shape) for name, x in model.items()}
        for number in range(20):
            delta = {name: rng.normal(size=x.shape) for name, x in model.items()}
            if grid:
                delta = {name: np.rint(x / grid) * grid for name, x in delta.items()}
            delta = {name: np.asarray(x, dtype) for name, x in delta.items()}
            before = as_bytes(delta), as_bytes(memory)
            share = codec.conclude(delta, memory, number)
            assert (as_bytes(delta), as_bytes(memory)) == before
            memory = share.memory
            for name, x in codec.decode(share.sent, model, number).items():
                sent[name] += x
                total[name] += delta[name]
        for name, x in total.items():
            assert memory[name].dtype == dtype
            bound = 0.0 if grid else 20 * 20 * float(np.finfo(dtype).eps)
            assert np.abs(sent[name] + memory[name] - x).max() <= bound


def test_order_of_layers_and_scale_do_not_show() -> None:
    rng, codec = np.random.default_rng(8), TopK(fraction=0.2)
    delta = {name: rng.normal(size=(5, 8)).astype(np.float32) for name in "ab"}
    memory = {name: rng.normal(size=(5, 8)).astype(np.float32) for name in "ab"}

    share = codec.conclude(delta, memory, 1)
    turned = codec.conclude(dict(reversed(delta.items())), memory, 2)
    larger = codec.conclude(
        {n: 4 * x for n, x in delta.items()}, {n: 4 * x for n, x in memory.items()}, 3
    )

    for name in "ab":
        assert turned.sent[name].tobytes() == share.sent[name].tobytes()
        np.testing.assert_array_equal(larger.memory[name], 4 * share.memory[name])


def test_a_memory_that_overflows_loses_the_site_to_the_round() -> None:
    largest = np.array([np.finfo(np.float32).max], np.float32)

    with pytest.raises(Unencodable, match="layer w holds NaN or infinity"):
        TopK().conclude({"w": largest}, {"w": largest}, 1)


POSITIONS = TopK(fraction=2 / 96)
MARKS = TopK(fraction=0.5)


@pytest.mark.parametrize(
    ("codec", "head", "problem"),
    [
        (POSITIONS, np.array([3, 96], "<u4"), "names position 96, beyond its 96 entries"),
        (POSITIONS, np.array([3, 2**32 - 1], "<u4"), "names position 4294967295"),
        (POSITIONS, np.array([7, 7], "<u4"), "twice"),
        (POSITIONS, np.array([70, 3], "<u4"), "after a later one"),
        (MARKS, np.array([255] * 5 + [0] * 7, np.uint8), "marks 40 entries, not 48"),
        (MARKS, np.array([255] * 12, np.uint8), "marks 96 entries, not 48"),
    ],
    ids=["beyond", "far beyond", "twice", "unsorted", "too few marks", "all marked"],
)
def test_bad_positions_are_refused(codec: TopK, head: np.ndarray, problem: str) -> None:
    model = {"w": np.zeros(96, np.float32)}
    good = codec.encode(model, 0)["w"].view(np.uint8)
    told = head.view(np.uint8)

    with pytest.raises(Undecodable, match=f"layer w .*({problem})"):
        codec.decode({"w": np.concatenate([told, good[told.size :]])}, model, 0)


def test_a_mark_in_the_padding_is_refused() -> None:
    model = {"w": np.ones(93, np.float32)}
    codec = TopK(fraction=0.5)
    spoilt = codec.encode(model, 0)["w"].copy()
    assert spoilt[0] == 0xFF
    spoilt[0] ^= 0x80
    spoilt[11] |= 1

    with pytest.raises(Undecodable, match="names position 95, beyond its 93 entries"):
        codec.decode({"w": spoilt}, model, 0)
