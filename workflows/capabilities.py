"""What this platform can do, as a value: the matrix that admission checks a job against."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sharing.object_store import Digest


class RuntimeAbilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one runtime's header declares.

    Attributes:
        summary: What it is, for people.
        modes: Of ``simulation`` and ``sites``.
        strategies: Kinds it folds; ``*`` for every kind there is.
        mechanisms: Kinds of privacy mechanism it enforces.
        codecs: Kinds of update codec it speaks; ``*`` in a header for every kind there is.
        most_sites: Simulated sites that it can be asked for.
        vectorizes: Whether it can train small sites together.
        spreads: Whether it can simulate sites on several machines.
    """

    summary: str
    modes: tuple[str, ...]
    strategies: tuple[str, ...] = ("*",)
    mechanisms: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ("none",)
    most_sites: int = 100_000
    vectorizes: bool = False
    spreads: bool = False


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What admission must know of a data set.

    Attributes:
        num_examples: Rows.
        features: Shape of one example.
        num_classes: Different labels; 0 for real-valued targets.
        summary: What it is, for people.
        columns: Names of the features; empty where they have none, or too many to list.
    """

    num_examples: int
    features: tuple[int, ...]
    num_classes: int
    summary: str = ""
    columns: tuple[str, ...] = ()


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One federated array of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class ProgramFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What running a program once in the sandbox showed.

    Attributes:
        framework: ``torch``, ``sklearn`` or ``xgboost``; ``analysis`` for a query, which is no
            program.
        parameters: Its federated arrays, in the order of the model.
        frozen_bytes: Of the arrays beside them, which it builds anew wherever it runs and which
            neither change nor travel.
        features: Shape of one example it was tried with; empty where it was not tried.
        metrics: Names of the metrics it declares beyond the built-in ones.
        own_train: True if it brings its own ``train``.
        uses_hooks: True if it declares that its ``train`` calls the hooks it is handed.
        own_optimizer: True if it brings its own ``optimizer``.
        growth_bytes: Most by which one local epoch at one site lengthens the model, which is then
            an ensemble of trees; 0 where arrays keep their shapes.
        import_s: Seconds to import it and build its model.
        summary: What it is, for people.
    """

    framework: str
    parameters: tuple[Parameter, ...]
    frozen_bytes: int = 0
    features: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    own_train: bool = False
    uses_hooks: bool = False
    own_optimizer: bool = False
    growth_bytes: int = 0
    import_s: float = 0.0
    summary: str = ""


class EngineAbilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine does beyond running steps.

    Attributes:
        reserves: Sets processors and memory aside as ``resources`` asks.
        gpus: Finds a machine with the GPUs that are asked for.
    """

    reserves: bool = False
    gpus: bool = False


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """All a job can ask for here.

    Attributes:
        runtimes: By name.
        strategies: Kinds.
        programs: Facts of the builtin ones by name, and by digest of the bundle a job names.
        datasets: Facts of the bundled ones by name, and by digest of the file a job names.
        onnx: Variants that can be exported.
        models: Arrays of the models that a job may start from, by digest.
        engine: What runs the jobs.
    """

    runtimes: Mapping[str, RuntimeAbilities]
    strategies: tuple[str, ...]
    programs: Mapping[str, ProgramFacts]
    datasets: Mapping[str, DatasetFacts]
    onnx: tuple[str, ...] = ("fp32",)
    models: Mapping[Digest, tuple[Parameter, ...]] = {}
    engine: EngineAbilities = EngineAbilities()
