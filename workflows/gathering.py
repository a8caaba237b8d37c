"""A round's answers, folded as they come and then dropped, so memory does not grow with the cohort.

A site is bound to its update by a commitment before the fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, UnsetType

from strategies import ROOT, Parameters, Partial
from workflows.arrivals import Arrival, SitesAtWork
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Checkpoint
from workflows.events import SiteDropped
from workflows.exchange import Federation, Question
from workflows.folding import FoldedSites, SiteUpdate, Terms, fold_answer, is_foldable
from workflows.job import JobSpec
from workflows.run_folder import StepError, StepFolder
from workflows.selection import Drawn
from workflows.tasks import SiteFailure
from workflows.transcript import Commitment


@dataclass(slots=True, eq=False)
class Gathering:
    """A round's answers as they come in, apart from what was folded.

    ``asked`` are the sites that were, with the round in which they were; ``counts`` is how often
    each counts, None where it counts by its examples.
    """

    counts: Mapping[str, int] | None = None
    asked: dict[str, int] = field(default_factory=dict)
    commitments: list[Commitment] = field(default_factory=list)
    failures: dict[str, Cause] = field(default_factory=dict)
    losses: dict[str, tuple[float, int]] = field(default_factory=dict)
    memories: dict[str, Parameters] = field(default_factory=dict)
    bytes_up: int = 0


def ask_root(
    folder: StepFolder,
    federation: Federation,
    before: Checkpoint,
    offered: Parameters,
    partial: Partial,
) -> Commitment | UnsetType:
    """Have the server's own data train, if the strategy wants that, ahead of the cohort.

    Its update is kept in ``partial``, and bound by a commitment as a site's is.

    Raises:
        StepError: It could not, and there is nothing to go on with.
    """
    spec = folder.plan.spec
    if not spec.strategy.wants_root:
        return UNSET
    question = Question(partial.round, (ROOT,), offered, spec.strategy, spec.cohort.deadline_s)
    gathering = Gathering()
    (outcome,) = federation.exchange.ask(question)
    for cause in _fold(folder, outcome, question, partial, gathering):
        detail = f"in training on the central part: {cause.detail}"
        raise StepError(
            msgspec.structs.replace(cause, detail=detail, site=None, round=partial.round)
        )
    return gathering.commitments[0]


def gather(
    folder: StepFolder,
    federation: Federation,
    before: Checkpoint,
    offered: Parameters,
    drawn: Drawn,
    partial: Partial,
) -> Gathering:
    """Ask the cohort, and a reserve for each site that is lost; fold what comes into ``partial``.

    All of them share one deadline.
    """
    spec, gathering = folder.plan.spec, Gathering(drawn.counts)
    wave, reserve = drawn.sites, drawn.reserve
    began, left_s = federation.clock(), spec.cohort.deadline_s
    while wave and left_s > 0:
        question = Question(
            round=partial.round,
            sites=wave,
            params=offered,
            strategy=spec.strategy,
            deadline_s=left_s,
            memories={site: before.memories[site] for site in wave if site in before.memories},
            may_fold=is_foldable(spec),
            counts=drawn.counts,
        )
        num_lost = _ask(folder, federation, question, partial, gathering)
        wave, reserve = tuple(sorted(reserve[:num_lost])), reserve[num_lost:]
        left_s = spec.cohort.deadline_s - (federation.clock() - began)
    return gathering


def gather_arrivals(
    folder: StepFolder,
    federation: Federation,
    before: Checkpoint,
    at_work: SitesAtWork,
    partial: Partial,
) -> Gathering:
    """Ask the sites whose answers arrive next, and fold them, until the buffer is full.

    An answer is computed when it arrives, from the model that its site was given. The place of one
    that is lost goes to the next that arrives; when as many are lost as are at work, what came has
    to do. All of them share one deadline.
    """
    spec, gathering = folder.plan.spec, Gathering()
    buffer = spec.strategy.buffered or 0
    most = buffer + spec.cohort_size
    ends = federation.clock() + spec.cohort.deadline_s
    while (missing := buffer - len(gathering.commitments)) and federation.clock() < ends:
        arrived = at_work.arrive(min(missing, most - len(gathering.asked)))
        if not arrived:
            break
        for asked in sorted({one.asked for one in arrived}):
            question = Question(
                round=asked,
                sites=tuple(sorted(one.site for one in arrived if one.asked == asked)),
                params=before.given(asked),
                strategy=spec.strategy,
                deadline_s=max(0.0, ends - federation.clock()),
            )
            _ask(folder, federation, question, partial, gathering)
    for late in at_work.step():
        _give_up(folder, gathering, late, partial.round)
    return gathering


def _give_up(folder: StepFolder, gathering: Gathering, late: Arrival, round: int) -> None:
    gathering.asked[late.site] = late.asked
    detail = f"asked in round {late.asked}, and still at work after round {round}"
    code = CauseCode.UPDATE_STALE
    _drop(folder, gathering, Cause(code=code, detail=detail, site=late.site, round=round))


def _ask(
    folder: StepFolder,
    federation: Federation,
    question: Question,
    partial: Partial,
    gathering: Gathering,
) -> int:
    """Ask sites, and fold what comes into ``partial``; how many were lost to the round."""
    gathering.asked |= dict.fromkeys(question.sites, question.round)
    num_lost = 0
    for outcome in federation.exchange.ask(question):
        for cause in _fold(folder, outcome, question, partial, gathering):
            _drop(folder, gathering, msgspec.structs.replace(cause, round=partial.round))
            num_lost += 1
    return num_lost


def _fold(
    folder: StepFolder,
    answer: SiteUpdate | FoldedSites | SiteFailure,
    question: Question,
    partial: Partial,
    gathering: Gathering,
) -> Sequence[Cause]:
    """Take in what one site, or some together, answered; the causes of those that are lost."""
    plan, spec = folder.plan, folder.plan.spec
    match answer:
        case SiteFailure():
            return (answer.cause,)
        case FoldedSites():
            answer.partial.population = partial.population
            spec.strategy.merge(partial, answer.partial)
            gathering.commitments += answer.commitments
            gathering.losses.update(answer.losses)
            gathering.bytes_up += answer.size_bytes
            return answer.failures
    terms = Terms(plan.plan_digest, plan.job, spec)
    model = spec.strategy.model_of(question.params)
    try:
        commitment = fold_answer(terms, question.round, answer, model, partial, gathering.counts)
    except SiteFailure as failure:
        return (failure.cause,)
    if spec.has_memory:
        gathering.memories[answer.site] = answer.memory
    gathering.commitments.append(commitment)
    gathering.bytes_up += answer.size_bytes
    if answer.loss is not None:
        gathering.losses[answer.site] = (answer.loss, answer.num_examples)
    return ()


def _drop(folder: StepFolder, gathering: Gathering, cause: Cause) -> None:
    """Note that a site is lost to the round.

    Raises:
        StepError: The job wants no round without it.
    """
    if folder.plan.spec.cohort.on_site_failure == "fail":
        raise StepError(cause)
    site = cause.site or ""
    gathering.failures[site] = cause
    folder.tell(SiteDropped, round=cause.round, site=site, cause=cause)


def require_quorum(
    spec: JobSpec,
    round: int,
    cohort: Sequence[str],
    gathering: Gathering,
) -> None:
    """Raise unless enough of the cohort is in the sum.

    Raises:
        StepError: With the sites' own cause where all failed alike, else ``cohort-too-small``.
    """
    minimum = spec.fewest_updates
    folded = len(gathering.commitments)
    if folded >= minimum:
        return
    causes = [gathering.failures[site] for site in sorted(gathering.failures)]
    if len(causes) == len(cohort) and len({cause.code for cause in causes}) == 1:
        detail = f"at every site of the cohort ({len(cohort)}); {causes[0].site}: "
        first = msgspec.structs.replace(causes[0], site=None, detail=detail + causes[0].detail)
        raise StepError(first)
    first_lines = [f"{c.site}: {c.code}: {c.detail}" for c in causes[:10]]
    raise StepError(
        Cause(
            code=CauseCode.COHORT_TOO_SMALL,
            detail=f"{folded} of {len(cohort)} sites gave an update, {minimum} are needed",
            round=round,
            evidence="\n".join(first_lines),
        )
    )
