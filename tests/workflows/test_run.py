"""The phases of a run, written out again."""

from __future__ import annotations

from itertools import product

import pytest

from workflows.run import IllegalTransition, Phase, advance

OPEN = ["pending", "admitted", "provisioning", "recruiting", "running", "finalizing"]
FINAL = ["succeeded", "failed", "cancelled"]
LEGAL = {
    *product(OPEN, ["failed", "cancelled"]),
    ("pending", "admitted"),
    ("admitted", "provisioning"),
    *product(["provisioning"], ["recruiting", "running", "finalizing", "succeeded"]),
    *product(["recruiting"], ["running", "finalizing", "succeeded"]),
    *product(["running"], ["finalizing", "succeeded"]),
    ("finalizing", "succeeded"),
    *product(["recruiting", "running", "finalizing"], ["provisioning"]),
}


@pytest.mark.parametrize(("before", "after"), list(product(OPEN + FINAL, repeat=2)))
def test_a_run_goes_only_where_the_table_lets_it(before: str, after: str) -> None:
    if (before, after) in LEGAL:
        assert advance(Phase(before), Phase(after)) == Phase(after)
    else:
        with pytest.raises(IllegalTransition, match=f"{before} -> {after}"):
            advance(Phase(before), Phase(after))


def test_the_table_knows_every_phase() -> None:
    assert [phase.value for phase in Phase] == OPEN + FINAL


@pytest.mark.parametrize("phase", OPEN + FINAL)
def test_a_run_is_final_where_nothing_follows(phase: str) -> None:
    assert Phase(phase).is_final == (phase in FINAL)
