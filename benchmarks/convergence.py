"""Rounds that each optimiser needs, on digits that are divided very unevenly.

Every optimiser trains the same model on the same partitions with the same cohorts, in a plain loop
over the platform's trainer and the strategies' own methods: no runtime, no record. Each gets a grid
of three values for its server rate (FedDyn, which has none: for alpha), tried on a seed that is not
among those reported; local training is the same for all. Centralised training on all sites'
examples and training at each site alone stand beside them.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial as bound
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.report import Curves, Figure, run_benchmark
from strategies import KINDS, ClientHalf, FedAvg, ModelUpdate, Parameters, Ring, Strategy
from strategies.fedavgm import FedAvgM
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from strategies.fedprox import FedProx
from strategies.qfedavg import QFedAvg
from strategies.scaffold import Scaffold
from workflows.data.examples import Examples
from workflows.data.partitioners import Dirichlet
from workflows.data.preparation import Prepared, open_prepared, prepare
from workflows.job import Local, Partitioned, Sgd
from workflows.programs import builtin_folder
from workflows.seeds import derive
from workflows.trainers import Trainer, load_trainer
from workflows.trainers.client_half import train_site

SITES: Final = 50
COHORT: Final = 10
ROUNDS: Final = 150
SEEDS: Final = (1, 2, 3)
TUNING_SEED: Final = 0
LOCAL: Final = Local(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1))
GOALS: Final = (0.90, 0.95)
ELSEWHERE: Final = (
    *("bulyan", "coordinate-median", "geometric-median", "krum", "multi-krum", "norm-bounding"),
    *("trimmed-mean", "fltrust", "fedasync", "fedbuff", "tally"),
)
"""Measured by ``benchmarks.robustness`` and ``benchmarks.asynchrony``; a tally learns nothing."""
GRIDS: Final[dict[str, tuple[Strategy, ...]]] = {
    "fedavg": tuple(FedAvg(eta=eta) for eta in (1.0, 2.0, 3.0)),
    "fedprox": tuple(FedProx(mu=0.01, eta=eta) for eta in (1.0, 2.0, 3.0)),
    "fedavgm": tuple(FedAvgM(eta=eta) for eta in (0.3, 1.0, 2.0)),
    "fedadagrad": tuple(FedAdagrad(eta=eta) for eta in (0.03, 0.1, 0.3)),
    "fedadam": tuple(FedAdam(eta=eta) for eta in (0.01, 0.03, 0.1)),
    "fedyogi": tuple(FedYogi(eta=eta) for eta in (0.01, 0.03, 0.1)),
    "fednova": tuple(FedNova(eta=eta) for eta in (1.0, 2.0, 3.0)),
    "qfedavg": tuple(QFedAvg(q=0.1, eta=eta) for eta in (1.0, 2.0, 3.0)),
    "scaffold": tuple(Scaffold(eta=eta) for eta in (1.0, 2.0, 3.0)),
    "scaffold, option I": tuple(Scaffold(eta=eta, option="gradient") for eta in (1.0, 2.0, 3.0)),
    "feddyn": tuple(FedDyn(alpha=alpha) for alpha in (0.03, 0.1, 0.3)),
}
Curve = list[float]

_trainer: Trainer
_data: dict[int, Prepared] = {}


def lay_data(folder: Path, seed: int) -> None:
    """Divide the digits under a seed."""
    data = Partitioned(
        dataset="digits",
        sites=SITES,
        partitioner=Dirichlet(alpha=0.1),
        holdout=0.0,
        central=0.2,
        seed=seed,
    )
    prepare(data, folder, folder / str(seed))


def open_all(folder: str) -> None:
    """Give a process the program and the data."""
    global _trainer
    _trainer = load_trainer(builtin_folder("digits-mlp"), {}, 0)
    for seed in (TUNING_SEED, *SEEDS):
        _data[seed] = open_prepared(Path(folder) / str(seed))


def initial(seed: int) -> dict[str, np.ndarray]:
    """The model under a seed: the program's, permuted within each layer."""
    rng = np.random.default_rng(derive(seed, "initial"))
    return {
        name: rng.permutation(x.reshape(-1)).reshape(x.shape)
        for name, x in _trainer.initial().items()
    }


def accuracy(params: Parameters, seed: int) -> float:
    """On the central part."""
    return _trainer.evaluate(params, _data[seed].central(), ["accuracy"]).values["accuracy"]


def sites_of(seed: int) -> Sequence[str]:
    """Names of the sites, in order."""
    return _data[seed].sites


def answer(
    strategy: Strategy, seed: int, number: int, site: str, offered: Parameters, memory: Parameters
) -> tuple[ModelUpdate, Parameters]:
    """What a site sends when it is asked in a round, and what it keeps."""
    share = train_site(
        _trainer,
        _data[seed].training(site),
        LOCAL,
        strategy,
        offered,
        memory,
        derive(seed, "train", number, site),
    )
    update = ModelUpdate(site, number, share.share.sent, share.num_examples, share.scalars)
    return update, share.share.memory


def federated(strategy: Strategy, seed: int) -> Curve:
    """Accuracy after each round; zeros from where a value left the ring."""
    sites, ring = sites_of(seed), Ring()
    state = strategy.init(initial(seed))
    memories: dict[str, Parameters] = {}
    curve: Curve = []
    for number in range(1, ROUNDS + 1):
        rng = np.random.default_rng(derive(seed, "cohort", number))
        partial = strategy.zero(state)
        partial.population = SITES
        offered = strategy.offer(state)
        for k in sorted(rng.choice(SITES, COHORT, replace=False)):
            site = sites[k]
            memory = memories.get(site, {})
            update, memories[site] = answer(strategy, seed, number, site, offered, memory)
            strategy.accumulate(partial, update, ring)
        state = strategy.step(state, strategy.finish(partial, ring))
        curve.append(accuracy(state.params, seed))
    return curve


def together(seed: int) -> Curve:
    """Centralised: each round as many examples pass as in a round of the cohort, on the whole."""
    data = _data[seed]
    parts = [data.training(site) for site in data.sites]
    x, y = np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])
    params, share, curve = initial(seed), len(y) * COHORT // SITES, []
    for number in range(1, ROUNDS + 1):
        rows = np.random.default_rng(derive(seed, "centre", number)).choice(len(y), share, False)
        examples = Examples(x[rows], y[rows])
        trained = _trainer.train(params, examples, LOCAL, ClientHalf(), number)
        params = {name: params[name] + d for name, d in trained.delta.items()}
        curve.append(accuracy(params, seed))
    return curve


def alone(seed: int) -> Curve:
    """Local only: the mean over sites of the accuracy of a model that saw one site's examples."""
    data, final = _data[seed], []
    epochs = LOCAL.epochs * ROUNDS * COHORT // SITES
    local = Local(epochs=epochs, batch_size=LOCAL.batch_size, optimizer=LOCAL.optimizer)
    for site in data.sites:
        params = initial(seed)
        trained = _trainer.train(params, data.training(site), local, ClientHalf(), 1)
        final.append(accuracy({n: params[n] + d for n, d in trained.delta.items()}, seed))
    return [float(np.mean(final))] * ROUNDS


def curve_of(work: tuple[str, Strategy | None, int]) -> Curve:
    """One run."""
    name, strategy, seed = work
    if strategy is None:
        return together(seed) if name == "centralised" else alone(seed)
    try:
        return federated(strategy, seed)
    except Exception as error:  # noqa: BLE001 - a rate at which it diverges
        print(f"{name} {strategy}: {error}", file=sys.stderr)
        return [0.0] * ROUNDS


def rounds_to(curve: Curve, goal: float) -> float:
    """First round from which three in a row are at the goal; infinite if there is none."""
    for k in range(len(curve) - 2):
        if min(curve[k : k + 3]) >= goal:
            return k + 1
    return math.inf


def final(curve: Curve) -> float:
    """Mean accuracy of the last ten rounds."""
    return float(np.mean(curve[-10:]))


def worth(curve: Curve) -> float:
    """By which a grid is judged: the mean accuracy over all rounds."""
    return float(np.mean(curve))


def told(rounds: Sequence[float]) -> str:
    """Median of rounds over seeds, and each of them."""
    words = ["never" if math.isinf(r) else f"{r:.0f}" for r in rounds]
    middle = median(rounds)
    return f"{'never' if math.isinf(middle) else f'{middle:.0f}'} ({', '.join(words)})"


def setting(strategy: Strategy) -> str:
    """What the grid chose."""
    name = "alpha" if isinstance(strategy, FedDyn) else "eta"
    return f"{name} = {getattr(strategy, name):g}"


def measure() -> Curves:
    """Tune on one seed, and run on the others."""
    arrays = {kind for kind, cls in KINDS.items() if cls.model_kind == "arrays"}
    untested = arrays - {str(g[0].__struct_config__.tag) for g in GRIDS.values()}
    if untested - set(ELSEWHERE):
        raise SystemExit(f"no grid for {', '.join(sorted(untested - set(ELSEWHERE)))}")
    start = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        for seed in (TUNING_SEED, *SEEDS):
            lay_data(Path(folder), seed)
        context = multiprocessing.get_context("spawn")
        with context.Pool(os.cpu_count(), open_all, (folder,)) as pool:
            trials = [(n, s, TUNING_SEED) for n, grid in GRIDS.items() for s in grid]
            tuned = pool.map(curve_of, trials, chunksize=1)
            best: dict[str, Strategy] = {}
            for name, grid in GRIDS.items():
                mine = [worth(c) for (n, _, _), c in zip(trials, tuned, strict=True) if n == name]
                best[name] = grid[int(np.argmax(mine))]
            asked: list[tuple[str, Any]] = [*best.items(), ("centralised", None), ("alone", None)]
            work = [(n, s, seed) for n, s in asked for seed in SEEDS]
            curves = pool.map(curve_of, work, chunksize=1)
    found: dict[str, list[Curve]] = {}
    for (name, _, _), curve in zip(work, curves, strict=True):
        found.setdefault(name, []).append(curve)
    figures = [
        Figure(name=f"{name}, final accuracy", unit="", values=tuple(final(c) for c in three))
        for name, three in found.items()
    ]
    whole = Figure(name="whole run", unit="s", values=(time.monotonic() - start,))
    return Curves(
        figures=[*figures, whole],
        tables=table(found, best),
        plot=bound(write_plot, found),
        shows="Accuracy by round",
    )


def table(found: dict[str, list[Curve]], best: dict[str, Strategy]) -> str:
    """Rounds to each goal and final accuracy as Markdown."""
    lines = [
        "| optimiser | chosen | rounds to 90 % | rounds to 95 % | final accuracy |",
        "|---|---|---|---|---|",
    ]
    for name, three in found.items():
        ends = [final(c) for c in three]
        to = [
            "" if name == "alone" else told([rounds_to(c, goal) for c in three]) for goal in GOALS
        ]
        chosen = setting(best[name]) if name in best else ""
        spread = f"{median(ends):.3f} ({', '.join(f'{end:.3f}' for end in ends)})"
        lines.append(f"| {name} | {chosen} | {to[0]} | {to[1]} | {spread} |")
    return "\n".join(lines) + "\n"


def write_plot(found: dict[str, list[Curve]], path: Path) -> None:
    """Median accuracy over the seeds by round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    styles = ["-", "--", ":"]
    for k, (name, three) in enumerate(found.items()):
        middle = np.median(np.array(three), axis=0)
        is_reference = name in ("centralised", "alone")
        axes.plot(
            range(1, ROUNDS + 1),
            middle,
            styles[k % 3],
            label=name,
            linewidth=2.0 if is_reference else 1.3,
            color="black" if is_reference else f"C{k % 10}",
        )
    axes.set(xlabel="round", ylabel="accuracy on the central part", ylim=(0, 1), xlim=(1, ROUNDS))
    axes.set_title(f"digits, Dirichlet 0.1 over {SITES} sites, {COHORT} a round, median of 3 seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncol=2, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> int:
    """Say what is measured, and run it."""
    return run_benchmark(
        "convergence",
        "Convergence of the optimisers",
        f"digits-mlp on digits, divided by Dirichlet 0.1 over {SITES} sites, {COHORT} of them a "
        f"round for {ROUNDS} rounds; {LOCAL.epochs} local epochs of SGD at {LOCAL.optimizer.lr} in "
        f"batches of {LOCAL.batch_size}; seeds {', '.join(map(str, SEEDS))}. Accuracy is on a "
        "fifth of the digits that no site has. Rounds to a goal: the first of three in a row at "
        "it; median, and each seed. Final: mean of the last ten rounds. Each optimiser's grid has "
        "three server rates (FedDyn: alphas), judged on another seed by the mean accuracy over all "
        "rounds; FedProx has mu = 0.01, q-FedAvg q = 0.1. Centralised training "
        "passes as many examples a round as the cohort, drawn from all; alone is the mean over "
        "sites that train by themselves as long as they would have been drawn.",
        ["numpy", "torch"],
        measure,
    )


if __name__ == "__main__":
    sys.exit(main())
