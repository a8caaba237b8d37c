# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["numpy", "msgspec", "safetensors", "torch==2.13.0", "scikit-learn", "xgboost-cpu"]
#
# [tool.foedus]
# summary = "No framework: real rounds over local workers. The oracle that the others must equal."
# modes = ["simulation"]
# strategies = ["*"]
# mechanisms = []
# codecs = ["*"]
# most_sites = 10_000_000
# vectorizes = true
# spreads = true
# ///
"""Rounds without a framework: questions go straight to the workers.

Started as ``python -m workflows.runtimes.native RUN_DIR``, never imported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from strategies import Parameters, Partial, ServerState
from workflows.causes import Cause, CauseCode
from workflows.exchange import Question, SiteMeasures
from workflows.folding import FoldedSites, SiteUpdate, codec_of, codec_seed, fold_of, training_seed
from workflows.frames import Blob, FrameError, describe
from workflows.groups import groups_of
from workflows.metrics import LOSS
from workflows.model_file import ModelRef
from workflows.plan import Plan
from workflows.pool import Pool
from workflows.rounds import run_rounds
from workflows.run_folder import StepFolder, run_step
from workflows.shards import simulate_on_shards
from workflows.simulation import beginning, federation_of, record, simulate
from workflows.tasks import (
    Measure,
    Part,
    Reply,
    SiteFailure,
    Train,
    TrainedMany,
    TrainedSite,
    TrainMany,
)

Work: TypeAlias = Train | TrainMany | Measure

RUN_S: Final = 0.25
"""About how long a worker trains sites before it sends the fold of them."""
RUNS: Final = 8
"""Runs of sites for each worker and round, at least, so that all are busy to the end."""


class DirectExchange:
    """Sites that are simulated by the pool's workers.

    Where answers are of use as parts of a sum alone, a worker trains a run of sites and folds them
    itself. How long a run is follows from how long the sites before took; as sums are exact, it
    does not show in the result. Who runs the program could always have written any site's update,
    so a fold of its making is trusted no less; that it cannot wrap the sums is made sure of here.
    """

    def __init__(self, pool: Pool[Any], plan: Plan, num_examples: Mapping[str, int]) -> None:
        self._pool = pool
        self._num_examples = num_examples
        self._plan = plan
        self._spec = plan.spec
        self._site_s: float | None = None

    def ask(self, question: Question) -> Iterator[SiteUpdate | FoldedSites | SiteFailure]:
        """Have each site of the cohort train."""
        ends = time.monotonic() + question.deadline_s
        model = self._pool.broadcast(question.params)
        alone = list(question.sites)
        if question.may_fold and self._fits(question):
            alone = []
            cuts = self._groups(question) if self._spec.runtime.vectorized else self._cuts(question)
            for run, outcome in self._ask_runs(question, model, cuts, question.deadline_s):
                if not isinstance(outcome, SiteFailure):
                    yield outcome
                elif len(run.sites) == 1 or outcome.cause.code is CauseCode.DEADLINE_PASSED:
                    yield from (_at_site(outcome, site) for site in run.sites)
                else:  # one of them ended the worker, or spoiled it for its group
                    alone += run.sites
        if alone:
            left_s = max(0.0, ends - time.monotonic())
            yield from self._ask_each(question, sorted(alone), model, left_s)

    def _ask_each(
        self, question: Question, sites: Sequence[str], model: ModelRef, left_s: float
    ) -> Iterator[SiteUpdate | FoldedSites | SiteFailure]:
        if self._spec.runtime.vectorized:
            cuts = ((site,) for site in sites)
            for run, outcome in self._ask_runs(question, model, cuts, left_s):
                if isinstance(outcome, SiteFailure):
                    yield _at_site(outcome, run.sites[0])
                else:
                    yield outcome
            return
        tasks = (self._task(question, site, model) for site in sites)
        for task, reply in self._pool.as_completed(tasks, left_s):
            site = str(task.site)
            if isinstance(reply, SiteFailure):
                yield _at_site(reply, site)
            else:
                yield _update(site, reply)

    def _ask_runs(
        self,
        question: Question,
        model: ModelRef,
        cuts: Iterable[tuple[str, ...]],
        left_s: float,
    ) -> Iterator[tuple[TrainMany, FoldedSites | SiteFailure]]:
        """Have runs of sites trained and folded."""
        runs = ((self._run(question, sites, model), ()) for sites in cuts)
        for run, reply in self._pool.as_completed(runs, left_s):
            if isinstance(reply, SiteFailure):
                yield run, reply
            else:
                yield run, self._folded(run, reply, question)

    def _fits(self, question: Question) -> bool:
        """Whether the sums of a fold are within what a worker may send."""
        zero = self._zero(question)
        return sum(x.nbytes for x in zero.sums.values()) <= self._spec.limits.output_mb << 20

    def _zero(self, question: Question) -> Partial:
        model = question.strategy.model_of(question.params)
        return question.strategy.zero(ServerState(model, round=question.round - 1))

    def _cuts(self, question: Question) -> Iterator[tuple[str, ...]]:
        """The cohort in runs, each as long as is known to be good when it is asked for."""
        most = max(1, len(question.sites) // (RUNS * self._pool.num_workers))
        run_s = min(RUN_S, self._spec.limits.train_s / 4)
        start = 0
        while start < len(question.sites):
            length = 1 if self._site_s is None else max(1, int(run_s / max(self._site_s, 1e-9)))
            sites = question.sites[start : start + min(length, most)]
            start += len(sites)
            yield sites

    def _groups(self, question: Question) -> Iterator[tuple[str, ...]]:
        """The cohort in the groups that are trained together, which must show in no other way.

        A run is one group, so that a group that fails leaves the others as they are.
        """
        sites = sorted(question.sites, key=lambda site: (self._num_examples[site], site))
        return groups_of(sites, self._num_examples.__getitem__)

    def _run(self, question: Question, sites: tuple[str, ...], model: ModelRef) -> TrainMany:
        counts = question.counts
        return TrainMany(
            sites=sites,
            counts=tuple(counts[site] for site in sites) if counts else None,
            round=question.round,
            model=model,
            spec=self._spec,
            plan=self._plan.plan_digest,
            job=self._plan.job,
        )

    def _folded(self, run: TrainMany, reply: Reply, question: Question) -> FoldedSites:
        """A worker's fold, checked as far as its sums could do harm."""
        answer: TrainedMany = reply.answer
        self._site_s = answer.seconds / len(run.sites)
        try:
            return fold_of(run, answer, reply.arrays, self._zero(question))
        except FrameError as error:
            detail = f"the reply cannot be understood: {error}"
            cause = Cause(code=CauseCode.UPDATE_INCOMPATIBLE, detail=detail)
            failures = tuple(msgspec.structs.replace(cause, site=site) for site in run.sites)
            return FoldedSites(self._zero(question), (), {}, failures, 0)

    def _task(self, question: Question, site: str, model: ModelRef) -> tuple[Work, Sequence[Blob]]:
        kept, blobs = describe(question.memories.get(site, {}))
        task = Train(
            site=site,
            model=model,
            local=self._spec.local,
            strategy=question.strategy,
            seed=training_seed(self._spec, question.round, site),
            memory=kept,
            codec=codec_of(self._spec, site),
            codec_seed=codec_seed(self._spec, question.round, site),
        )
        return task, blobs

    def measure(
        self, round: int, params: Parameters, sites: Sequence[str | None]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the model measured at each site."""
        return self._measure(params, sites, self._spec.evaluate.metrics, "held-out")

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the model's loss measured on what each site trains on."""
        return self._measure(params, sites, (LOSS,), "training")

    def _measure(
        self,
        params: Parameters,
        sites: Sequence[str | None],
        names: tuple[str, ...],
        part: Part,
    ) -> Iterator[SiteMeasures | SiteFailure]:
        model = self._pool.broadcast(params)
        tasks = (Measure(site=site, part=part, model=model, metrics=names) for site in sites)
        for task, reply in self._pool.as_completed(_bare(tasks), self._spec.cohort.deadline_s):
            if isinstance(reply, SiteFailure):
                yield _at_site(reply, task.site)
            else:
                yield SiteMeasures(task.site, reply.answer.values, reply.answer.num_examples)


def _update(site: str, reply: Reply) -> SiteUpdate | SiteFailure:
    """What a site's reply says, if it is an update."""
    answer: TrainedSite = reply.answer
    try:
        delta, memory = reply.arrays, reply.memory
    except FrameError as error:
        detail = f"the reply cannot be understood: {error}"
        return SiteFailure(Cause(code=CauseCode.UPDATE_INCOMPATIBLE, detail=detail, site=site))
    return SiteUpdate(
        site,
        delta,
        answer.num_examples,
        answer.loss,
        reply.size_bytes,
        answer.scalars,
        memory,
    )


def _bare(tasks: Iterator[Work]) -> Iterator[tuple[Work, Sequence[Blob]]]:
    return ((task, ()) for task in tasks)


def _at_site(failure: SiteFailure, site: str | None) -> SiteFailure:
    cause: Cause = msgspec.structs.replace(failure.cause, site=site)
    return SiteFailure(cause)


def federate(folder: StepFolder) -> None:
    """The step."""
    recorded, transcripts = record(folder)
    is_spread = folder.plan.spec.runtime.shards > 1
    opened = simulate_on_shards(folder, sys.stdin.buffer) if is_spread else simulate(folder)
    with opened as simulation:
        start = recorded or beginning(folder, simulation)
        exchange = DirectExchange(simulation.pool, folder.plan, simulation.num_examples)
        federation = federation_of(simulation, exchange)
        run_rounds(folder, federation, start, transcripts)


if __name__ == "__main__":
    sys.exit(run_step("federate", Path(sys.argv[1]), federate))
