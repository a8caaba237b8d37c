"""Folding updates of a large model: memory and speed, beside flwr's own strategies.

The same updates, in the same run. Ours come in chunks into a mapped file, which is checked whole
before a chunk is added, and the global model is mapped too; flwr's come as the messages that it
takes, made before the clock starts. Memory is what is anonymous or shared (a mapped file is
neither) at its highest above the process as it stood before the fold. The first repetition of
either side counts for its memory alone: on a virtual machine it waits for the host to hand over
pages.
"""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Figure, run_benchmark
from strategies import KINDS, ModelUpdate, Ring, ServerState, Strategy

REPETITIONS: Final = 5
PROCESSORS: Final = 2
MODEL_BYTES: Final = 100_000_000
SHAPES: Final = {"embedding": (10_000, 1000), "hidden": (3000, 4000), "head": (1000, 3000)}
CHUNK_BYTES: Final = 1 << 20
DISTINCT: Final = 4  # updates that are different; sites beyond send one of them again
COHORTS: Final = (8, 32, 128)
RING: Final = Ring()
WEIGHT: Final = 100
MEGABYTE: Final = 1e6


class Measured(msgspec.Struct, frozen=True):
    """What one process found: seconds of each repetition, and the highest memory of one."""

    seconds: tuple[float, ...]
    memory_bytes: int


def used_bytes() -> int:
    """Anonymous and shared memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


@contextmanager
def highest() -> Iterator[list[int]]:
    """Highest memory inside the block, above that before it."""
    before, found, done = used_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            found[0] = max(found[0], used_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        found[0] = max(found[0], used_bytes() - before)
        done.set()
        thread.join()


def mapped(path: Path) -> dict[str, NDArray[np.float32]]:
    """A model in a file, as layers that are no memory of this process."""
    layers: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, shape in SHAPES.items():
        layers[name] = np.memmap(path, np.float32, "r", start, shape)
        start += layers[name].nbytes
    return layers


def make(folder: Path) -> list[Path]:
    """The global model and some updates, drawn once for all sides."""
    rng = np.random.default_rng(1)
    paths = [folder / f"{k}.f32" for k in range(DISTINCT + 1)]
    for path in paths:
        rng.normal(0, 0.01, MODEL_BYTES // 4).astype(np.float32).tofile(path)
    return paths


class Landing:
    """The mapped file that chunks of one update after the other are put into."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open until the end
        self.file.truncate(MODEL_BYTES)
        self.memory = mmap.mmap(self.file.fileno(), MODEL_BYTES)

    def land(self, source: Path) -> dict[str, NDArray[np.float32]]:
        """Let an update come in, chunk by chunk."""
        chunk = bytearray(CHUNK_BYTES)
        with source.open("rb", buffering=0) as arriving:
            self.file.seek(0)
            while got := arriving.readinto(chunk):
                self.file.write(memoryview(chunk)[:got])
        flat, layers, start = np.frombuffer(self.memory, np.float32), {}, 0
        for name, shape in SHAPES.items():
            size = int(np.prod(shape))
            layers[name] = flat[start : start + size].reshape(shape)
            start += size
        return layers


def ours(kind: str, cohort: int, paths: Sequence[Path]) -> Measured:
    """Our fold and step. Time spent on letting chunks come in is not the fold's."""
    options = {"num_malicious": cohort // 5} if kind == "trimmed-mean" else {}
    strategy: Strategy = KINDS[kind](**options)
    state, landing, seconds, memory = ServerState(mapped(paths[0])), Landing(), [], 0
    for _ in range(1 + repetitions(kind, cohort)):
        spent = 0.0
        with highest() as found:
            start = time.perf_counter()
            partial = strategy.zero(state)
            spent += time.perf_counter() - start
            for k in range(cohort):
                delta = landing.land(paths[1 + k % DISTINCT])
                start = time.perf_counter()
                update = ModelUpdate(f"site-{k:04d}", 1, delta, WEIGHT)
                strategy.accumulate(partial, update, RING)
                spent += time.perf_counter() - start
            start = time.perf_counter()
            after = strategy.advance(state, partial, RING)
            spent += time.perf_counter() - start
        memory = max(memory, found[0])
        seconds.append(spent)
        assert all(np.isfinite(x[0]).all() for x in after.params.values())
        del after, partial
    return Measured(tuple(seconds[1:]), memory)


def flowers(kind: str, cohort: int, paths: Sequence[Path]) -> Measured:
    """The same by flwr's own strategy."""
    from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
    from flwr.serverapp import strategy as flower

    logging.disable()
    made: dict[str, Any] = {
        "fedavg": flower.FedAvg,
        "coordinate-median": flower.FedMedian,
        "trimmed-mean": flower.FedTrimmedAvg,
    }
    theirs = made[kind]()  # FedTrimmedAvg cuts a fifth at each end by itself

    def reply(node: int) -> Message:
        layers = mapped(paths[1 + node % DISTINCT])
        record = ArrayRecord({name: Array(np.asarray(x)) for name, x in layers.items()})
        content = RecordDict({"arrays": record, "m": MetricRecord({"num-examples": WEIGHT})})
        metadata = Metadata(1, "", node + 1, 1, "", "", 0.0, 1e9, "train")
        return Message(content=content, metadata=metadata)

    seconds, memory = [], 0
    for _ in range(1 + repetitions(kind, cohort)):
        with highest() as found:
            replies = [reply(node) for node in range(cohort)]
            start = time.perf_counter()
            arrays, _ = theirs.aggregate_train(1, replies)
            seconds.append(time.perf_counter() - start)
            assert arrays is not None
        memory = max(memory, found[0])
        del arrays, replies
    return Measured(tuple(seconds[1:]), memory)


def repetitions(kind: str, cohort: int) -> int:
    """Five; fewer of what takes most of a minute each."""
    return REPETITIONS if kind == "fedavg" and cohort < max(COHORTS) else 3


def alone(side: str, kind: str, cohort: int, folder: Path) -> Measured:
    """One side's figures, taken in a process of its own on two processors."""
    command = [sys.executable, "-m", "benchmarks.fold", "--side", side, kind, str(cohort)]
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, check=False, env=environment
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stderr[-3000:])
        raise RuntimeError(f"{side} {kind} {cohort} ended with {done.returncode}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def measure() -> Sequence[Figure]:
    """All figures."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        for cohort in COHORTS:
            figures += compare("fedavg", cohort, folder, least=1.5)
        for kind in ("coordinate-median", "trimmed-mean"):
            figures += compare(kind, 32, folder, least=3.0)
    return figures


def compare(kind: str, cohort: int, folder: Path, least: float) -> list[Figure]:
    """Speed and memory of one fold on both sides."""
    size = cohort * MODEL_BYTES
    mine = alone("ours", kind, cohort, folder)
    speeds = tuple(size / s / 1e9 for s in mine.seconds)
    what, is_sum = f"{kind}, N = {cohort}", kind == "fedavg"
    figures = [
        Figure(
            name=f"{what}: ours",
            unit="GB/s",
            values=speeds,
            bound="at least",
            target=4.0 if is_sum else None,
        ),
        Figure(
            name=f"{what}: our memory",
            unit="x model",
            values=(mine.memory_bytes / MODEL_BYTES,),
            target=2.5,
        ),
    ]
    if cohort == max(COHORTS):  # would need 13 GB
        return figures
    theirs = alone("flwr", kind, cohort, folder)
    others = tuple(size / s / 1e9 for s in theirs.seconds)
    ratios = tuple(a / b for a, b in zip(speeds, others, strict=True))
    return [
        *figures,
        Figure(name=f"{what}: flwr", unit="GB/s", values=others),
        Figure(
            name=f"{what}: ours to flwr's", unit="x", values=ratios, bound="at least", target=least
        ),
        Figure(
            name=f"{what}: flwr's memory",
            unit="x model",
            values=(theirs.memory_bytes / MODEL_BYTES,),
        ),
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--side", side, kind, cohort, folder]:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])
            paths = sorted(Path(folder).iterdir())
            run = ours if side == "ours" else flowers
            print(msgspec.json.encode(run(kind, int(cohort), paths)).decode(), flush=True)
        case _:
            sys.exit(
                run_benchmark(
                    "fold",
                    "Folding updates of a model of 100 MB",
                    f"float32, {PROCESSORS} processors on both sides. Fold and step, without the "
                    "arrival of messages. Ours come through a mapped file in chunks of 1 MiB, "
                    "flwr's are in memory when its clock starts; at N = 128 they do not fit "
                    "beside the rest, so ours stands alone. After one repetition to warm up.",
                    ("flwr", "numpy", "cryptography"),
                    measure,
                )
            )
