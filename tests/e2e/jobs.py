"""Jobs that are small enough to be run again and again."""

from __future__ import annotations

from pathlib import Path

from clients.sdk import Foedus
from workflows.job import Bundle, Evaluate, JobSpec, Local, Output, Partitioned, Runtime, Seed, Sgd

LINEAR = Path(__file__).parent / "linear"


def small(foedus: Foedus, name: str, rounds: int = 4) -> JobSpec:
    """Three sites, one worker that loads quickly, no export; a round takes some tenths of a second.

    Its program is pushed if it is not there yet.
    """
    return JobSpec(
        name=name,
        program=Bundle(digest=foedus.programs.push(LINEAR).digest),
        runtime=Runtime(kind="native", workers=1),
        data=Partitioned(dataset="digits", sites=3, holdout=0.2),
        init=Seed(seed=11),
        local=Local(epochs=20, optimizer=Sgd(lr=0.1)),
        rounds=rounds,
        evaluate=Evaluate(metrics=("accuracy",)),
        output=Output(onnx=()),
    )
