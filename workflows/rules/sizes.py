"""How large a job's model and the parts of its data are, before anything runs."""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np

from workflows.capabilities import DatasetFacts, ProgramFacts
from workflows.data.partitioners import ByLabel, Dirichlet, Iid
from workflows.job import JobSpec, Partitioned

MOST_KEPT_MB: Final = 1024
"""Most that simulated sites may keep or go by together: it is in the checkpoint of every round."""


def most_model_bytes(spec: JobSpec, facts: ProgramFacts, rounds: int) -> int:
    """Most bytes that the global model takes after ``rounds`` rounds."""
    each = spec.local.epochs * facts.growth_bytes
    return size_bytes(facts) + rounds * spec.most_updates * each


def size_bytes(facts: ProgramFacts) -> int:
    """Bytes of the model that the program builds."""
    return sum(prod(x.shape) * np.dtype(x.dtype).itemsize for x in facts.parameters)


def num_training(data: Partitioned, facts: DatasetFacts) -> int:
    """Examples that are divided among the sites."""
    return facts.num_examples - round(facts.num_examples * data.central)


def largest_site(data: Partitioned, facts: DatasetFacts) -> int:
    """Most examples that one site can have."""
    training = num_training(data, facts)
    spread_evenly = isinstance(data.partitioner, Iid)
    others = (data.sites - 1) * fewest_per_site(data)
    return -(-training // data.sites) if spread_evenly else training - others


def fewest_per_site(data: Partitioned) -> int:
    """Examples that each site has at least."""
    match data.partitioner:
        case Dirichlet(minimum=fewest) | ByLabel(shards_per_site=fewest):
            return fewest
        case _:
            return 1


def most_held_out(data: Partitioned, facts: DatasetFacts, where: str) -> int:
    """Most examples that one measurement can stand on, at a site or on the central part."""
    training = num_training(data, facts)
    if where == "central":
        return facts.num_examples - training
    largest = largest_site(data, facts)
    return min(int(data.holdout * largest), largest - 1)
