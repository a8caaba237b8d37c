"""Local training and evaluation of a developer's program, one module per framework."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflows.trainers.trainer import ProgramError, Trainer


def load_trainer(
    folder: Path,
    config: Mapping[str, Any],
    seed: int,
    features: tuple[int, ...] = (),
    classes: int = 0,
) -> Trainer:
    """Import the program in ``folder`` and build its model; runs the developer's code.

    Args:
        folder: An unpacked bundle.
        config: Handed to ``build``.
        seed: Of the initial parameters.
        features: Shape of one example; where empty, what ``program.toml`` gives as an example.
        classes: Number of classes of the data, if ``features`` are given.

    Raises:
        ProgramError: It cannot be imported, or does not build a model.
    """
    from workflows.trainers.border import Shape, import_program

    program = import_program(folder)
    manifest = program.manifest
    example = Shape(manifest.example_features, manifest.classes)
    shape = Shape(features, classes) if features else example
    if manifest.framework == "sklearn":
        from workflows.trainers.sklearn_trainer import SklearnTrainer

        return SklearnTrainer(program, config, seed, shape)
    if manifest.framework == "xgboost":
        from workflows.trainers.xgboost_trainer import XgboostTrainer

        return XgboostTrainer(program, config, seed, shape)
    from workflows.trainers.torch_trainer import TorchTrainer

    return TorchTrainer(program, config, seed, shape)


__all__ = ["ProgramError", "Trainer", "load_trainer"]
