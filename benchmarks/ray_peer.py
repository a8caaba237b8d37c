"""flwr's own simulation, which is Ray's, on the task of ``benchmarks.simulator``."""

from __future__ import annotations

import functools
import time
from typing import Any

import msgspec
import numpy as np
import torch
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
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import nn

app = ClientApp()


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What every side trains.

    Attributes:
        data: File with arrays ``x`` and ``y``.
        sites: Population.
        cohort: Clients a round.
        examples: That one trains on, drawn with replacement.
        batch_size: Of its steps.
        repetitions: How often it is measured.
        rounds_each: Rounds in one of these.
    """

    data: str
    sites: int = 10_000
    cohort: int = 512
    examples: int = 20
    batch_size: int = 5
    repetitions: int = 5
    rounds_each: int = 1


@functools.cache
def _digits(path: str) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    data = np.load(path)
    return torch.from_numpy(data["x"]), torch.from_numpy(data["y"])


@app.train()  # type: ignore[untyped-decorator]  # of flwr
def train(message: Message, context: Context) -> Message:
    """A client as one writes it for flwr: a model, a loop, the weights."""
    task = message.content["config"]
    x, y = _digits(str(task["data"]))
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    examples, size = int(task["examples"]), int(task["batch_size"])
    rows = rng.integers(len(y), size=examples)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, examples, size):
        batch = rows[start : start + size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(RecordDict(content), reply_to=message)


def in_ray(task: Task, num_workers: int) -> list[float]:
    """Clients a second of flwr's simulation, round by round, with its own FedAvg."""
    from flwr.simulation import run_simulation  # it starts Ray's machinery

    found: list[float] = []
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]  # of flwr
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < task.cohort:
            time.sleep(0.01)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        arrays = ArrayRecord(model.state_dict())
        config = ConfigRecord(msgspec.to_builtins(task))
        for _ in range(1 + task.repetitions * task.rounds_each):
            start = time.perf_counter()
            messages = [
                grid.create_message(
                    RecordDict({"arrays": arrays, "config": config}), MessageType.TRAIN, node, "1"
                )
                for node in grid.get_node_ids()
            ]
            replies = list(grid.send_and_receive(messages))
            arrays = aggregate_arrayrecords([reply.content for reply in replies], "num-examples")
            found.append(task.cohort / (time.perf_counter() - start))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    init = {"init_args": {"num_cpus": num_workers, "include_dashboard": False}}
    run_simulation(server, app, task.cohort, backend_config=resources | init)
    return found[1:]
