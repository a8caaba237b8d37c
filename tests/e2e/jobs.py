"""Jobs that are small enough to be run again and again."""

from __future__ import annotations

from workflows.job import (
    Builtin,
    Evaluate,
    JobSpec,
    Local,
    Output,
    Partitioned,
    Runtime,
    Seed,
    Sgd,
)


def small(name: str, rounds: int = 4, runtime: str = "native") -> JobSpec:
    """Three sites, one worker, no export."""
    return JobSpec(
        name=name,
        program=Builtin(name="digits-mlp"),
        runtime=Runtime(kind=runtime, workers=1),
        data=Partitioned(dataset="digits", sites=3, holdout=0.2),
        init=Seed(seed=11),
        local=Local(epochs=4, batch_size=16, optimizer=Sgd(lr=0.1)),
        rounds=rounds,
        evaluate=Evaluate(metrics=("accuracy",)),
        output=Output(onnx=()),
    )
