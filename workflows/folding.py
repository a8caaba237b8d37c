"""A site's answer on its way into the sum: bound to its site, decoded, folded.

One function for whoever folds: the server, or a worker that trains many simulated sites and folds
them itself (``workflows.tasks.TrainMany``). What comes of an answer follows from the job, the round
and the site alone, so it does not show who did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from sharing.object_store import Digest
from strategies import (
    ROOT,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Parameters,
    Partial,
    UpdateRefused,
    require_memory,
)
from workflows.causes import Cause, CauseCode
from workflows.codecs import Codec, NoCodec, Undecodable
from workflows.frames import FrameError
from workflows.job import JobSpec
from workflows.seeds import derive
from workflows.tasks import Failed, SiteFailure, TrainedMany, TrainMany
from workflows.transcript import Commitment, commit, simulated_salt

_REFUSALS: Final[tuple[tuple[type[UpdateRefused], CauseCode], ...]] = (
    (NotFinite, CauseCode.UPDATE_NOT_FINITE),
    (OutOfRing, CauseCode.UPDATE_OUT_OF_RING),
    (Incompatible, CauseCode.UPDATE_INCOMPATIBLE),
)


class Terms(msgspec.Struct, frozen=True):
    """What the answers of a run are bound to.

    Attributes:
        plan: Plan digest.
        job: Id of the run.
        spec: The job.
    """

    plan: Digest
    job: str
    spec: JobSpec


@dataclass(frozen=True, slots=True, eq=False)
class SiteUpdate:
    """One site's answer.

    Attributes:
        site: Whose.
        delta: Local minus global parameters and what travels beside them, as the job's codec
            encodes them.
        num_examples: Behind the delta.
        loss: Of the local training; None if not told.
        size_bytes: That travelled.
        scalars: What else the strategy has the site tell.
        memory: What the site keeps. A simulation keeps it for the site; it never travels.
    """

    site: str
    delta: Parameters
    num_examples: int
    loss: float | None
    size_bytes: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    memory: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class FoldedSites:
    """The answers of some sites as a fold of their own.

    Attributes:
        partial: The fold.
        commitments: Of the sites that are in it.
        losses: What they told of their training, and the number of examples behind it.
        failures: Of the sites that are not, each with its site.
        size_bytes: That would have travelled from the sites.
    """

    partial: Partial
    commitments: tuple[Commitment, ...]
    losses: Mapping[str, tuple[float, int]]
    failures: tuple[Cause, ...]
    size_bytes: int


def is_foldable(spec: JobSpec) -> bool:
    """True if answers are of use as parts of a sum alone, and no site keeps anything."""
    return spec.strategy.is_sum and not spec.has_memory


def training_seed(spec: JobSpec, round: int, site: str) -> int:
    """Seed of a site's training."""
    return derive(spec.init.seed, "train", round, site)


def codec_seed(spec: JobSpec, round: int, site: str) -> int:
    """Seed of whatever is random in a site's encoded update; both ends know it."""
    return derive(spec.init.seed, "codec", round, site)


def codec_of(spec: JobSpec, site: str) -> Codec:
    """How what a site sends is encoded; what the server itself makes does not travel."""
    return NoCodec() if site == ROOT else spec.codec


def fold_answer(
    terms: Terms,
    asked: int,
    answer: SiteUpdate,
    model: Parameters,
    partial: Partial,
    counts: Mapping[str, int] | None,
) -> Commitment:
    """Bind the site to what it sent, then decode and fold that into ``partial``.

    The commitment is over the encoded update, the very arrays that a site sends, and what is folded
    follows from them by the plan's codec, the site, and the round in which it was asked.

    Args:
        terms: Of the run.
        asked: Round in which the site was asked.
        answer: What the site sent; nothing of it is trusted.
        model: The global model that it began with.
        partial: The fold; on an error it is what it was before.
        counts: How often each site counts; None where it counts by its examples.

    Raises:
        SiteFailure: It cannot be folded; the cause names the site.
    """
    spec, site = terms.spec, answer.site
    if not 1 <= answer.num_examples <= spec.ring.max_weight:  # nothing to be bound to
        detail = f"weight {answer.num_examples} is not in 1..{spec.ring.max_weight}"
        raise _refused(CauseCode.UPDATE_OUT_OF_RING, detail, site)
    for name, x in answer.delta.items():
        if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:  # no bytes that all machines share
            detail = f"layer {name} holds {x.dtype}, not numbers of at most 8 bytes"
            raise _refused(CauseCode.UPDATE_INCOMPATIBLE, detail, site)
    commitment = Commitment(
        site=site,
        num_examples=answer.num_examples,
        update=commit(simulated_salt(terms.job, terms.plan, site, asked), sent_by(answer)),
    )
    weight = counts[site] if counts else answer.num_examples
    try:
        seed = codec_seed(spec, asked, site)
        delta = codec_of(spec, site).decode(answer.delta, model, seed)
        update = ModelUpdate(site, asked, delta, weight, answer.scalars)
        if spec.has_memory:
            require_memory(site, answer.memory, model)
        spec.strategy.accumulate(partial, update, spec.ring)
    except Undecodable as error:
        raise _refused(CauseCode.UPDATE_INCOMPATIBLE, str(error), site) from error
    except UpdateRefused as refused:
        code = next(code for kind, code in _REFUSALS if isinstance(refused, kind))
        raise _refused(code, refused.reason, site) from refused
    return commitment


def fold_of(
    run: TrainMany, answer: TrainedMany, sums: Mapping[str, NDArray[Any]], partial: Partial
) -> FoldedSites:
    """A worker's fold of a run of sites, as far as it can be one.

    Args:
        run: What was asked.
        answer: What the worker told.
        sums: What it sent.
        partial: The empty fold, whose sums they take the place of.

    Raises:
        FrameError: It is of other sites or layers, or its sums are beyond what these could add.
    """
    if [(name, x.shape, x.dtype) for name, x in sums.items()] != [
        (name, x.shape, x.dtype) for name, x in partial.sums.items()
    ]:
        raise FrameError("the sums are not of this model")
    if len(answer.sites) != len(run.sites):
        raise FrameError(f"it tells of {len(answer.sites)} sites, not {len(run.sites)}")
    commitments, losses, failures = [], {}, []
    size_bytes = 0
    for site, told in zip(run.sites, answer.sites, strict=True):
        if isinstance(told, Failed):
            failures.append(msgspec.structs.replace(told.cause, site=site))
            continue
        if told.commitment.site != site:
            raise FrameError(f"it tells of {told.commitment.site} in the place of {site}")
        commitments.append(told.commitment)
        size_bytes += told.size_bytes
        if told.loss is not None:
            losses[site] = (told.loss, told.commitment.num_examples)
    ring = run.spec.ring
    if not len(commitments) <= answer.weight <= len(commitments) * ring.max_weight:
        raise FrameError(f"{len(commitments)} sites cannot weigh {answer.weight}")
    most = ceil(ring.magnitude * ring.scale) * answer.weight
    for name, x in sums.items():
        if x.size and not -most <= int(x.min()) <= int(x.max()) <= most:
            raise FrameError(f"the sum of layer {name} is beyond what these sites could add")
    partial.sums = dict(sums)
    partial.weight = answer.weight
    partial.sites = {commitment.site for commitment in commitments}
    return FoldedSites(partial, tuple(commitments), losses, tuple(failures), size_bytes)


def sent_by(answer: SiteUpdate) -> Parameters:
    """All that a site commits itself to: its arrays, and each number it tells as one more."""
    told = {f"scalars/{name}": np.array(value) for name, value in answer.scalars.items()}
    return {**answer.delta, **told}


def _refused(code: CauseCode, detail: str, site: str) -> SiteFailure:
    return SiteFailure(Cause(code=code, detail=detail, site=site))
