"""One step of an attempt in a pod: ``python -m workflows.pod RUN_DIR --step NAME ...``.

It is the wrapper on a machine that holds nothing but this step. Plan and credentials lie in a
folder of memory, where a container beside this one puts them, and are taken out of it before any
code of a program starts: no secret is mounted where such code runs. What earlier steps made comes
from the store, by the digests that the engine passes on. What the engine is to know is left in
small files, one value each.

Exit codes: 0 done; 75 nothing was told yet and the same may pass when it is tried again; 1 anything
else, for events of a second start under one number would be taken for repetitions.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, cast, get_args

import anyio
import msgspec

from sharing.object_store import digest_of_file, is_digest
from workflows.confinement import hide_memory
from workflows.courier import EVENTS, Courier, CourierError, open_client
from workflows.engine import Activity, Credentials, Observation
from workflows.events import RoundFinished
from workflows.link import LINK
from workflows.manifest import Handover
from workflows.plan import Plan, StepKind
from workflows.processes import adopt_orphans
from workflows.run_directory import RunDirectory, is_laid, take, write_whole
from workflows.run_folder import DONE, FAILED, TRY_AGAIN
from workflows.wrapper import ExitRecord, Wrapper

CREDENTIALS: Final = "credentials.json"
PLAN: Final = "job.json"
OUTCOME: Final = "outcome"
MANIFEST: Final = "manifest"
EVENTS_FILE: Final = "events"
SUMMARY: Final = "summary"


def reports(run: Path) -> Path:
    """Folder of the files that are for the engine."""
    return run / "report"


def exit_code(observation: Observation, *, was_heard: bool) -> int:
    """What the engine is to make of how a step ended. Pure."""
    if observation.activity is Activity.SUCCEEDED:
        return DONE
    cause = observation.cause
    may_pass = observation.activity is Activity.CANCELLED or (
        observation.activity is Activity.FAILED
        and cause is not None
        and cause.explanation.retryable
    )
    return TRY_AGAIN if may_pass and not was_heard else FAILED


def summarise(events: bytes) -> str:
    """How far a step came, in one line: rounds, loss and metrics after the last one. Pure."""
    rounds = [
        event
        for line in events.splitlines()
        if isinstance(event := EVENTS.decode(line), RoundFinished)
    ]
    if not rounds:
        return ""
    last = rounds[-1]
    loss = () if last.loss is None else (f"loss {last.loss:.4g}",)
    metrics = (f"{_plain(name)} {value:.4g}" for name, value in sorted(last.metrics.items()))
    return ", ".join((f"round {last.round} of {last.rounds}", *loss, *metrics))


def _plain(name: str) -> str:
    """A metric's name, which a program chose, without what Argo takes for a template."""
    return re.sub(r"[^\w .-]", "_", name)[:40]


async def work(
    run: RunDirectory,
    plan: Plan,
    step: StepKind,
    credentials: Credentials,
    earlier: Mapping[StepKind, Handover],
    environ: Mapping[str, str],
    grace_s: float,
    link: bytes = b"",
) -> Observation:
    """Run the step, and leave what the engine is to know.

    ``link`` is for a step whose shards are other pods (``workflows.link``).
    """
    async with open_client(credentials) as client:
        courier = Courier(client, credentials, None, plan.job, plan.attempt)
        wrapper = Wrapper(
            run, plan, courier, environ=environ, grace_s=grace_s, earlier=earlier, link=link
        )
        ended = await wrapper.run(step)
        events = run.events(step)
        if ended.activity is Activity.SUCCEEDED:
            write_whole(reports(run.root) / MANIFEST, ended.manifests[step].encode())
            told = digest_of_file(events)
            try:
                await courier.store(told, events)
            except CourierError:
                return Observation(activity=Activity.LOST)
            write_whole(reports(run.root) / EVENTS_FILE, told.encode())
    if events.exists() and ended.activity is not Activity.FAILED:
        write_whole(reports(run.root) / SUMMARY, summarise(events.read_bytes()).encode())
    return ended


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one step of the attempt that lies in the folder that was handed over."""
    parser = argparse.ArgumentParser(prog="python -m workflows.pod")
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--step", required=True, choices=get_args(StepKind))
    parser.add_argument("--handover", type=Path, required=True, help="holds plan and credentials")
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument(
        "--earlier", nargs=3, action="append", default=[], metavar=("STEP", "MANIFEST", "EVENTS")
    )
    given = parser.parse_args(arguments)
    hide_memory()
    adopt_orphans()
    if not is_laid(given.handover):
        print("nothing was handed over", file=sys.stderr)  # noqa: T201
        return TRY_AGAIN
    credentials = msgspec.json.decode(take(given.handover, CREDENTIALS), type=Credentials)
    plan = msgspec.json.decode(take(given.handover, PLAN), type=Plan)
    is_spread = any(step.name == given.step and step.shards for step in plan.steps)
    link = take(given.handover, LINK) if is_spread else b""
    earlier: dict[StepKind, Handover] = {}
    for name, manifest, events in given.earlier:
        if not (is_digest(manifest) and is_digest(events)) or name not in get_args(StepKind):
            parser.error(f"{name} handed nothing over")
        earlier[cast("StepKind", name)] = Handover(manifest=manifest, events=events)
    run = RunDirectory(given.run_directory.resolve())
    for folder in (run.inputs, run.objects, run.home, run.tmp, reports(run.root)):
        folder.mkdir(exist_ok=True)
    write_whole(run.job, msgspec.json.encode(plan))
    record = ExitRecord(reports(run.root) / OUTCOME)

    async def attempt() -> Observation:
        return await work(run, plan, given.step, credentials, earlier, environ, given.grace_s, link)

    ended = anyio.run(attempt)
    record.write(ended)
    events = run.events(given.step)
    return exit_code(ended, was_heard=events.exists() and events.stat().st_size > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
