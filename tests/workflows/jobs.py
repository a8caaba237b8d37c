"""A job that fits, and a platform on which it does."""

from __future__ import annotations

from typing import Any

import msgspec

from strategies import KINDS
from workflows.capabilities import (
    Capabilities,
    DatasetFacts,
    Parameter,
    ProgramFacts,
    RuntimeAbilities,
)
from workflows.job import Builtin, JobSpec, Partitioned

BUNDLE = "sha256:" + "b1" * 32
OWN_TRAIN = "sha256:" + "b2" * 32
HOOKED = "sha256:" + "b3" * 32
OWN_STEPS = "sha256:" + "b4" * 32
HEAVY = "sha256:" + "b5" * 32
TABLE = "sha256:" + "da" * 32
MODEL = "sha256:" + "a1" * 32
OTHER_MODEL = "sha256:" + "a2" * 32
ABSENT = "sha256:" + "00" * 32

LAYERS = (
    Parameter(name="w", shape=(64, 10), dtype="float32"),
    Parameter(name="b", shape=(10,), dtype="float32"),
)
CNN = ProgramFacts(framework="torch", parameters=LAYERS, features=(64,), metrics=("top2",))
CAPABILITIES = Capabilities(
    runtimes={
        "flower": RuntimeAbilities(summary="Flower", modes=("simulation",)),
        "native": RuntimeAbilities(
            summary="No framework",
            modes=("simulation",),
            strategies=("fedavg",),
            mechanisms=("dp-sgd",),
            spreads=True,
        ),
        "zipping": RuntimeAbilities(summary="Zips", modes=("simulation",), codecs=("int8",)),
        "sparse": RuntimeAbilities(summary="Picks", modes=("simulation",), codecs=("top-k",)),
        "sites": RuntimeAbilities(summary="Real sites", modes=("simulation", "sites")),
    },
    strategies=tuple(KINDS),
    programs={
        "digits-cnn": CNN,
        "any-shape": ProgramFacts(framework="torch", parameters=LAYERS),
        "linear": ProgramFacts(
            framework="sklearn", parameters=LAYERS, features=(64,), own_train=True
        ),
        BUNDLE: CNN,
        OWN_TRAIN: msgspec.structs.replace(CNN, own_train=True),
        OWN_STEPS: msgspec.structs.replace(CNN, own_optimizer=True),
        HEAVY: msgspec.structs.replace(
            CNN, parameters=(Parameter(name="w", shape=(1 << 22,), dtype="float32"),)
        ),
        HOOKED: msgspec.structs.replace(CNN, own_train=True, uses_hooks=True),
    },
    datasets={
        "digits": DatasetFacts(num_examples=1797, features=(64,), num_classes=10),
        "diabetes": DatasetFacts(num_examples=442, features=(10,), num_classes=0),
        "breast-cancer": DatasetFacts(num_examples=569, features=(30,), num_classes=2),
        TABLE: DatasetFacts(num_examples=100, features=(64,), num_classes=10),
    },
    models={MODEL: LAYERS, OTHER_MODEL: LAYERS[:1]},
)
SMALLEST: dict[str, Any] = {
    "name": "digits",
    "program": {"kind": "builtin", "name": "digits-cnn"},
    "data": {"kind": "partitioned", "dataset": "digits"},
}
JOB = JobSpec(name="digits", program=Builtin(name="digits-cnn"), data=Partitioned(dataset="digits"))


def job(**fields: Any) -> JobSpec:
    """The smallest job but for ``fields``; a dictionary is laid over the one that is there."""
    document = dict(SMALLEST)
    for name, value in fields.items():
        before = document.get(name)
        keeps = (
            isinstance(before, dict)
            and isinstance(value, dict)
            and value.get("kind", before["kind"]) == before["kind"]
        )
        document[name] = {**before, **value} if keeps else value
    return msgspec.convert(document, JobSpec)
