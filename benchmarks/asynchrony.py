"""Accuracy over virtual time: a server that steps while sites train, and servers that wait.

Sites, model, partitions and local training are those of ``benchmarks.convergence``; a site's delay
is log-normal with median 1. The asynchronous strategies run on the very schedule of a job
(``workflows.arrivals``) and the strategies' own fold and step; the synchronous servers draw ten
sites a round and wait for the last of them, or for the eighth and drop the other two. All get the
same virtual time, the same number of sites at work, and a grid of three values for the one rate of
the server, judged at the middle spread of delays on a seed that is not among those reported.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial as bound
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np

from benchmarks.convergence import (
    COHORT,
    GOALS,
    LOCAL,
    SEEDS,
    SITES,
    TUNING_SEED,
    Curve,
    accuracy,
    answer,
    final,
    initial,
    lay_data,
    open_all,
    sites_of,
    worth,
)
from benchmarks.report import Curves, Figure, run_benchmark
from strategies import FedAvg, Parameters, Ring, Strategy
from strategies.fedasync import FedAsync
from strategies.fedbuff import FedBuff
from workflows.arrivals import SitesAtWork, VirtualTime
from workflows.seeds import derive

SIGMAS: Final = (0.5, 1.0, 1.5)
TUNING_SIGMA: Final = 1.0
ROUNDS: Final = 50
"""That a server which waits for all finishes in the virtual time that everyone is given."""
POINTS: Final = 200
"""At which a curve is looked at, evenly spaced in time."""
FIRST: Final = 8
BUFFER: Final = 5
PROCESSES: Final = min(2, os.cpu_count() or 1)
AHEAD: Final = "fedbuff"
GRIDS: Final[dict[str, tuple[Strategy, ...]]] = {
    "fedavg, waits for all 10": tuple(FedAvg(eta=eta) for eta in (1.0, 2.0, 3.0)),
    f"fedavg, first {FIRST} of 10": tuple(FedAvg(eta=eta) for eta in (1.0, 2.0, 3.0)),
    AHEAD: tuple(FedBuff(buffer=BUFFER, eta=eta) for eta in (1.0, 2.0, 3.0)),
    "fedasync": tuple(FedAsync(alpha=alpha) for alpha in (0.3, 0.6, 1.0)),
}


class Run(NamedTuple):
    """One curve that is asked for."""

    name: str
    strategy: Strategy
    sigma: float
    seed: int


def delays(sigma: float, seed: int, number: int) -> np.ndarray:
    """Of a cohort in a round, as ``workflows.arrivals`` draws them."""
    return np.exp(sigma * np.random.default_rng(derive(seed, "delays", number)).normal(size=COHORT))


def horizon(sigma: float) -> float:
    """Virtual time that everyone is given: the mean round that waits for all, ``ROUNDS`` times."""
    return float(np.mean([delays(sigma, 0, n).max() for n in range(20_000)])) * ROUNDS


def waiting(run: Run, needed: int) -> Iterator[tuple[float, Parameters]]:
    """Times and models of a server that waits for ``needed`` of its cohort and drops the others."""
    state, now, ring = run.strategy.init(initial(run.seed)), 0.0, Ring()
    sites = sites_of(run.seed)
    while True:
        yield now, state.params
        fold = run.strategy.zero(state)
        drawn = np.random.default_rng(derive(run.seed, "cohort", fold.round)).choice(
            SITES, COHORT, replace=False
        )
        took = delays(run.sigma, run.seed, fold.round)
        first = np.argsort(took)[:needed]
        for k in sorted(drawn[first]):
            update, _ = answer(run.strategy, run.seed, fold.round, sites[k], state.params, {})
            run.strategy.accumulate(fold, update, ring)
        now += float(took[first].max())
        state = run.strategy.step(state, run.strategy.finish(fold, ring))


def stepping(run: Run) -> Iterator[tuple[float, Parameters]]:
    """Times and models of a server that steps while sites train."""
    state, ring = run.strategy.init(initial(run.seed)), Ring()
    at_work = SitesAtWork(VirtualTime(sigma=run.sigma), run.seed, sites_of(run.seed), COHORT)
    versions = {1: state.params}
    while True:
        yield at_work.time, state.params
        fold = run.strategy.zero(state)
        arrived = at_work.arrive(run.strategy.buffered or 0)
        for site, asked in arrived:
            update, _ = answer(run.strategy, run.seed, asked, site, versions[asked], {})
            run.strategy.accumulate(fold, update, ring)
        starts = [(versions[one.asked], fold.round - one.asked) for one in arrived]
        state = run.strategy.blend(state, starts)
        state = run.strategy.step(state, run.strategy.finish(fold, ring))
        at_work.step()
        versions = {asked: versions[asked] for asked in at_work.rounds}
        versions[at_work.round] = state.params


def curve_of(run: Run, ends: dict[float, float]) -> Curve:
    """Accuracy of the model in force at each point of time; zeros if a value left the ring."""
    if run.strategy.buffered:
        course = stepping(run)
    else:
        course = waiting(run, FIRST if "first" in run.name else COHORT)
    points = np.linspace(0, ends[run.sigma], POINTS + 1)[1:]
    curve: Curve = []
    in_force: Parameters = {}
    try:
        for now, params in course:
            due = int(np.searchsorted(points, now)) - len(curve)
            if due > 0:
                curve += [accuracy(in_force, run.seed)] * due
            if len(curve) == POINTS:
                break
            in_force = params
    except Exception as error:  # noqa: BLE001 - a rate at which it diverges
        print(f"{run}: {error}", file=sys.stderr)
        return [0.0] * POINTS
    return curve


def time_to(curve: Curve, goal: float, end: float) -> float:
    """First point of time from which three in a row are at the goal; infinite if there is none."""
    for k in range(POINTS - 2):
        if min(curve[k : k + 3]) >= goal:
            return (k + 1) * end / POINTS
    return math.inf


def trainings_begun(name: str, sigma: float) -> float:
    """In a unit of virtual time, on average; those of sites that are dropped too."""
    if GRIDS[name][0].buffered:
        return COHORT / math.exp(sigma**2 / 2)
    needed = FIRST if "first" in name else COHORT
    rounds = [np.sort(delays(sigma, 0, number))[needed - 1] for number in range(20_000)]
    return COHORT / float(np.mean(rounds))


def told(times: Sequence[float]) -> str:
    """Median over seeds, and each of them."""
    words = ["not" if math.isinf(t) else f"{t:.0f}" for t in times]
    middle = median(times)
    return f"{'not' if math.isinf(middle) else f'{middle:.0f}'} ({', '.join(words)})"


def setting(strategy: Strategy) -> str:
    """What the grid chose."""
    name = "alpha" if isinstance(strategy, FedAsync) else "eta"
    return f"{name} = {getattr(strategy, name):g}"


Found = dict[tuple[float, str], list[Curve]]
Best = dict[str, Strategy]


def measure() -> Curves:
    """Tune on one seed, and run on the others."""
    start = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    ends = {sigma: horizon(sigma) for sigma in SIGMAS}
    dearest_first = sorted(SIGMAS, reverse=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in (TUNING_SEED, *SEEDS):
            lay_data(Path(folder), seed)
        context = multiprocessing.get_context("spawn")
        with context.Pool(PROCESSES, open_all, (folder,)) as pool:
            work = bound(curve_of, ends=ends)
            trials = [
                Run(name, strategy, TUNING_SIGMA, TUNING_SEED)
                for name, grid in GRIDS.items()
                for strategy in grid
            ]
            tuned: dict[str, list[tuple[float, Strategy]]] = {}
            for run, curve in zip(trials, pool.map(work, trials, chunksize=1), strict=True):
                tuned.setdefault(run.name, []).append((worth(curve), run.strategy))
            best = {name: max(tried, key=lambda one: one[0])[1] for name, tried in tuned.items()}
            runs = [Run(n, best[n], s, seed) for s in dearest_first for n in best for seed in SEEDS]
            curves = pool.map(work, runs, chunksize=1)
    found: Found = {(sigma, name): [] for sigma in SIGMAS for name in GRIDS}
    for run, curve in zip(runs, curves, strict=True):
        found[run.sigma, run.name].append(curve)
    figures = [
        Figure(
            name=f"sigma {sigma:g}, {name}, final accuracy",
            unit="",
            values=tuple(final(curve) for curve in three),
        )
        for (sigma, name), three in found.items()
    ]
    whole = Figure(name="whole run", unit="s", values=(time.monotonic() - start,))
    return Curves(
        figures=[*figures, whole],
        tables=tables(found, best, ends),
        plot=bound(write_plot, found, ends),
        shows="Accuracy by virtual time",
    )


def tables(found: Found, best: Best, ends: dict[float, float]) -> str:
    """Time to each goal and final accuracy for each spread of delays, as Markdown."""
    lines: list[str] = []
    for sigma in SIGMAS:
        end = ends[sigma]
        lines += [
            f"## sigma = {sigma:g}",
            "",
            f"Virtual time: {end:.0f} median delays.",
            "",
            "| server | chosen | time to 90 % | trainings begun | time to 95 % | final accuracy |",
            "|---|---|---|---|---|---|",
        ]
        for name in GRIDS:
            three = found[sigma, name]
            finals = [final(curve) for curve in three]
            to = [told([time_to(curve, goal, end) for curve in three]) for goal in GOALS]
            spread = f"{median(finals):.3f} ({', '.join(f'{end_:.3f}' for end_ in finals)})"
            to_90 = median(time_to(curve, GOALS[0], end) for curve in three)
            work = "" if math.isinf(to_90) else f"{to_90 * trainings_begun(name, sigma):.0f}"
            chosen = setting(best[name])
            lines.append(f"| {name} | {chosen} | {to[0]} | {work} | {to[1]} | {spread} |")
        lines += ["", verdict(sigma, found, end), ""]
    return "\n".join(lines)


def verdict(sigma: float, found: Found, end: float) -> str:
    """Against whom FedBuff pays and against whom not, by the median over the seeds."""
    lines: list[str] = []
    for rival in GRIDS:
        words: list[str] = []
        for goal in GOALS:
            mine, other = (
                median(time_to(curve, goal, end) for curve in found[sigma, name])
                for name in (AHEAD, rival)
            )
            if math.isinf(mine) and math.isinf(other):
                says = "neither gets there"
            elif math.isinf(other):
                says = "FedBuff alone gets there"
            elif math.isinf(mine):
                says = "FedBuff does NOT pay: it does not get there"
            elif mine < other:
                says = f"FedBuff pays, {other / mine:.1f} times as fast"
            else:
                says = f"FedBuff does NOT pay, {mine / other:.1f} times as long"
            words.append(f"to {goal:.0%}: {says}")
            spent = [t * trainings_begun(n, sigma) for t, n in ((mine, AHEAD), (other, rival))]
            if not any(map(math.isinf, spent)) and spent[0] > spent[1]:
                dearer = spent[0] / spent[1]
                words.append(
                    f"it does NOT pay where sites' work is dear, {dearer:.1f} times as much"
                )
        if rival != AHEAD:
            lines.append(f"- Against `{rival}`, {'; '.join(words)}.")
    return "\n".join(lines)


def write_plot(found: Found, ends: dict[float, float], path: Path) -> None:
    """Median accuracy over the seeds by virtual time, and the spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SIGMAS), figsize=(13, 4.5), sharey=True)
    for axes, sigma in zip(panels, SIGMAS, strict=True):
        at = np.linspace(0, ends[sigma], POINTS + 1)[1:]
        for k, name in enumerate(GRIDS):
            curves = np.array(found[sigma, name])
            axes.plot(at, np.median(curves, axis=0), label=name, linewidth=1.5, color=f"C{k}")
            axes.fill_between(
                at, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=f"C{k}", linewidth=0
            )
        axes.set(xlabel="virtual time (median delays)", ylim=(0, 1), xlim=(0, ends[sigma]))
        axes.set_title(f"sigma = {sigma:g}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on the central part")
    panels[0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> int:
    """Say what is measured, and run it."""
    return run_benchmark(
        "asynchrony",
        "Asynchrony in virtual time",
        f"digits-mlp on digits, divided by Dirichlet 0.1 over {SITES} sites, {COHORT} of them at "
        f"work at a time; {LOCAL.epochs} local epochs of SGD at {LOCAL.optimizer.lr} in batches of "
        f"{LOCAL.batch_size}; seeds {', '.join(map(str, SEEDS))}. Delays are log-normal with "
        "median 1, independent of a site's examples, drawn anew each time. Everyone is given the "
        f"virtual time in which a server that waits for all finishes {ROUNDS} rounds on average. "
        "Accuracy is on a fifth of the digits that no site has. Time to a goal: the first of "
        f"three points in a row at it, {POINTS} points in all; median, and each seed. Final: mean "
        f"of the last ten points. FedBuff has a buffer of {BUFFER}; both asynchronous servers "
        "weigh by (1 + staleness)**-1/2, and FedAsync has rho = 0.005. Each server has a grid of "
        "three values (eta 1, 2, 3; FedAsync: alpha 0.3, 0.6, 1), judged at sigma = "
        f"{TUNING_SIGMA:g} on another seed by the mean accuracy over all points. Trainings begun: "
        "the median time to 90 % times the mean trainings in a unit of time, those of sites that "
        "are dropped too; sites are paid for that, where only time counts for the curves. A round "
        "of a server that waits may span several points, which makes three in a row easier for "
        "it.",
        ["numpy", "torch"],
        measure,
    )


if __name__ == "__main__":
    sys.exit(main())
