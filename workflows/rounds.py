"""The round loop, the same for every runtime: ask a cohort, fold its answers, step, record.

After each round the server state and the transcript are on record, and a run that goes on from them
computes the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET

from sharing.object_store import Digest, digest_of
from strategies import Parameters, Partial, ServerState, StrategyError, digest_of_fold
from workflows.arrivals import SitesAtWork
from workflows.canonical import canonical_bytes
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Best, Checkpoint, model_bytes, write_checkpoint
from workflows.events import RoundFinished, RoundStarted, SiteDropped
from workflows.exchange import Federation, SiteMeasures
from workflows.gathering import Gathering, ask_root, gather, gather_arrivals, require_quorum
from workflows.job import Analysis, JobSpec
from workflows.metrics import HIGHER_IS_BETTER, LOSS
from workflows.plan import RESULT, TALLY
from workflows.run_folder import StepError, StepFolder
from workflows.selection import Asked, Drawing, Drawn
from workflows.tasks import SiteFailure
from workflows.transcript import Candidate, Dropped, RoundTranscript


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
    root = ask_root(folder, federation, before, offered, partial) if drawn.sites else UNSET
    if at_work is None:
        gathering = gather(folder, federation, before, offered, drawn, partial)
    else:
        gathering = gather_arrivals(folder, federation, before, at_work, partial)
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
        {asked: before.given(asked) for asked in at_work.rounds} if at_work else {},
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
    return drawn if len(drawn.sites) >= spec.fewest_updates else Drawn(())


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
    if causes and (len(losses) < spec.fewest_updates or spec.cohort.on_site_failure == "fail"):
        raise StepError(causes[0])
    if len(losses) < spec.fewest_updates:
        detail = (
            f"{len(losses)} of {len(called)} candidates have evaluate.minimum_count = "
            f"{spec.evaluate.minimum_count} examples, {spec.fewest_updates} are needed"
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


def _blended(spec: JobSpec, before: Checkpoint, gathering: Gathering, round: int) -> ServerState:
    """The state that the strategy steps from, by what the folded answers began with."""
    asked = [gathering.asked[commitment.site] for commitment in gathering.commitments]
    return spec.strategy.blend(
        before.state, [(before.given(began), round - began) for began in sorted(asked)]
    )


def _mean_staleness(gathering: Gathering, round: int) -> float | None:
    folded = [round - gathering.asked[one.site] for one in gathering.commitments]
    return sum(folded) / len(folded) if folded else None


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
