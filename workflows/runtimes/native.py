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
# ///
"""Rounds without a framework: questions go straight to the workers.

Started as ``python -m workflows.runtimes.native RUN_DIR``, never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from strategies import Parameters
from workflows.causes import Cause, CauseCode
from workflows.frames import Blob, FrameError, describe
from workflows.job import JobSpec
from workflows.model_file import ModelRef
from workflows.rounds import (
    LOSS,
    Question,
    SiteMeasures,
    SiteUpdate,
    codec_of,
    codec_seed,
    run_rounds,
)
from workflows.run_folder import StepFolder, run_step
from workflows.seeds import derive
from workflows.simulation import beginning, federation_of, record, simulate
from workflows.tasks import Measure, Part, Reply, SiteFailure, Train, TrainedSite
from workflows.workers import WorkerPool

Work: TypeAlias = Train | Measure


class DirectExchange:
    """Sites that are simulated by the pool's workers."""

    def __init__(self, pool: WorkerPool[Work], spec: JobSpec) -> None:
        self._pool = pool
        self._spec = spec

    def ask(self, question: Question) -> Iterator[SiteUpdate | SiteFailure]:
        """Have each site of the cohort train."""
        model = self._pool.broadcast(question.params)
        tasks = (self._task(question, site, model) for site in question.sites)
        for task, reply in self._pool.as_completed(tasks, question.deadline_s):
            site = str(task.site)
            if isinstance(reply, SiteFailure):
                yield _at_site(reply, site)
            else:
                yield _update(site, reply)

    def _task(self, question: Question, site: str, model: ModelRef) -> tuple[Work, Sequence[Blob]]:
        kept, blobs = describe(question.memories.get(site, {}))
        task = Train(
            site=site,
            model=model,
            local=self._spec.local,
            strategy=question.strategy,
            seed=derive(self._spec.init.seed, "train", question.round, site),
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
    with simulate(folder) as simulation:
        start = recorded or beginning(folder, simulation)
        exchange = DirectExchange(simulation.pool, folder.plan.spec)
        federation = federation_of(simulation, exchange)
        run_rounds(folder, federation, start, transcripts)


if __name__ == "__main__":
    sys.exit(run_step("federate", Path(sys.argv[1]), federate))
