"""Our in-process Grid over the product's workers against flwr's own simulation, which is Ray's.

The same ClientApp gets the same model of 1 MB and answers with it, untrained: what is left is the
machinery. Both run in steady state, in turn, in one run of this script; start-up is shown beside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.report import Figure, run_benchmark
from workflows.flower_grid import ANSWERS, Deliver, NodeDesk, WorkerGrid, identify, to_record
from workflows.job import Limits
from workflows.worker import serve
from workflows.workers import Station, WorkerPool

REPETITIONS: Final = 5
NODES: Final = 100
MODEL: Final = {"w": (512, 256), "v": (256, 512)}  # 2 x 131,072 float32 = 1 MB
TARGET: Final = 8.0

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]  # of flwr
def train(message: Message, context: Context) -> Message:
    """Answer with what came."""
    return Message(message.content, reply_to=message)


def round_seconds(grid: Grid) -> float:
    """Seconds until every node has answered once."""
    model = to_record({name: np.ones(shape, np.float32) for name, shape in MODEL.items()})
    start = time.perf_counter()
    messages = [
        grid.create_message(RecordDict({"arrays": model}), MessageType.TRAIN, node_id, "1")
        for node_id in grid.get_node_ids()
    ]
    waiting = set(grid.push_messages(messages))
    while waiting:
        replies = list(grid.pull_messages(waiting))
        for reply in replies:
            check(reply.content["arrays"])
            waiting.discard(reply.metadata.reply_to_message_id)
        if not replies:
            time.sleep(0.002)
    return time.perf_counter() - start


def rate(grid: Grid) -> float:
    """Clients a second, over as many rounds as fill a second."""
    clients, seconds = 0, 0.0
    while seconds < 1.0:
        seconds += round_seconds(grid)
        clients += NODES
    return clients / seconds


def check(record: ArrayRecord) -> None:
    """Look at an answer, as a fold would."""
    assert all(tuple(record[name].shape) == shape for name, shape in MODEL.items())


@contextmanager
def ours(num_workers: int) -> Iterator[Grid]:
    """A grid over workers that run this module's ClientApp."""
    identify()
    with tempfile.TemporaryDirectory() as folder:
        pool: WorkerPool[Deliver] = WorkerPool(
            num_workers=num_workers,
            limits=Limits(),
            folder=Path(folder),
            entry=("benchmarks.grid", "--worker"),
            answers=ANSWERS,
        )
        with pool:
            yield WorkerGrid(pool, [f"site-{k:04d}" for k in range(1, NODES + 1)])


def work(station: Station) -> None:
    """Body of one of our workers."""
    identify()
    serve(station, NodeDesk(app).deliver, Deliver)


def in_ray(measure: Callable[[Grid], None], num_workers: int) -> None:
    """Run ``measure`` as a ServerApp under flwr's simulation."""
    from flwr.simulation import run_simulation

    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]  # of flwr
    def main(grid: Grid, context: Context) -> None:
        measure(grid)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    init = {"init_args": {"num_cpus": num_workers, "include_dashboard": False}}
    run_simulation(server, app, NODES, backend_config=resources | init)


def measure_ray(num_workers: int) -> dict[str, Any]:
    """Start-up and rates of flwr's simulation."""
    rates: list[float] = []
    start, ready = time.perf_counter(), 0.0

    def measure(grid: Grid) -> None:
        nonlocal ready
        while len(list(grid.get_node_ids())) < NODES:
            time.sleep(0.01)
        round_seconds(grid)
        ready = time.perf_counter() - start
        rates.extend(rate(grid) for _ in range(REPETITIONS))

    in_ray(measure, num_workers)
    return {"start_s": ready, "rates": rates}


def measure_ours(num_workers: int) -> dict[str, Any]:
    """Start-up and rates of our grid."""
    start = time.perf_counter()
    with ours(num_workers) as grid:
        round_seconds(grid)
        ready = time.perf_counter() - start
        rates = [rate(grid) for _ in range(REPETITIONS)]
    return {"start_s": ready, "rates": rates}


def alone(side: str) -> dict[str, Any]:
    """One side's figures, taken in a process of its own so that none is in the other's way."""
    command = [sys.executable, "-m", "benchmarks.grid", "--side", side]
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        sys.stderr.buffer.write(done.stderr[-3000:])
        raise RuntimeError(f"{side} ended with {done.returncode}")
    figures: dict[str, Any] = msgspec.json.decode(lines[-1])
    return figures


def measure() -> Sequence[Figure]:
    """All figures, in clients a second."""
    mine, theirs = alone("ours"), alone("ray")
    ratios = tuple(a / b for a, b in zip(mine["rates"], theirs["rates"], strict=True))
    return [
        Figure(name="our Grid", unit="clients/s", values=tuple(mine["rates"])),
        Figure(name="flwr's simulation (Ray)", unit="clients/s", values=tuple(theirs["rates"])),
        Figure(name="ratio", unit="x", values=ratios, bound="at least", target=TARGET),
        Figure(name="our start-up, first round included", unit="s", values=(mine["start_s"],)),
        Figure(name="Ray's start-up, first round included", unit="s", values=(theirs["start_s"],)),
    ]


if __name__ == "__main__":
    processors = min(4, os.cpu_count() or 1)
    match sys.argv[1:]:
        case ["--worker", station]:
            work(msgspec.json.decode(station, type=Station))
        case ["--side", "ours"]:
            print(msgspec.json.encode(measure_ours(processors)).decode(), flush=True)
        case ["--side", "ray"]:
            print(msgspec.json.encode(measure_ray(processors)).decode(), flush=True)
        case _:
            sys.exit(
                run_benchmark(
                    "grid",
                    "Messages to a hundred clients and back",
                    f"{NODES} clients, 1 MB of float32, a ClientApp that trains nothing, "
                    f"{processors} workers on both sides.",
                    ("flwr", "ray", "numpy"),
                    measure,
                )
            )
