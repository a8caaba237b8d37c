"""Whole algorithms through the torch trainer, against the same in plain floats."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from strategies import FedAvg, ModelUpdate, Parameters, Ring, Strategy
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.qfedavg import QFedAvg
from strategies.scaffold import Scaffold
from tests.workflows.trainers.test_torch_trainer import as_bytes, load
from workflows.data.examples import Examples
from workflows.job import Local, Sgd
from workflows.trainers import ProgramError, Trainer
from workflows.trainers.client_half import Share, train_site

POINT = """
import torch
from torch import nn

class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

def build():
    return Point()

def loss(model, batch):
    a, b = batch[0].double().T
    return (a / 2 * (model.w - b) ** 2).mean()
"""
OWN = textwrap.dedent("""
    def train(model, data, config):
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.optimizer.momentum
        )
        for _ in range(config.epochs):
            for start in range(0, len(data), config.batch_size):
                stop = start + config.batch_size
                optimizer.zero_grad()
                value = loss(model, (data.x[start:stop], data.y[start:stop]))
                (value + config.hooks.penalty(model)).backward()
                optimizer.step()
""")
SITES = {"a": (1.0, -2.0, 4), "b": (0.5, 4.0, 8), "c": (2.0, 0.5, 2)}
"""Curvature and minimum of a/2 * (w - b)**2, the same for each example, and their number."""
COHORTS = (("a", "b"), ("b", "c"), ("a", "b", "c"), ("c",), ("a", "c"))
RATE, BATCH, EPOCHS = 0.1, 2, 2
STEPS = {site: EPOCHS * n // BATCH for site, (_, _, n) in SITES.items()}
RING = Ring(fraction_bits=32, magnitude=2.0**10, max_weight=1000)


def examples(site: str) -> Examples:
    a, b, n = SITES[site]
    return Examples(np.tile(np.array([a, b], np.float64), (n, 1)), np.zeros(n, np.int64))


def loss(site: str, w: float) -> float:
    a, b, _ = SITES[site]
    return a / 2 * (w - b) ** 2


def descend(
    site: str, w: float, correction: float = 0.0, mu: float = 0.0, rho: float = 0.0
) -> float:
    a, b, _ = SITES[site]
    y = w
    velocity = 0.0
    for _ in range(STEPS[site]):
        velocity = rho * velocity + a * (y - b) + correction + mu * (y - w)
        y -= RATE * velocity
    return y


@dataclass
class Federated:
    """The rounds by the trainer and the strategy's methods."""

    trainer: Trainer
    strategy: Strategy
    momentum: float = 0.0
    memories: dict[str, Parameters] = field(default_factory=dict)

    def share(self, site: str, offered: Parameters) -> Share:
        local = Local(
            epochs=EPOCHS, batch_size=BATCH, optimizer=Sgd(lr=RATE, momentum=self.momentum)
        )
        memory = self.memories.get(site, {})
        return train_site(self.trainer, examples(site), local, self.strategy, offered, memory, 5)

    def run(self) -> list[float]:
        state, models = self.strategy.init(self.trainer.initial()), []
        for number, cohort in enumerate(COHORTS, start=1):
            partial = self.strategy.zero(state)
            partial.population = len(SITES)
            for site in cohort:
                share = self.share(site, self.strategy.offer(state))
                update = ModelUpdate(
                    site, number, share.share.sent, share.num_examples, share.scalars
                )
                self.strategy.accumulate(partial, update, RING)
                self.memories[site] = share.share.memory
            state = self.strategy.step(state, self.strategy.finish(partial, RING))
            models.append(float(state.params["w"]))
        return models


Round = Callable[[float, tuple[str, ...]], float]


def oracle(step: Round) -> list[float]:
    w, models = 0.5, []
    for cohort in COHORTS:
        w = step(w, cohort)
        models.append(w)
    return models


def fednova(rho: float) -> Round:
    def step(w: float, cohort: tuple[str, ...]) -> float:
        n = sum(SITES[s][2] for s in cohort)
        a = {s: sum((1 - rho**k) / (1 - rho) for k in range(1, STEPS[s] + 1)) for s in cohort}
        tau_eff = sum(SITES[s][2] / n * a[s] for s in cohort)
        d = {s: (w - descend(s, w, rho=rho)) / a[s] for s in cohort}
        return w - tau_eff * sum(SITES[s][2] / n * d[s] for s in cohort)

    return step


def qfedavg(q: float, lipschitz: float) -> Round:
    def step(w: float, cohort: tuple[str, ...]) -> float:
        total = h = 0.0
        for s in cohort:
            n, f, gradient = SITES[s][2], loss(s, w), lipschitz * (w - descend(s, w))
            total += n * f**q * gradient
            h += n * (q * f ** (q - 1) * gradient**2 + lipschitz * f**q)
        return w - total / h

    return step


def scaffold(option: str) -> Round:
    c, c_i = [0.0], dict.fromkeys(SITES, 0.0)

    def step(w: float, cohort: tuple[str, ...]) -> float:
        ys = {s: descend(s, w, c[0] - c_i[s]) for s in cohort}
        change = 0.0
        for s, y in ys.items():
            a, b, _ = SITES[s]
            path = c_i[s] - c[0] + (w - y) / (STEPS[s] * RATE)
            renewed = path if option == "path" else a * (w - b)
            change += renewed - c_i[s]
            c_i[s] = renewed
        c[0] += change / len(SITES)
        return w + sum(y - w for y in ys.values()) / len(ys)

    return step


def feddyn(alpha: float) -> Round:
    h, g = [0.0], dict.fromkeys(SITES, 0.0)

    def step(w: float, cohort: tuple[str, ...]) -> float:
        ys = {s: descend(s, w, -g[s], alpha) for s in cohort}
        for s, y in ys.items():
            g[s] -= alpha * (y - w)
        h[0] -= alpha / len(SITES) * sum(y - w for y in ys.values())
        return sum(ys.values()) / len(ys) - h[0] / alpha

    return step


CASES: dict[str, tuple[Strategy, float, Callable[[], Round]]] = {
    "fednova": (FedNova(), 0.0, lambda: fednova(0.0)),
    "fednova with momentum": (FedNova(), 0.6, lambda: fednova(0.6)),
    "qfedavg": (QFedAvg(q=1.5, lipschitz=4.0), 0.0, lambda: qfedavg(1.5, 4.0)),
    "scaffold, option II": (Scaffold(), 0.0, lambda: scaffold("path")),
    "scaffold, option I": (Scaffold(option="gradient"), 0.0, lambda: scaffold("gradient")),
    "feddyn": (FedDyn(alpha=0.5), 0.0, lambda: feddyn(0.5)),
}


@pytest.mark.parametrize("own", ["", OWN], ids=["our loop", "a loop of its own"])
@pytest.mark.parametrize("case", CASES)
def test_rounds_are_those_of_the_paper(tmp_path: Path, case: str, own: str) -> None:
    strategy, momentum, make = CASES[case]
    trainer = load(tmp_path, POINT + own, toml="hooks = true", features=(2,), classes=0)

    found = Federated(trainer, strategy, momentum).run()

    assert found == pytest.approx(oracle(make()), abs=1e-5)
    assert len({round(w, 3) for w in found}) == len(COHORTS)


def test_no_more_numbers_leave_a_site_than_the_strategy_named(tmp_path: Path) -> None:
    trainer = load(tmp_path, POINT, features=(2,), classes=0)

    def told(strategy: Strategy) -> dict[str, float]:
        offered = strategy.offer(strategy.init(trainer.initial()))
        return dict(Federated(trainer, strategy).share("b", offered).scalars)

    assert told(FedAvg()) == told(Scaffold()) == told(FedDyn()) == {}
    assert told(FedNova()) == {"normaliser": STEPS["b"]}
    assert told(QFedAvg()) == {"loss_before": pytest.approx(loss("b", 0.5))}


@pytest.mark.parametrize("case", CASES)
def test_a_site_makes_the_same_bits_again_and_writes_into_nothing(
    tmp_path: Path, case: str
) -> None:
    strategy, momentum, _ = CASES[case]
    trainer = load(tmp_path, POINT, features=(2,), classes=0)
    federated = Federated(trainer, strategy, momentum)
    offered = strategy.offer(strategy.init(trainer.initial()))
    federated.memories["a"] = federated.share("a", offered).share.memory
    for array in (*offered.values(), *federated.memories["a"].values()):
        array.flags.writeable = False

    one, other, again = (federated.share(site, offered).share for site in "aba")

    assert as_bytes(one.sent) == as_bytes(again.sent) != as_bytes(other.sent)
    assert as_bytes(one.memory) == as_bytes(again.memory)


NORMED = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

def loss(model, batch):
    return model(batch[0].float()).square().mean()
"""


@pytest.mark.parametrize("strategy", [FedNova(), FedDyn()], ids=["fednova", "feddyn"])
def test_running_statistics_are_refused_where_they_would_be_carried_away(
    tmp_path: Path, strategy: Strategy
) -> None:
    trainer = load(tmp_path, NORMED, features=(2,), classes=0)

    with pytest.raises(ProgramError, match=r"layer `1.running_mean` is a buffer"):
        Federated(trainer, strategy).share("b", strategy.offer(strategy.init(trainer.initial())))


@pytest.mark.parametrize("option", ["path", "gradient"])
def test_scaffold_averages_running_statistics_and_corrects_none(
    tmp_path: Path, option: str
) -> None:
    trainer = load(tmp_path, NORMED, features=(2,), classes=0)
    strategy = Scaffold(option=option)  # type: ignore[arg-type]
    offered = strategy.offer(strategy.init(trainer.initial()))

    share = Federated(trainer, strategy).share("b", offered).share

    assert not share.memory["1.running_mean"].any()
    assert share.sent["1.running_mean"].any()
    assert share.memory["2.weight"].any()


def test_a_loop_that_never_asks_for_the_penalty_is_found_out(tmp_path: Path) -> None:
    lazy = POINT + OWN.replace(" + config.hooks.penalty(model)", "")
    trainer = load(tmp_path, lazy, toml="hooks = true", features=(2,), classes=0)

    with pytest.raises(ProgramError, match=r"never called config\.hooks\.penalty"):
        Federated(trainer, FedNova()).share("a", trainer.initial())
