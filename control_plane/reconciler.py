"""Moving runs on: look, decide, act, and look again.

Nothing is remembered here between two looks but which runs are being moved on just now. What is
done to a run is on record before or after an act that can be repeated, so the process may be killed
at any line, and the next one goes on from what it finds. Replicas share the work by ``leases``.
Only the reconciler speaks to the engine.

A look costs a query or two, however many runs are open: each run is moved on from what these found,
and a change is written only if the run is still what was found. An act that takes long (the engine,
a large object, a line of places to tell) goes on by itself, and holds nothing else up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Row, Select, bindparam, delete, exists, func, insert, select, update

from control_plane import leases, losses, resumption
from control_plane.decisions import Action, Sighting, Standing, decide, sight
from control_plane.fairness import Place
from control_plane.finalisation import Results, Unverified, proofs_of, retain, verify
from control_plane.ids import hash_of_token, new_id, new_token
from control_plane.journal import Fact, load, record, transition
from control_plane.platform import Platform, Rules
from control_plane.quotas import line_of, may_start
from control_plane.records.database import Transaction
from control_plane.records.tables import (
    ARTIFACT,
    ATTEMPT,
    EVENT,
    JOB,
    LEASE,
    MODEL,
    ORGANISATION,
    ROUND,
    VARIANT,
)
from control_plane.refusals import DatabaseUnavailable, NotFound
from control_plane.tracing import spans_of
from control_plane.views import cause_of, spec_of, text_of
from sharing.object_store import Digest, StoreError
from workflows.causes import Cause, CauseCode
from workflows.engine import Credentials, EngineError, Observation, PlanRefused, WorkflowEngine
from workflows.plan import Plan, compile_plan, plan_digest
from workflows.run import Desired, Phase

IDLE_S: Final = 1.0
"""Between looks while nothing is open, so that a heartbeat is seen."""
PATIENCE_S: Final = 0.02
"""Longest that a look of the loop waits for what it began; the rest goes on beside later looks."""
MAX_ACTS: Final = 8
_TAKING: Final = "taking leases"
_TELLING: Final = "telling places"

_log = structlog.get_logger()
_HEARD: Final = (
    select(EVENT.c.id)
    .where(
        EVENT.c.job == bindparam("job"),
        EVENT.c.attempt == bindparam("number"),
        EVENT.c.step.is_not(None),
    )
    .limit(1)
)
_NUM_CHECKPOINTS: Final = (
    select(func.count())
    .where(ROUND.c.job == JOB.c.id, ROUND.c.checkpoint.is_not(None))
    .scalar_subquery()
)


def with_attempt(jobs: Select[Any]) -> Select[Any]:
    """Jobs with what is on record of their newest attempt, and with the number of checkpoints."""
    newest = [
        ATTEMPT.c[name].label(f"attempt_{name}")
        for name in ("inputs", "first_round", "cause", "ended_at")
    ]
    return jobs.add_columns(*newest, _NUM_CHECKPOINTS.label("num_checkpoints")).outerjoin(
        ATTEMPT, (ATTEMPT.c.job == JOB.c.id) & (ATTEMPT.c.number == JOB.c.attempt)
    )


_ONE: Final = with_attempt(select(JOB).where(JOB.c.id == bindparam("job")))
_PLACE: Final = (
    update(JOB)
    .where(
        JOB.c.id == bindparam("run"),
        JOB.c.version == bindparam("seen"),
        exists().where(
            LEASE.c.job == bindparam("run"),
            LEASE.c.holder == bindparam("replica"),
            LEASE.c.fence == bindparam("held"),
        ),
    )
    .values(waits_for=bindparam("place"), version=JOB.c.version + 1, updated_at=bindparam("now"))
)
_INPUTS: Final = msgspec.json.Decoder(dict[str, Digest])


class _Changed(Exception):
    """The job is no longer what was decided on."""


@dataclass(frozen=True, slots=True)
class _View:
    """What one look at a run showed.

    Attributes:
        job: On record, with its newest attempt (``with_attempt``).
        fence: Of the lease on it.
        observation: What the engine says of the attempt; None if it knows of none.
        sighting: What that means.
    """

    job: Row[Any]
    fence: int
    observation: Observation | None
    sighting: Sighting


class Reconciler:
    """Looks at every run that is open, or closed and not cleared away.

    Attributes:
        last_pass: ``time.monotonic()`` at the end of the last look; 0 before the first.
        troubles: What this replica cannot do just now, by run.
        losses: Attempts that this replica found lost since its start, by cause.
    """

    def __init__(
        self,
        platform: Platform,
        engine: WorkflowEngine,
        url: Callable[[], str],
        tell_pass: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            platform: Whose runs.
            engine: What runs them.
            url: Where steps reach the control plane; asked when an attempt starts.
            tell_pass: Takes the seconds that each look took.
        """
        self._platform = platform
        self._engine = engine
        self._url = url
        self._tell_pass = tell_pass
        self._open = with_attempt(leases.open_runs(platform.database))
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._failures: list[BaseException] = []
        self.troubles: dict[str, str] = {}
        self.losses: Counter[str] = Counter()
        self.last_pass = 0.0

    async def run(self) -> None:
        """Look again and again, until cancelled; then let others have what is held."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_leases())
                tasks.create_task(self._look_on())
        finally:
            if moving := list(self._moving.values()):
                for task in moving:
                    task.cancel()
                await asyncio.wait(moving)
            with suppress(DatabaseUnavailable):
                await leases.give_up(self._platform.database, self._platform.replica)

    async def _keep_leases(self) -> None:
        """Hold on to the runs that are ours, however long an act on one of them takes."""
        lease_s = self._platform.rules.lease_s
        while True:
            await asyncio.sleep(lease_s / 4)
            try:
                await leases.renew(self._platform.database, self._platform.replica, lease_s)
            except DatabaseUnavailable as error:
                _log.warning("leases.not_renewed", error=str(error))

    async def _look_on(self) -> None:
        while True:
            started = time.monotonic()
            try:
                is_busy = await self.look(PATIENCE_S)
            except DatabaseUnavailable as error:
                _log.error("reconciler.failed", error=str(error))
                is_busy = True
            else:
                self.last_pass = time.monotonic()
                self._tell_pass(self.last_pass - started)
            interval_s = self._platform.rules.interval_s if is_busy else IDLE_S
            await self._platform.bell.wait(interval_s)

    async def look(self, patience_s: float | None = None) -> bool:
        """Move every run that is ours on as far as it goes now; False if none is open at all.

        A run that an earlier look moves on still is passed over.

        Args:
            patience_s: After which runs that take longer are left to go on; None waits for all.
        """
        database, moving = self._platform.database, set(self._moving)
        rows = await database.rows(self._open)
        fences = await self._hold(rows, patience_s)
        self.troubles = {job: said for job, said in self.troubles.items() if job in fences}
        waiting = {
            place.job: place for place in await line_of(self._platform, rows) if not place.starts
        }
        ours = [row for row in rows if row.id in fences and row.id not in moving]
        for row in ours:
            if row.id not in waiting:
                work = self._guarded(row.id, self._move_on(row, fences[row.id]))
                self._set_going(row.id, work)
        if _TELLING not in moving:
            in_line = [row for row in ours if row.id in waiting]
            self._set_going(_TELLING, self._tell_places(in_line, fences, waiting))
        begun = [task for what, task in self._moving.items() if what not in moving]
        if begun:
            await asyncio.wait(begun, timeout=patience_s)
        if self._failures:
            raise self._failures.pop(0)
        return bool(rows)

    def _set_going(self, what: str, work: Any) -> asyncio.Task[None]:  # noqa: ANN401 - a coroutine
        """Begin to move a run on, or what is done for many; until it ends, looks pass it over.

        What it fails with is raised by the look that it ends in, or by the next one.
        """

        def end(task: asyncio.Task[None]) -> None:
            del self._moving[what]
            if not task.cancelled() and (failure := task.exception()):
                self._failures.append(failure)

        task = asyncio.create_task(work, name=f"move {what}")
        self._moving[what] = task
        task.add_done_callback(end)
        return task

    async def _hold(self, rows: Sequence[Row[Any]], patience_s: float | None) -> dict[str, int]:
        """Take some of the runs that nobody holds; the fences of all that are ours, by job.

        What is taken too late for this look is ours at the next.
        """
        fences, free = leases.held(rows, self._platform.replica), leases.free(rows)
        if free and _TAKING not in self._moving:
            taking = self._set_going(_TAKING, self._take(free[: leases.TAKEN_AT_ONCE], fences))
            await asyncio.wait((taking,), timeout=patience_s)
        if len(free) > leases.TAKEN_AT_ONCE:
            self._platform.bell.ring()
        return fences

    async def _take(self, jobs: Sequence[str], fences: dict[str, int]) -> None:
        """Take what is still free of these, and add the fences to the others."""
        database, rules = self._platform.database, self._platform.rules
        fences |= await leases.take(database, self._platform.replica, jobs, rules.lease_s)

    async def _guarded(self, job: str, work: Any) -> None:  # noqa: ANN401 - a coroutine
        """Do some work on one run, so that its trouble is not everybody's; outermost loop."""
        try:
            await work
        except (_Changed, leases.LeaseLost):
            self._platform.bell.ring()
        except NotFound:
            self.troubles.pop(job, None)
        except (EngineError, StoreError, DatabaseUnavailable) as error:
            self._note(job, f"{type(error).__name__}: {error}", is_bug=False)
        except Exception as error:  # noqa: BLE001 - a bug met by one run must not stop the others
            self._note(job, f"{type(error).__name__}: {error}", is_bug=True)
        else:
            self.troubles.pop(job, None)

    def _note(self, job: str, trouble: str, *, is_bug: bool) -> None:
        """Log what is wrong with a run, once for as long as it is the same."""
        if self.troubles.get(job) != trouble:
            self.troubles[job] = trouble
            log = _log.exception if is_bug else _log.warning
            log("run.stalled", run=job, error=trouble)

    async def _move_on(self, job: Row[Any], fence: int) -> None:
        """Move one run on, from what was found of it."""
        view = await self._observed(job, fence)
        for _ in range(MAX_ACTS):
            action = decide(self._standing(view))
            await self._act(action, view)
            if action in (Action.WAIT, Action.STOP, Action.SETTLE):
                return
            view = await self._view(view.job.id, view.fence)
        self._platform.bell.ring()

    async def _view(self, job_id: str, fence: int) -> _View:
        job = await self._platform.database.one_or_none(_ONE, {"job": job_id})
        if job is None:
            raise NotFound("no such job")
        return await self._observed(job, fence)

    async def _observed(self, job: Row[Any], fence: int) -> _View:
        """What was found on record, with what the engine says of it."""
        if job.attempt == 0:
            return _View(job, fence, None, Sighting.NONE)
        if job.attempt_ended_at is not None:
            return _View(job, fence, None, Sighting.OVER)
        observation = await self._engine.observe(job.id, job.attempt)
        name = {"job": job.id, "number": job.attempt}
        was_heard = observation is None and bool(await self._platform.database.rows(_HEARD, name))
        return _View(job, fence, observation, sight(observation, was_heard=was_heard))

    def _standing(self, view: _View) -> Standing:
        rules = self._platform.rules
        return Standing(
            phase=Phase(view.job.phase),
            desired=Desired(view.job.desired),
            sighting=view.sighting,
            is_due=_is_due(view, rules, self._platform.now()),
            has_attempts=view.job.fruitless < rules.max_attempts,
        )

    async def _act(self, action: Action, view: _View) -> None:
        match action:
            case Action.WAIT:
                if view.job.num_checkpoints > resumption.CHECKPOINTS_KEPT:
                    await resumption.give_up_checkpoints(self._platform, view.job.id)
            case Action.ADMIT:
                await self._admit(view)
            case Action.BEGIN:
                await self._begin(view)
            case Action.SUBMIT:
                await self._submit(view)
            case Action.STOP:
                await self._engine.cancel(view.job.id, view.job.attempt)
            case Action.RECORD_LOSS:
                await self._record_loss(view, losses.cause_of_loss(view.observation))
            case Action.FINALISE:
                await self._finalise(view)
            case Action.FAIL:
                await self._close(view, Phase.FAILED, losses.failure(view.observation))
            case Action.GIVE_UP:
                await self._close(view, Phase.FAILED, losses.exhaustion(view.job))
            case Action.CLOSE_CANCELLED:
                await self._close(view, Phase.CANCELLED, None)
            case Action.SETTLE:
                await self._settle(view)

    async def _admit(self, view: _View) -> None:
        """Give the run a slot, if no other replica gave the last one or the quota's room away."""
        phase, waits_for = Phase.ADMITTED, "the attempt to start"
        async with self._changing(view, alone="slots") as (transaction, row):
            if not await may_start(transaction, self._platform, row):
                raise _Changed(row.id)
            await record(
                transaction,
                self._platform.hub,
                row,
                self._platform.now(),
                {"phase": phase, "waits_for": waits_for},
                [transition(Phase(row.phase), phase, waits_for)],
            )
            await transaction.execute(
                update(ORGANISATION)
                .where(ORGANISATION.c.id == row.organisation)
                .values(served_at=self._platform.now())
            )

    async def _begin(self, view: _View) -> None:
        """Put a new attempt on record; it is handed to the engine afterwards."""
        job, now = view.job, self._platform.now()
        if job.attempt:
            await self._engine.remove(job.id, job.attempt)
        spec = spec_of(job.spec)
        digest = plan_digest(spec, self._platform.environment)
        if digest != job.plan_digest and job.round > 0:
            detail = "the platform was updated while the run was under way; submit it again"
            await self._close(
                view, Phase.FAILED, Cause(code=CauseCode.ENGINE_REFUSED, detail=detail)
            )
            return
        inputs, resumed = await resumption.inputs_of(self._platform, job, spec)
        number = job.attempt + 1
        waits_for = f"attempt {number} to start" if number > 1 else "the attempt to start"
        waits_for += f", from round {resumed}" if resumed else ""
        async with self._changing(view) as (transaction, row):
            await transaction.execute(
                insert(ATTEMPT),
                {
                    "job": job.id,
                    "number": number,
                    "token_hash": hash_of_token(new_token()),  # nobody's, until it is submitted
                    "inputs": text_of(inputs),
                    "first_round": job.round,
                    "cause": None,
                    "started_at": now,
                    "ended_at": None,
                },
            )
            facts = [Fact(kind="attempt.started", fields={"attempt": number})]
            if row.phase != Phase.PROVISIONING:
                facts.append(transition(Phase(row.phase), Phase.PROVISIONING, waits_for))
            changes = {
                "attempt": number,
                "phase": Phase.PROVISIONING,
                "waits_for": waits_for,
                "plan_digest": digest,
            }
            await record(transaction, self._platform.hub, row, now, changes, facts)

    async def _submit(self, view: _View) -> None:
        """Hand the attempt to the engine, with a token that is on record before it is out."""
        job, token = view.job, new_token()
        if plan_digest(spec_of(job.spec), self._platform.environment) != job.plan_digest:
            detail = "the platform was updated before it started"
            await self._record_loss(view, Cause(code=CauseCode.ATTEMPT_LOST, detail=detail))
            return
        async with self._changing(view) as (transaction, _):
            await transaction.execute(
                update(ATTEMPT)
                .where(ATTEMPT.c.job == job.id, ATTEMPT.c.number == job.attempt)
                .values(token_hash=hash_of_token(token))
            )
        try:
            credentials = Credentials(url=self._url(), token=token, traceparent=job.traceparent)
            await self._engine.submit(self._plan(view), credentials)
        except PlanRefused as error:
            cause = Cause(code=CauseCode.ENGINE_REFUSED, detail=str(error))
            await self._close(view, Phase.FAILED, cause)

    async def _record_loss(self, view: _View, cause: Cause) -> None:
        """Put on record that the attempt is over and another may follow."""
        job, now = view.job, self._platform.now()
        fruitless = losses.fruitless_after(job, cause)
        pause_s = losses.pause_s(self._platform.rules, fruitless, cause)
        soon = f"another attempt in {pause_s:g} s" if pause_s else "another attempt"
        waits_for = f"{soon}: {cause.detail or cause.explanation.hint}"
        async with self._changing(view) as (transaction, row):
            await self._end_attempt(transaction, row, now, cause)
            transaction.after_commit(lambda: self.losses.update((str(cause.code),)))
            facts = [Fact(kind="attempt.lost", fields={"attempt": job.attempt, "cause": cause})]
            if row.phase != Phase.PROVISIONING:
                facts.append(transition(Phase(row.phase), Phase.PROVISIONING, waits_for))
            changes = {
                "fruitless": fruitless,
                "phase": Phase.PROVISIONING,
                "waits_for": waits_for,
            }
            await record(transaction, self._platform.hub, row, now, changes, facts)

    async def _finalise(self, view: _View) -> None:
        """Verify what the attempt made, then put all of it on record with the success."""
        assert view.observation is not None  # noqa: S101 - the engine said that it succeeded
        try:
            results = await verify(
                self._platform.store, self._plan(view), view.observation.manifests
            )
        except Unverified as error:
            cause = Cause(code=CauseCode.MANIFEST_INVALID, detail=str(error))
            await self._record_loss(view, cause)
            return
        now = self._platform.now()
        if self._platform.rules.lock_proofs is not None:
            proofs = proofs_of(view.observation.manifests, results)
            await retain(self._platform.store, proofs, now + self._platform.rules.lock_proofs)
        async with self._changing(view) as (transaction, row):
            await self._end_attempt(transaction, row, now, None)
            await transaction.execute(
                insert(ARTIFACT),
                [
                    {
                        "job": row.id,
                        "name": output.name,
                        "digest": output.object.digest,
                        "size_bytes": output.object.size_bytes,
                        "media_type": output.media_type,
                        "step": output.step,
                        "at": now,
                    }
                    for output in results.outputs.values()
                ],
            )
            model = await self._publish(transaction, row, results, now)
            facts = [
                *(
                    [Fact(kind="model.published", fields={"model": model, "name": row.name})]
                    if model
                    else []
                ),
                *_closing(row, Phase.SUCCEEDED, None),
            ]
            changes = {
                "phase": Phase.SUCCEEDED,
                "waits_for": "",
                "model": model,
                "ended_at": now,
            }
            await record(transaction, self._platform.hub, row, now, changes, facts)

    async def _publish(
        self, transaction: Transaction, row: Row[Any], results: Results, now: datetime
    ) -> str | None:
        """Register the model; None if the job does not ask for that."""
        card = results.card
        if card is None:
            return None
        measured = await transaction.one_or_none(
            select(ROUND.c.metrics).where(ROUND.c.job == row.id, ROUND.c.number == card.round)
        )
        model = new_id("model", now)
        await transaction.execute(
            insert(MODEL),
            {
                "id": model,
                "name": card.name,
                "job": row.id,
                "collaboration": row.collaboration,
                "organisation": row.organisation,
                "plan_digest": card.plan_digest,
                "digest": card.digest,
                "parameters": text_of(results.parameters),
                "round": card.round,
                "metrics": measured.metrics if measured else text_of(card.metrics),
                "signature": text_of(card.signature),
                "classes": text_of(card.classes),
                "transcript_head": card.transcript_head,
                "created_at": now,
            },
        )
        names = {output.object.digest: output for output in results.outputs.values()}
        await transaction.execute(
            insert(VARIANT),
            [
                {
                    "model": model,
                    "name": name,
                    "digest": stored.digest,
                    "size_bytes": stored.size_bytes,
                    "media_type": names[stored.digest].media_type,
                }
                for name, stored in card.variants.items()
            ],
        )
        return model

    async def _close(self, view: _View, phase: Phase, cause: Cause | None) -> None:
        now = self._platform.now()
        async with self._changing(view) as (transaction, row):
            await self._end_attempt(transaction, row, now, cause)
            changes = {
                "phase": phase,
                "waits_for": "",
                "cause": None if cause is None else text_of(cause),
                "ended_at": now,
            }
            facts = _closing(row, phase, cause)
            await record(transaction, self._platform.hub, row, now, changes, facts)

    async def _settle(self, view: _View) -> None:
        """Clear away what a closed run no longer needs."""
        job = view.job
        if job.attempt:
            await self._engine.remove(job.id, job.attempt)
        await resumption.give_up_checkpoints(self._platform, job.id)
        async with self._platform.database.writing() as transaction:
            await transaction.execute(update(JOB).where(JOB.c.id == job.id).values(settled=True))
            await transaction.execute(delete(LEASE).where(LEASE.c.job == job.id))
        if self._platform.send_spans is not None:
            rows = self._platform.database.rows
            attempts = await rows(select(ATTEMPT).where(ATTEMPT.c.job == job.id))
            events = await rows(select(EVENT).where(EVENT.c.job == job.id).order_by(EVENT.c.id))
            self._platform.send_spans(spans_of(job, attempts, events))

    async def _tell_places(
        self, rows: Sequence[Row[Any]], fences: Mapping[str, int], places: Mapping[str, Place]
    ) -> None:
        """Put on record what those wait for who wait in line; all at once, for the line is long.

        A run that was changed meanwhile is passed over until the next look.
        """
        now = self._platform.now()
        told = [
            {
                "run": row.id,
                "seen": row.version,
                "replica": self._platform.replica,
                "held": fences[row.id],
                "place": places[row.id].waits_for,
                "now": now,
            }
            for row in rows  # in the order of their ids, as whoever locks several must
            if row.waits_for != places[row.id].waits_for
        ]
        if told:
            async with self._platform.database.writing() as transaction:
                await transaction.execute(_PLACE, told)

    def _plan(self, view: _View) -> Plan:
        job = view.job
        plan = compile_plan(
            job.id,
            job.attempt,
            spec_of(job.spec),
            self._platform.environment,
            _INPUTS.decode(job.attempt_inputs),
        )
        # An attempt that outlived an update of the platform still computes what it began with.
        return msgspec.structs.replace(
            plan, plan_digest=job.plan_digest, organisation=job.organisation
        )

    @asynccontextmanager
    async def _changing(
        self, view: _View, alone: str | None = None
    ) -> AsyncIterator[tuple[Transaction, Row[Any]]]:
        """A transaction on the job as it was seen, under the lease; the only one under a name.

        Raises:
            _Changed: It is not that any more; nothing was written.
            LeaseLost: Another replica moves it on; nothing was written.
        """
        async with self._platform.database.writing() as transaction:
            if alone is not None:
                await transaction.alone(alone)
            row = await load(transaction, view.job.id)
            if row.version != view.job.version:
                raise _Changed(view.job.id)
            await leases.require(transaction, row.id, self._platform.replica, view.fence)
            yield transaction, row

    async def _end_attempt(
        self, transaction: Transaction, row: Row[Any], now: datetime, cause: Cause | None
    ) -> None:
        """From now on nothing of the attempt is taken."""
        await transaction.execute(
            update(ATTEMPT)
            .where(
                ATTEMPT.c.job == row.id,
                ATTEMPT.c.number == row.attempt,
                ATTEMPT.c.ended_at.is_(None),
            )
            .values(ended_at=now, cause=None if cause is None else text_of(cause))
        )


def _is_due(view: _View, rules: Rules, now: datetime) -> bool:
    """Whether the pause is over; an end that lies ahead was told by a clock since put back."""
    ended_at = view.job.attempt_ended_at
    if ended_at is None:
        return True
    cause = cause_of(view.job.attempt_cause)
    pause = timedelta(seconds=losses.pause_s(rules, view.job.fruitless, cause))
    return not timedelta() <= now - ended_at < pause


def _closing(row: Row[Any], phase: Phase, cause: Cause | None) -> list[Fact]:
    fields: Mapping[str, Any] = {"phase": phase, "cause": cause}
    return [
        transition(Phase(row.phase), phase, ""),
        Fact(kind="run.closed", fields=fields),
    ]
