"""What a worker does with its tasks: the developer's program and its data, loaded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import prod
from pathlib import Path

import numpy as np

from strategies import ROOT, Parameters, ServerState, SiteShare, Strategy
from workflows.analyses.columns import Columns
from workflows.answering import answer_to
from workflows.causes import Cause, CauseCode
from workflows.codecs import AnyCodec, Unencodable
from workflows.data.preparation import Prepared as PreparedData
from workflows.data.preparation import open_prepared, prepare
from workflows.folding import SiteUpdate, Terms, codec_seed, fold_answer, training_seed
from workflows.frames import Blob, arrays_from, describe
from workflows.job import JobSpec, Local
from workflows.model_file import ModelRef, map_model
from workflows.tasks import (
    Answer,
    AnyTask,
    Arrays,
    Done,
    Export,
    Failed,
    FoldedSite,
    Initial,
    Load,
    Measure,
    Measures,
    Open,
    OpenData,
    Opened,
    OpenQuery,
    Part,
    Prepare,
    Prepared,
    SiteFailure,
    Train,
    TrainedMany,
    TrainedSite,
    TrainMany,
)
from workflows.trainers import load_trainer
from workflows.trainers.analysis_trainer import AnalysisTrainer
from workflows.trainers.client_half import Share, conclude, train_site
from workflows.trainers.trainer import GroupTrainer, Measured, ProgramError, Trainer


class NotOpened(Exception):
    """A task came before what it needs was opened: a bug of the step."""


class Workbench:
    """One worker's program, data and the model it last saw."""

    def __init__(self, load: Callable[..., Trainer] = load_trainer) -> None:
        """An empty bench; ``load`` is what ``Open`` calls."""
        self._load = load
        self._trainer: Trainer | None = None
        self._data: PreparedData | None = None
        self._model: tuple[int, dict[str, np.ndarray]] = (0, {})

    @property
    def trainer(self) -> Trainer:
        """The loaded program.

        Raises:
            NotOpened: There is none.
        """
        if self._trainer is None:
            raise NotOpened("no program was opened")
        return self._trainer

    @property
    def data(self) -> PreparedData:
        """The mapped data.

        Raises:
            NotOpened: There is none.
        """
        if self._data is None:
            raise NotOpened("no data was opened")
        return self._data

    def model(self, ref: ModelRef) -> dict[str, np.ndarray]:
        """Arrays of a model, mapped when it is first asked for."""
        if self._model[0] != ref.version:
            self._model = (ref.version, map_model(ref))
        return self._model[1]

    def handle(self, task: AnyTask, blobs: list[bytes]) -> tuple[Answer, Sequence[Blob]]:
        """Do one task.

        Raises:
            ProgramError: The program failed.
            DataError: The data cannot be used.
            NotOpened: The step forgot to open something.
        """
        match task:
            case Load():
                import_module(f"workflows.trainers.{task.framework}_trainer")
                if task.vectorized:
                    import_module("workflows.trainers.together").warm_up()
                return Done(), ()
            case Open():
                self._trainer = self._load(
                    Path(task.program), task.config, task.seed, task.features, task.classes
                )
                return Opened(facts=self._trainer.facts), ()
            case OpenQuery():
                known = Columns(self.data.columns, prod(self.data.features), task.label)
                self._trainer = AnalysisTrainer(
                    task.query, known, self.data.classes, task.minimum_count
                )
                return Opened(facts=self._trainer.facts), ()
            case Prepare():
                prepare(task.data, Path(task.inputs), Path(task.folder))
                return self._open_data(Path(task.folder)), ()
            case OpenData():
                return self._open_data(Path(task.folder)), ()
            case Initial():
                specs, made = describe(self.trainer.initial())
                return Arrays(arrays=specs), made
            case Train():
                memory = arrays_from(task.memory, blobs)
                trained = self.train(
                    self.model(task.model),
                    task.site,
                    task.local,
                    task.strategy,
                    memory,
                    task.seed,
                )
                share = encoded(trained.share, task.codec, memory, task.codec_seed)
                specs, made = describe(share.sent)
                kept, to_keep = describe(share.memory)
                answer = TrainedSite(
                    arrays=specs,
                    num_examples=trained.num_examples,
                    loss=trained.loss,
                    scalars=trained.scalars,
                    memory=kept,
                )
                return answer, [*made, *to_keep]
            case TrainMany():
                return self.train_many(task)
            case Measure():
                model = self.model(task.model)
                measured = self.measure(model, task.site, task.metrics, task.part)
                return Measures(values=measured.values, num_examples=measured.num_examples), ()
            case Export():
                folder = Path(task.folder)
                folder.mkdir(parents=True, exist_ok=True)
                samples = some_samples(self.data, task.num_samples)
                self.trainer.export(self.model(task.model), samples, folder)
                return Done(), ()

    def train(
        self,
        offered: Mapping[str, np.ndarray],
        site: str,
        local: Local,
        strategy: Strategy,
        memory: Mapping[str, np.ndarray],
        seed: int,
    ) -> Share:
        """Train one site, or the central part for ``ROOT``, by the strategy's client half.

        Raises:
            ProgramError: The program failed.
        """
        examples = self.data.central() if site == ROOT else self.data.training(site)
        return train_site(self.trainer, examples, local, strategy, offered, memory, seed)

    def train_many(self, task: TrainMany) -> tuple[TrainedMany, Sequence[Blob]]:
        """Train some sites and fold them; one that fails does not keep the others from it."""
        began, spec = time.perf_counter(), task.spec
        offered = self.model(task.model)
        terms = Terms(task.plan, task.job, spec)
        counts = dict(zip(task.sites, task.counts, strict=True)) if task.counts else None
        model = spec.strategy.model_of(offered)
        partial = spec.strategy.zero(ServerState(model, round=task.round - 1))
        found = self._together(task, offered) if spec.runtime.vectorized else {}

        def train(site: str, _: Sequence[bytes]) -> tuple[Answer, Sequence[Blob]]:
            share = found.pop(site, None)
            if share is None:
                seed = training_seed(spec, task.round, site)
                share = self.train(offered, site, spec.local, spec.strategy, {}, seed)
            if isinstance(share, ProgramError):
                raise share
            updates[:] = [update_of(spec, task.round, site, share)]
            return Done(), [x.data for x in updates[0].delta.values()]

        updates: list[SiteUpdate] = []
        sites: list[FoldedSite | Failed] = []
        for site in task.sites:
            answer, _ = answer_to(train, site, [], spec.limits.output_mb)
            if isinstance(answer, Failed):
                sites.append(answer)
                continue
            update = updates.pop()
            try:
                commitment = fold_answer(terms, task.round, update, model, partial, counts)
            except SiteFailure as failure:
                sites.append(Failed(cause=failure.cause))
                continue
            sites.append(
                FoldedSite(commitment=commitment, loss=update.loss, size_bytes=update.size_bytes)
            )
        specs, made = describe(partial.sums)
        seconds = time.perf_counter() - began
        return TrainedMany(
            arrays=specs, weight=partial.weight, sites=tuple(sites), seconds=seconds
        ), made

    def _together(self, task: TrainMany, offered: Parameters) -> dict[str, Share | ProgramError]:
        """What training the sites as one group gives for each.

        Raises:
            ProgramError: The program failed, or cannot be trained so.
        """
        spec, trainer = task.spec, self.trainer
        if not isinstance(trainer, GroupTrainer):
            detail = "sites of this program cannot be trained together"
            raise ProgramError(Cause(code=CauseCode.PROGRAM_RAISED, detail=detail))
        trained = trainer.train_together(
            spec.strategy.model_of(offered),
            [self.data.training(site) for site in task.sites],
            spec.local,
            spec.strategy.half_at(offered, {}),
            [training_seed(spec, task.round, site) for site in task.sites],
        )
        found: dict[str, Share | ProgramError] = {}
        for site, one in zip(task.sites, trained, strict=True):
            if isinstance(one, ProgramError):
                found[site] = one
            else:
                found[site] = conclude(spec.strategy, one, offered, {})
        return found

    def measure(
        self,
        params: Mapping[str, np.ndarray],
        site: str | None,
        metrics: Sequence[str],
        part: Part = "held-out",
    ) -> Measured:
        """The model on a part of a site's examples, or on the central one; nothing on no examples.

        Raises:
            ProgramError: The program failed.
        """
        if site is None:
            examples = self.data.central()
        elif part == "training":
            examples = self.data.training(site)
        else:
            examples = self.data.held_out(site)
        if not len(examples):
            return Measured({}, 0)
        return self.trainer.evaluate(params, examples, metrics)

    def _open_data(self, folder: Path) -> Prepared:
        self._data = open_prepared(folder)
        return Prepared(
            num_sites=len(self._data.sites),
            num_examples=self._data.num_examples,
            features=self._data.features,
            num_classes=self._data.num_classes,
            central=len(self._data.central()),
        )


def encoded(share: SiteShare, codec: AnyCodec, memory: Parameters, seed: int) -> SiteShare:
    """``share`` as it leaves the site, and what the site keeps for the codec too.

    Args:
        share: What the strategy made of the training.
        codec: How it travels.
        memory: What the site kept when it was last drawn, for strategy or codec; never for both,
            as a strategy with a memory goes with the codec none alone.
        seed: Of what is random in the encoding.

    Raises:
        ProgramError: The codec has no form for a value of it.
    """
    try:
        coded = codec.conclude(share.sent, memory if codec.has_memory else {}, seed)
        return SiteShare(coded.sent, {**share.memory, **coded.memory})
    except Unencodable as error:
        cause = Cause(code=CauseCode.UPDATE_NOT_FINITE, detail=f"after training, {error}")
        raise ProgramError(cause) from error


def update_of(spec: JobSpec, round: int, site: str, share: Share) -> SiteUpdate:
    """What a site would send.

    Raises:
        ProgramError: The codec has no form for a value of it.
    """
    sent = encoded(share.share, spec.codec, {}, codec_seed(spec, round, site)).sent
    size_bytes = sum(x.nbytes for x in sent.values())
    return SiteUpdate(site, sent, share.num_examples, share.loss, size_bytes, share.scalars)


def some_samples(data: PreparedData, num_samples: int) -> np.ndarray:
    """Features that no site trained on, as far as there are any."""
    for find in (data.held_out, data.training):
        picked, wanted = [data.central().x[:num_samples]], num_samples
        wanted -= len(picked[0])
        for site in data.sites:
            if not wanted or (isinstance(data.num_examples, int) and not len(find(site))):
                break  # one of sites that are all alike tells of the others
            picked.append(find(site).x[:wanted])
            wanted -= len(picked[-1])
        if wanted < num_samples:
            break
    return np.concatenate(picked)
