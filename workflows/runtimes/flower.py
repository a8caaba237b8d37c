# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#   "flwr>=1.41,<1.42", "numpy", "msgspec", "safetensors", "torch==2.13.0", "scikit-learn",
#   "xgboost-cpu",
# ]
#
# [tool.foedus]
# summary = "Flower: a ServerApp and a ClientApp, rounds over the public Grid interface."
# modes = ["simulation"]
# strategies = ["*"]
# mechanisms = []
# codecs = ["*"]
# ///
"""Rounds as a Flower ServerApp; local training as a Flower ClientApp.

Started as ``python -m workflows.runtimes.flower RUN_DIR``, never imported. Its workers are this
same script, started with ``--worker``: there the ClientApp runs.

Source: Flower 1.41, Message API.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from strategies import ROOT, AnyStrategy, Parameters
from workflows.causes import Cause, CauseCode
from workflows.codecs import AnyCodec
from workflows.exchange import Question, SiteMeasures
from workflows.flower_grid import (
    ANSWERS,
    RUN_ID,
    SERVER_NODE_ID,
    Deliver,
    NodeDesk,
    WorkerGrid,
    cause_of,
    identify,
    to_arrays,
    to_record,
)
from workflows.folding import SiteUpdate, codec_of, codec_seed, training_seed
from workflows.frames import Blob
from workflows.job import JobSpec, Local
from workflows.metrics import LOSS
from workflows.rounds import run_rounds
from workflows.run_folder import StepFolder, run_step
from workflows.simulation import beginning, federation_of, record, simulate
from workflows.tasks import Answer, AnyTask, Part, SiteFailure
from workflows.workbench import Workbench, encoded
from workflows.worker import serve
from workflows.workers import Station

CENTRAL: Final = "evaluate.central"
SCALAR: Final = "scalar."
TRAINING: Final = "evaluate.training"
TRAIN_ROOT: Final = "train.root"


class TrainConfig(msgspec.Struct, frozen=True):
    """What a site is asked, as JSON in the message's config record."""

    local: Local
    strategy: AnyStrategy
    seed: int
    codec: AnyCodec
    codec_seed: int


class GridExchange:
    """Sites behind a ``Grid``."""

    def __init__(self, grid: Grid, sites: Sequence[str], spec: JobSpec) -> None:
        self._grid = grid
        self._node_ids = dict(zip(sites, grid.get_node_ids(), strict=True))
        self._sites = {node_id: site for site, node_id in self._node_ids.items()}
        self._first = self._node_ids[sites[0]]
        self._spec = spec
        self._model: tuple[Parameters, ArrayRecord] | None = None

    def ask(self, question: Question) -> Iterator[SiteUpdate | SiteFailure]:
        """Have each site of the cohort train; the first node holds the central part."""
        model = self._record(question.params)
        messages = [
            self._message(
                question.round,
                TRAIN_ROOT if site == ROOT else MessageType.TRAIN,
                site,
                question.deadline_s,
                model,
                TrainConfig(
                    self._spec.local,
                    question.strategy,
                    training_seed(self._spec, question.round, site),
                    codec_of(self._spec, site),
                    codec_seed(self._spec, question.round, site),
                ),
                question.memories.get(site),
            )
            for site in question.sites
        ]
        for node, reply in self._replies(messages):
            site = ROOT if ROOT in question.sites else node
            if isinstance(reply, SiteFailure):
                yield SiteFailure(msgspec.structs.replace(reply.cause, site=site))
            else:
                yield _update(site, reply.content)

    def measure(
        self, round: int, params: Parameters, sites: Sequence[str | None]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the model measured at each site; the first node holds the central part."""
        model, names = self._record(params), list(self._spec.evaluate.metrics)
        deadline_s = self._spec.cohort.deadline_s
        messages = [
            self._message(
                round,
                MessageType.EVALUATE if site else CENTRAL,
                site or CENTRAL,
                deadline_s,
                model,
                names,
            )
            for site in sites
        ]
        for site, reply in self._replies(messages):
            place = None if None in sites else site
            if isinstance(reply, SiteFailure):
                yield SiteFailure(msgspec.structs.replace(reply.cause, site=place))
                continue
            yield _measures(place, reply.content)

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the model's loss measured on what each site trains on."""
        model, deadline_s = self._record(params), self._spec.cohort.deadline_s
        messages = [
            self._message(round, TRAINING, site, deadline_s, model, [LOSS]) for site in sites
        ]
        for site, reply in self._replies(messages):
            yield reply if isinstance(reply, SiteFailure) else _measures(site, reply.content)

    def _record(self, params: Parameters) -> ArrayRecord:
        """The model as a record: the same object for the same model, so that it is sent once."""
        if self._model is None or self._model[0] is not params:
            self._model = (params, to_record(params))
        return self._model[1]

    def _message(
        self,
        round: int,
        kind: str,
        site: str,
        ttl: float,
        model: ArrayRecord,
        config: object,
        memory: Parameters | None = None,
    ) -> Message:
        asked = ConfigRecord({"round": round, "asked": msgspec.json.encode(config)})
        content = RecordDict({"arrays": model, "config": asked})
        if memory:
            content["memory"] = to_record(memory)
        return self._grid.create_message(
            content, kind, self._node_ids.get(site, self._first), group_id=str(round), ttl=ttl
        )

    def _replies(self, messages: Iterable[Message]) -> Iterator[tuple[str, Message | SiteFailure]]:
        """Replies one by one, as they come."""
        waiting = set(self._grid.push_messages(messages))
        while waiting:
            for reply in self._grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                site = self._sites[reply.metadata.src_node_id]
                if reply.has_error():
                    cause = cause_of(reply.error)
                    yield site, SiteFailure(msgspec.structs.replace(cause, site=site))
                else:
                    yield site, reply


def _update(site: str, content: RecordDict) -> SiteUpdate | SiteFailure:
    """What a site's reply says, if it is an update."""
    try:
        arrays, metrics = content["arrays"], content["metrics"]
        loss = metrics.get("loss")
        return SiteUpdate(
            site,
            to_arrays(arrays),
            int(metrics["num-examples"]),
            None if loss is None else float(loss),
            sum(len(array.data) for array in arrays.values()),
            {
                name.removeprefix(SCALAR): float(value)
                for name, value in metrics.items()
                if name.startswith(SCALAR)
            },
            to_arrays(content["memory"]) if "memory" in content else {},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _no_answer(site, error)


def _measures(site: str | None, content: RecordDict) -> SiteMeasures | SiteFailure:
    """What a site's reply says, if it is measures."""
    try:
        values = {name: float(value) for name, value in content["metrics"].items()}
        return SiteMeasures(site, values, int(values.pop("num-examples")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _no_answer(site, error)


def _no_answer(site: str | None, error: Exception) -> SiteFailure:
    detail = f"the reply cannot be understood: {type(error).__name__}: {error}"
    return SiteFailure(Cause(code=CauseCode.UPDATE_INCOMPATIBLE, detail=detail[:500], site=site))


def server_app(folder: StepFolder, sites: Sequence[str], run: Any) -> ServerApp:  # noqa: ANN401
    """The rounds of a job as a ServerApp.

    Args:
        folder: Of the step.
        sites: Names, in the order of the grid's nodes.
        run: Runs the rounds over an exchange.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]  # of flwr
    def main(grid: Grid, context: Context) -> None:
        run(GridExchange(grid, sites, folder.plan.spec))

    return app


def client_app(bench: Workbench) -> ClientApp:
    """Local training and evaluation of the program on ``bench`` as a ClientApp."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]  # of flwr
    def train_site(message: Message, context: Context) -> Message:
        return train(message, str(context.node_config["site"]))

    @app.train("root")  # type: ignore[untyped-decorator]  # of flwr
    def train_root(message: Message, context: Context) -> Message:
        return train(message, ROOT)

    def train(message: Message, site: str) -> Message:
        config = msgspec.json.decode(message.content["config"]["asked"], type=TrainConfig)
        kept = message.content.get("memory")
        memory = to_arrays(kept) if kept else {}
        trained = bench.train(
            to_arrays(message.content["arrays"]),
            site,
            config.local,
            config.strategy,
            memory,
            config.seed,
        )
        metrics = MetricRecord({"num-examples": trained.num_examples})
        if trained.loss is not None:
            metrics["loss"] = trained.loss
        for name, value in trained.scalars.items():
            metrics[SCALAR + name] = value
        share = encoded(trained.share, config.codec, memory, config.codec_seed)
        content = RecordDict({"arrays": to_record(share.sent), "metrics": metrics})
        if share.memory:
            content["memory"] = to_record(share.memory)
        return Message(content, reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator]  # of flwr
    def evaluate(message: Message, context: Context) -> Message:
        return measure(message, str(context.node_config["site"]))

    @app.evaluate("central")  # type: ignore[untyped-decorator]  # of flwr
    def evaluate_centrally(message: Message, context: Context) -> Message:
        return measure(message, None)

    @app.evaluate("training")  # type: ignore[untyped-decorator]  # of flwr
    def evaluate_training(message: Message, context: Context) -> Message:
        return measure(message, str(context.node_config["site"]), "training")

    def measure(message: Message, site: str | None, part: Part = "held-out") -> Message:
        names = msgspec.json.decode(message.content["config"]["asked"], type=tuple[str, ...])
        measured = bench.measure(to_arrays(message.content["arrays"]), site, names, part)
        metrics = MetricRecord({"num-examples": measured.num_examples} | dict(measured.values))
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def federate(folder: StepFolder) -> None:
    """The step."""
    identify()
    recorded, transcripts = record(folder)
    entry = ("workflows.runtimes.flower", "--worker")
    with simulate(folder, entry=entry, answers=ANSWERS) as simulation:
        start = recorded or beginning(folder, simulation)

        def run(exchange: GridExchange) -> None:
            federation = federation_of(simulation, exchange)
            run_rounds(folder, federation, start, transcripts)

        grid = WorkerGrid(simulation.pool, simulation.sites)
        context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), {})
        server_app(folder, simulation.sites, run)(grid, context)


def work(station: Station) -> None:
    """Body of a worker: the platform's tasks, and messages for the ClientApp."""
    identify()
    bench = Workbench()
    desk = NodeDesk(client_app(bench))

    def handle(task: Any, blobs: list[bytes]) -> tuple[Answer, Sequence[Blob]]:  # noqa: ANN401
        if isinstance(task, Deliver):
            return desk.deliver(task, blobs)
        return bench.handle(task, blobs)

    serve(station, handle, AnyTask | Deliver)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(msgspec.json.decode(sys.argv[2], type=Station))
        sys.stderr.flush()
        os._exit(0)  # without the atexit handlers of the program
    sys.exit(run_step("federate", Path(sys.argv[1]), federate))
