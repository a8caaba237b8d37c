"""What each codec costs a model and saves on the way: the digits job, native, three seeds.

The seed is that of the start, the training and the codec; data, partition and everything else are
those of ``examples/digits.yaml``. Bytes are those that sites sent up, by the events of the run.
Time is of the codec alone, both halves over one update of the job's model, with all that a site has
kept where it keeps something.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import ruamel.yaml

from benchmarks.report import Figure, run_benchmark
from sharing.object_store import digest_of
from workflows.codecs import Codec, NoCodec
from workflows.codecs.fp16 import Fp16
from workflows.codecs.int8 import Int8
from workflows.codecs.random_mask import RandomMask
from workflows.codecs.top_k import TopK
from workflows.events import AnyStepEvent, RoundFinished
from workflows.job import JobSpec, Runtime, Seed
from workflows.plan import compile_plan
from workflows.programs import BUILTIN
from workflows.run_directory import RunDirectory

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "digits.yaml"
SEEDS: Final = (7, 8, 9)
WORKERS: Final = 4
REPETITIONS: Final = 5
CODECS: Final[Mapping[str, Codec]] = {
    "none": NoCodec(),
    "fp16": Fp16(),
    "int8, bucket 1024": Int8(),
    "int8, bucket 64": Int8(bucket=64),
    "random-mask 0.5": RandomMask(fraction=0.5),
    "random-mask 0.25": RandomMask(fraction=0.25),
    "random-mask 0.1": RandomMask(fraction=0.1),
    "top-k 0.1": TopK(fraction=0.1),
    "top-k 0.05": TopK(fraction=0.05),
    "top-k 0.01": TopK(fraction=0.01),
}


def digits_job(codec: Codec, seed: int) -> JobSpec:
    """The example job with a codec and a seed."""
    document = ruamel.yaml.YAML(typ="safe", pure=True).load(EXAMPLE.read_text())
    spec = msgspec.convert(document, JobSpec)
    runtime = Runtime(kind="native", workers=WORKERS)
    return msgspec.structs.replace(spec, runtime=runtime, codec=codec, init=Seed(seed=seed))


def rounds_of(spec: JobSpec, folder: Path) -> Sequence[RoundFinished]:
    """The rounds of a run of the job's first step."""
    files = RunDirectory(folder)
    files.inputs.mkdir(parents=True)
    files.job.write_bytes(msgspec.json.encode(compile_plan("bench", 1, spec, digest_of(b"x"), {})))
    command = [sys.executable, "-m", f"workflows.runtimes.{spec.runtime.kind}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    lines = (folder / "federate.events.jsonl").read_bytes().splitlines()
    events = [msgspec.json.decode(line, type=AnyStepEvent) for line in lines]
    return [event for event in events if isinstance(event, RoundFinished)]


def milliseconds(codec: Codec) -> tuple[float, ...]:
    """Time to encode and decode one update of the example's model."""
    rng = np.random.default_rng(1)
    shapes = {p.name: p.shape for p in BUILTIN["digits-cnn"].parameters}
    delta = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    memory = codec.conclude(delta, {}, 0).memory
    times = []
    for seed in range(REPETITIONS):
        start = time.perf_counter()
        codec.decode(codec.conclude(delta, memory, seed).sent, delta, seed)
        times.append((time.perf_counter() - start) * 1000)
    return tuple(times)


def measure() -> list[Figure]:
    """Final accuracy, accuracy half-way, bytes of a site's update and time, by codec."""
    figures = []
    for name, codec in CODECS.items():
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in SEEDS:
                runs.append(rounds_of(digits_job(codec, seed), Path(folder) / str(seed)))
        final = tuple(100 * run[-1].metrics["accuracy"] for run in runs)
        half = tuple(100 * run[len(run) // 2 - 1].metrics["accuracy"] for run in runs)
        sent = tuple(run[-1].bytes_up / run[-1].sites / 1000 for run in runs)
        figures += [
            Figure(name=f"{name}: accuracy after round {len(runs[0])}", unit="%", values=final),
            Figure(name=f"{name}: accuracy after round {len(runs[0]) // 2}", unit="%", values=half),
            Figure(name=f"{name}: update of a site", unit="kB", values=sent),
            Figure(name=f"{name}: encode and decode it", unit="ms", values=milliseconds(codec)),
        ]
    return figures


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "codecs",
            "Codecs of updates",
            f"examples/digits.yaml on the native runtime, seeds {', '.join(map(str, SEEDS))}: "
            "accuracy on the central part (359 images, so that one is 0.28 %), bytes that a site "
            "sends up in a round. Codecs whose spreads overlap are not told apart by three seeds.",
            ("torch", "numpy"),
            measure,
        )
    )
