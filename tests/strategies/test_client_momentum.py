"""Client momentum against Algorithm 2 of Karimireddy et al. 2021, in plain floats."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import KINDS, LocalResult, Parameters, SiteShare, Strategy
from strategies.client_momentum import MomentumFold
from strategies.krum import Krum
from strategies.median import CoordinateMedian
from tests.strategies.cohorts import float32s

MODEL = {"w": np.zeros((), np.float32)}


def rounds(strategy: Strategy, gradients: list[float]) -> list[SiteShare]:
    """What a site that finds ``gradients`` sends and keeps, round by round."""
    shares: list[SiteShare] = []
    memory: Parameters = {}
    for g in gradients:
        found = LocalResult({"w": np.array(g, np.float32)})
        shares.append(strategy.conclude(found, MODEL, memory))
        memory = shares[-1].memory
    return shares


@given(st.lists(float32s(8), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_a_site_sends_the_momentum_of_algorithm_2(gradients: list[float], beta: float) -> None:
    m = gradients[0]
    expected = []
    for g in gradients:
        m = (1 - beta) * g + beta * m
        expected.append(m)

    shares = rounds(Krum(client_momentum=beta), gradients)

    assert [float(s.sent["w"]) for s in shares] == pytest.approx(expected, abs=1e-5)
    assert all(s.sent["w"] == s.memory["w"] for s in shares)
    assert {s.memory["w"].dtype for s in shares} == {np.dtype(np.float32)}
    longest = max(abs(g) for g in gradients)
    assert all(abs(float(s.sent["w"])) <= longest * (1 + 1e-6) for s in shares)


def test_momentum_averages_noise_out_and_leaves_what_stays() -> None:
    """What a wrong site adds in every round stays, what chance adds does not."""
    noise = np.random.default_rng(1).normal(0, 1, 200)

    sent = [float(s.sent["w"]) for s in rounds(CoordinateMedian(client_momentum=0.9), [*noise])]
    shifted = rounds(CoordinateMedian(client_momentum=0.9), [*noise + 1.5])

    assert np.std(sent[50:]) < 0.4 * np.std(noise)
    assert float(shifted[-1].sent["w"]) - sent[-1] == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if issubclass(k, MomentumFold)])
def test_every_robust_fold_takes_it_and_none_keeps_anything_without(
    kind: type[MomentumFold],
) -> None:
    assert not kind().has_memory
    assert kind(client_momentum=0.5).has_memory
    (share,) = rounds(kind(), [3.0])
    assert (float(share.sent["w"]), share.memory) == (3.0, {})


def test_nothing_is_written_into_what_was_given() -> None:
    delta, memory = {"w": np.array(1.0, np.float32)}, {"w": np.array(2.0, np.float32)}
    for x in (*delta.values(), *memory.values()):
        x.flags.writeable = False

    share = Krum(client_momentum=0.5).conclude(LocalResult(delta), MODEL, memory)

    assert (float(share.sent["w"]), delta["w"], memory["w"]) == (1.5, 1.0, 2.0)


def test_which_folds_these_are_is_written_down() -> None:
    assert [tag for tag, kind in KINDS.items() if issubclass(kind, MomentumFold)] == [
        "bulyan",
        "coordinate-median",
        "geometric-median",
        "krum",
        "multi-krum",
        "trimmed-mean",
    ]


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "krum", "client_momentum": beta}, Krum)
