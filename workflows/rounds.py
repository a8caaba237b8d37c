"""The round loop, the same for every runtime: ask a cohort, fold its answers, step, record.

A runtime brings an ``Exchange``, which carries questions and answers by its framework's means.
Answers are folded as they come and then dropped, so memory does not grow with the cohort; a site
is bound to its update by a commitment before the fold. After each round the server state
and the transcript are on record, and a run that goes on from them computes the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from sharing.object_store import Digest, digest_of
from strategies import (
    ROOT,
    Parameters,
    Partial,
    ServerState,
    Strategy,
    StrategyError,
    digest_of_fold,
)
from workflows.arrivals import Arrival, SitesAtWork
from workflows.canonical import canonical_bytes
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Best, Checkpoint, model_bytes, write_checkpoint
from workflows.events import RoundFinished, RoundStarted, SiteDropped
from workflows.folding import FoldedSites, SiteUpdate, Terms, fold_answer, is_foldable
from workflows.job import Analysis, JobSpec
from workflows.plan import RESULT, TALLY
from workflows.run_folder import StepError, StepFolder
from workflows.selection import Asked, Drawing, Drawn
from workflows.tasks import SiteFailure
from workflows.transcript import (
    Candidate,
    Commitment,
    Dropped,
    RoundTranscript,
)

HIGHER_IS_BETTER: Final[Mapping[str, bool]] = {"accuracy": True, "auroc": True, "mse": False}
LOSS: Final = "loss"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a cohort is asked in a round.

    Attributes:
        round: Which it is asked in, from 1; seeds and signatures of the answers carry it.
        sites: The cohort, sorted; or ``ROOT`` alone, which is the server's own data.
        params: Global model, and beside it what else the strategy has travel; the same object as
            long as it is the same model.
        strategy: Whose client half applies.
        deadline_s: How long to wait for the answers.
        memories: What each site kept when it was last drawn; only those that kept something.
        may_fold: Whether answers may come as a fold of them.
        counts: How often each site counts in such a fold; None where it counts by its examples.
    """

    round: int
    sites: tuple[str, ...]
    params: Parameters
    strategy: Strategy
    deadline_s: float
    memories: Mapping[str, Parameters] = field(default_factory=dict)
    may_fold: bool = False
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class SiteMeasures:
    """The global model on one site's held-out part, or on the central one (``site`` None)."""

    site: str | None
    values: Mapping[str, float]
    num_examples: int


class Exchange(Protocol):
    """How a runtime reaches sites. Failures carry the site in their cause."""

    def ask(self, question: Question) -> Iterator[SiteUpdate | FoldedSites | SiteFailure]:
        """Have each site of the question train; each is in one outcome, in any order."""
        ...

    def measure(
        self,
        round: int,
        params: Parameters,
        sites: Sequence[str | None],
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have ``params`` measured at each site; one outcome per site, in any order."""
        ...

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the loss of ``params`` told on what each site trains on; one outcome per site."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """Who takes part, and how they are reached.

    Attributes:
        sites: All of them, sorted.
        exchange: How.
        directions: Of the program's own metrics.
        num_examples: That each site trains on, for draws that go by it.
        clock: Monotonic seconds.
    """

    sites: Sequence[str]
    exchange: Exchange
    directions: Mapping[str, Literal["maximize", "minimize"]] = field(default_factory=dict)
    num_examples: Mapping[str, int] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic


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


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """What a round goes by beside the state.

    Attributes:
        previous: Digest of the transcript before; None in round 1.
        model: In force, as on record.
        asked: When sites were asked in rounds before.
        at_work: Sites that train across rounds; None where a round waits for its cohort.
    """

    previous: Digest | None
    model: bytes
    asked: Mapping[str, Asked]
    at_work: SitesAtWork | None


def run_rounds(
    folder: StepFolder,
    federation: Federation,
    start: Checkpoint,
    transcripts: Sequence[RoundTranscript],
) -> None:
    """Run the rounds that are left, and write the step's outputs.

    Args:
        folder: Of the step.
        federation: Who takes part.
        start: State after the last round on record, or before the first.
        transcripts: Of the rounds on record.

    Raises:
        StepError: A round failed; the rounds before are on record.
    """
    spec = folder.plan.spec
    lines = [canonical_bytes(transcript) for transcript in transcripts]
    asked: dict[str, Asked] = {}
    for transcript in transcripts:
        asked |= _asked_again(spec, asked, transcript.cohort, transcript.round)
    at_work = _at_work(spec, federation, start, transcripts)
    checkpoint = start
    model = model_bytes(start.state.params)
    while checkpoint.state.round < spec.rounds:
        previous = digest_of(lines[-1]) if lines else None
        round_ = checkpoint.state.round + 1
        turn = Turn(previous, model, asked, at_work)
        checkpoint, line, model, cohort = _run_round(folder, federation, checkpoint, turn)
        lines.append(line)
        asked |= _asked_again(spec, asked, cohort, round_)
    best = checkpoint.best
    chosen = model_bytes(best.params) if best and spec.evaluate.select == "best" else model
    if isinstance(spec.program, Analysis):
        folder.put(TALLY, model)
        folder.put(RESULT, canonical_bytes(spec.program.query.finding(checkpoint.state.params)))
    else:
        folder.put("model.safetensors", chosen)
    folder.put("transcripts.jsonl", b"".join(line + b"\n" for line in lines))
    folder.put("spent.json", b"[]\n")


def _run_round(
    folder: StepFolder,
    federation: Federation,
    before: Checkpoint,
    turn: Turn,
) -> tuple[Checkpoint, bytes, bytes, tuple[str, ...]]:
    """One round; gives the new state, its transcript and its model as on record, and who was asked.

    A round for which too few were drawn asks nobody and leaves the state as it was.
    """
    spec, started, at_work = folder.plan.spec, federation.clock(), turn.at_work
    round_ = before.state.round + 1
    drawing = _drawing(federation, spec, round_, turn.asked)
    losses = _call(folder, federation, before.state.params, drawing)
    drawn = _draw(spec, dataclasses.replace(drawing, losses=losses or {}))
    folder.tell(RoundStarted, round=round_, cohort=spec.strategy.buffered or len(drawn.sites))

    partial = spec.strategy.zero(before.state)
    partial.population = len(federation.sites)
    partial.epochs = spec.local.epochs
    offered = spec.strategy.offer(before.state)
    root = _ask_root(folder, federation, before, offered, partial) if drawn.sites else UNSET
    if at_work is None:
        gathering = _gather(folder, federation, before, offered, drawn, partial)
    else:
        gathering = _gather_arrivals(folder, federation, before, at_work, partial)
    cohort = tuple(sorted(gathering.asked))
    folded = digest_of_fold(partial)
    if cohort:
        require_quorum(spec, round_, cohort, gathering)
        state = _step(spec, _blended(spec, before, gathering, round_), partial)
    else:
        state = dataclasses.replace(before.state, round=round_)
    model = model_bytes(state.params)
    metrics = _measure(folder, federation, state)
    after = Checkpoint(
        state,
        _choose(spec, federation, before.best, state, metrics),
        {**before.memories, **gathering.memories},
        {asked: _given(before, asked) for asked in at_work.rounds} if at_work else {},
    )

    transcript = canonical_bytes(
        RoundTranscript(
            plan=folder.plan.plan_digest,
            job=folder.plan.job,
            round=round_,
            previous=turn.previous,
            previous_model=digest_of(turn.model),
            cohort=cohort,
            keys="simulated",
            commitments=tuple(sorted(gathering.commitments, key=lambda one: one.site)),
            dropped=tuple(
                Dropped(site=site, cause=cause.code)
                for site, cause in sorted(gathering.failures.items())
            ),
            sum=folded,
            model=digest_of(model),
            counts=tuple(drawn.counts[site] for site in cohort) if drawn.counts else UNSET,
            asked=tuple(gathering.asked[site] for site in cohort) if at_work else UNSET,
            candidates=UNSET
            if losses is None
            else tuple(Candidate(site=site, loss=losses[site]) for site in sorted(losses)),
            root=root,
        )
    )
    folder.tell(
        RoundFinished,
        round=round_,
        rounds=spec.rounds,
        sites=len(gathering.commitments),
        dropped=len(gathering.failures),
        loss=weighted_mean(gathering.losses),
        metrics=metrics,
        bytes_up=gathering.bytes_up,
        bytes_down=len(cohort) * _num_bytes(offered)
        + len(spec.cohort.selection.called(drawing)) * _num_bytes(before.state.params),
        seconds=federation.clock() - started,
        model=digest_of(model),
        checkpoint=folder.keep(write_checkpoint(after)),
        transcript=folder.keep(transcript),
        staleness=_mean_staleness(gathering, round_) if at_work else None,
        virtual_time=at_work.time if at_work else None,
    )
    return after, transcript, model, cohort


def _drawing(
    federation: Federation, spec: JobSpec, round: int, asked: Mapping[str, Asked]
) -> Drawing:
    num_sites = len(federation.sites)
    return Drawing(
        sites=federation.sites,
        size=min(spec.cohort.size or num_sites, num_sites),
        round=round,
        seed=spec.init.seed,
        num_examples=federation.num_examples,
        asked=asked,
    )


def _draw(spec: JobSpec, drawing: Drawing) -> Drawn:
    """Sites of a round as the job's selection draws them; none where it draws too few."""
    drawn = spec.cohort.selection.draw(drawing)
    return drawn if len(drawn.sites) >= _fewest(spec) else Drawn(())


def _call(
    folder: StepFolder, federation: Federation, params: Parameters, drawing: Drawing
) -> dict[str, float] | None:
    """Losses of the sites that the selection calls beforehand; None where it calls none.

    Raises:
        StepError: Fewer told than a round needs, or one did not and the job wants none left out.
    """
    spec, round_ = folder.plan.spec, drawing.round
    called = spec.cohort.selection.called(drawing)
    if not called:
        return None
    losses: dict[str, float] = {}
    failures: dict[str, Cause] = {}
    for outcome in federation.exchange.tell_losses(round_, params, called):
        if isinstance(outcome, SiteFailure):
            cause = msgspec.structs.replace(outcome.cause, round=round_)
            failures[cause.site or ""] = cause
        elif LOSS not in outcome.values:
            detail = "the program tells no loss, which the selection goes by"
            cause = Cause(
                code=CauseCode.PROGRAM_RAISED, detail=detail, site=outcome.site, round=round_
            )
            failures[outcome.site or ""] = cause
        elif outcome.num_examples >= spec.evaluate.minimum_count:
            losses[outcome.site or ""] = outcome.values[LOSS]
    causes = [failures[site] for site in sorted(failures)]
    if causes and (len(losses) < _fewest(spec) or spec.cohort.on_site_failure == "fail"):
        raise StepError(causes[0])
    if len(losses) < _fewest(spec):
        detail = (
            f"{len(losses)} of {len(called)} candidates have evaluate.minimum_count = "
            f"{spec.evaluate.minimum_count} examples, {_fewest(spec)} are needed"
        )
        raise StepError(_at(CauseCode.COHORT_TOO_SMALL, detail, round_))
    for cause in causes:
        folder.tell(SiteDropped, round=round_, site=cause.site or "", cause=cause)
    return losses


def _asked_again(
    spec: JobSpec, asked: Mapping[str, Asked], cohort: Sequence[str], round: int
) -> dict[str, Asked]:
    """What is new of when sites were asked, if the selection goes by it."""
    if not spec.cohort.selection.goes_by_history:
        return {}
    return {site: asked.get(site, Asked()).again(round) for site in cohort}


def _at_work(
    spec: JobSpec,
    federation: Federation,
    start: Checkpoint,
    transcripts: Sequence[RoundTranscript],
) -> SitesAtWork | None:
    """Who is at work after the rounds on record; None where rounds wait for their cohort.

    Raises:
        StepError: What is on record is of other arrivals.
    """
    if spec.cohort.arrivals is None:
        return None
    most = spec.cohort.size or len(federation.sites)
    at_work = SitesAtWork(spec.cohort.arrivals, spec.init.seed, federation.sites, most)
    for one in transcripts:
        given_up = [drop for drop in one.dropped if drop.cause is CauseCode.UPDATE_STALE]
        again = at_work.arrive(len(one.cohort) - len(given_up)) + at_work.step()
        if [a.site for a in sorted(again)] != list(one.cohort) or one.asked != tuple(
            a.asked for a in sorted(again)
        ):
            detail = f"the transcript of round {one.round} is not of this job's arrivals"
            raise StepError(_at(CauseCode.INPUT_MISSING, detail, one.round))
    if at_work.rounds != start.versions.keys():
        detail = "the checkpoint has not the models that sites at work were given"
        raise StepError(_at(CauseCode.INPUT_MISSING, detail, start.state.round))
    return at_work


def _given(before: Checkpoint, asked: int) -> Parameters:
    """The model that sites were given that were asked in the round after ``before``, or earlier."""
    return before.versions[asked] if asked <= before.state.round else before.state.params


def _blended(spec: JobSpec, before: Checkpoint, gathering: Gathering, round: int) -> ServerState:
    """The state that the strategy steps from, by what the folded answers began with."""
    asked = [gathering.asked[commitment.site] for commitment in gathering.commitments]
    return spec.strategy.blend(
        before.state, [(_given(before, began), round - began) for began in sorted(asked)]
    )


def _mean_staleness(gathering: Gathering, round: int) -> float | None:
    folded = [round - gathering.asked[one.site] for one in gathering.commitments]
    return sum(folded) / len(folded) if folded else None


def _fewest(spec: JobSpec) -> int:
    """Updates without which there is no step."""
    return max(spec.cohort.minimum, spec.strategy.min_updates)


def _ask_root(
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


def _gather(
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


def _gather_arrivals(
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
                params=_given(before, asked),
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
    minimum = _fewest(spec)
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


def _step(spec: JobSpec, state: ServerState, partial: Partial) -> ServerState:
    try:
        after = spec.strategy.advance(state, partial, spec.ring)
    except StrategyError as error:
        raise StepError(_at(CauseCode.COHORT_TOO_SMALL, str(error), partial.round)) from error
    if not all(np.isfinite(x).all() for x in after.params.values()):
        detail = "the global model overflowed in the server's step; lower the server learning rate"
        raise StepError(_at(CauseCode.UPDATE_NOT_FINITE, detail, partial.round))
    if (size := _num_bytes(after.params)) > spec.limits.output_mb << 20:
        detail = f"the model has grown to {size} bytes, of limits.output_mb = "
        detail += f"{spec.limits.output_mb}"
        raise StepError(_at(CauseCode.PROGRAM_OUTPUT_TOO_LARGE, detail, partial.round))
    return after


def _num_bytes(tree: Parameters) -> int:
    return sum(x.nbytes for x in tree.values())


def _at(code: CauseCode, detail: str, round: int) -> Cause:
    return Cause(code=code, detail=detail, round=round)


def _measure(folder: StepFolder, federation: Federation, state: ServerState) -> dict[str, float]:
    """Metrics of the new global model, if they are due in this round.

    Raises:
        StepError: No place could measure it, or one could not and the job wants none left out.
    """
    asked = folder.plan.spec.evaluate
    is_last = state.round == folder.plan.spec.rounds
    if not asked.metrics or (state.round % asked.every and not is_last):
        return {}
    places: Sequence[str | None] = federation.sites if asked.where == "sites" else (None,)
    found: dict[str, SiteMeasures] = {}
    failures: list[Cause] = []
    for outcome in federation.exchange.measure(state.round, state.params, places):
        if isinstance(outcome, SiteFailure):
            failures.append(msgspec.structs.replace(outcome.cause, round=state.round))
        elif outcome.num_examples >= max(1, asked.minimum_count):
            found[outcome.site or ""] = outcome
    failures.sort(key=lambda cause: cause.site or "")
    if failures and (not found or folder.plan.spec.cohort.on_site_failure == "fail"):
        raise StepError(failures[0])
    for cause in failures:
        folder.tell(SiteDropped, round=state.round, site=cause.site or "", cause=cause)
    means = {
        name: weighted_mean(
            {s: (m.values[name], m.num_examples) for s, m in found.items() if name in m.values}
        )
        for name in asked.metrics
    }
    return {name: mean for name, mean in means.items() if mean is not None}


def weighted_mean(parts: Mapping[str, tuple[float, int]]) -> float | None:
    """Mean of values by weight, the same in any order; None of nothing, or of what is no number."""
    total = sum(weight for _, weight in parts.values())
    if not total:
        return None
    mean = math.fsum(value * weight for value, weight in parts.values()) / total
    return mean if math.isfinite(mean) else None


def _choose(
    spec: JobSpec,
    federation: Federation,
    best: Best | None,
    state: ServerState,
    metrics: Mapping[str, float],
) -> Best | None:
    """The better of the best model so far and the new one; the earlier of equals."""
    if spec.evaluate.select == "last" or not spec.evaluate.metrics:
        return None
    name = spec.evaluate.metrics[0]
    if name not in metrics:
        return best
    own = federation.directions.get(name, "maximize") == "maximize"
    sign_ = 1 if HIGHER_IS_BETTER.get(name, own) else -1
    if best and sign_ * metrics[name] <= sign_ * best.value:
        return best
    return Best(state.round, metrics[name], state.params)
