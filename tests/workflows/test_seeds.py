"""Seeds depend on their purpose and on nothing else."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from workflows.seeds import derive

PART = st.integers(0, 10**6) | st.text(max_size=8)
PARTS = st.lists(PART, max_size=4).map(tuple)


@given(st.integers(0, 2**63 - 1), PARTS)
def test_a_seed_is_a_pure_function_within_63_bits(seed: int, parts: tuple[str | int, ...]) -> None:
    assert derive(seed, *parts) == derive(seed, *parts)
    assert 0 <= derive(seed, *parts) < 2**63


@given(PARTS, PARTS)
def test_different_purposes_have_different_seeds(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert (derive(7, *one) == derive(7, *other)) == (one == other)


def test_parts_do_not_run_together() -> None:
    seeds = [derive(1, "ab"), derive(1, "a", "b"), derive(1, 2, "3"), derive(1, "2", 3), derive(12)]
    assert len(set(seeds)) == len(seeds)


def test_the_text_that_is_hashed_is_written_down() -> None:
    text = b'[7,"train",3,"site-0001"]'
    expected = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2

    assert derive(7, "train", 3, "site-0001") == expected
