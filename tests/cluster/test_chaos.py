"""What whole runs must survive, against real servers; each fault leaves a row in the table.

Faults of one adapter are played beside its other tests, and those of the reconciler in
``test_deaths``; they leave their rows from there.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from clients.errors import JobFailed
from clients.sdk import Foedus
from control_plane import leases
from control_plane.accounts import bootstrap
from control_plane.admission import submit_job
from control_plane.platform import open_platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import ATTEMPT
from sharing.directory_store import DirectoryStore
from sharing.s3_bucket import Address
from tests.cluster.faults import WAIT_S, Faults, Victim
from tests.cluster.kubernetes import HOST, Namespace
from tests.cluster.minio_server import Server
from tests.cluster.own_postgres import OwnPostgres
from tests.cluster.replicas import facts_of
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.test_s3_platform import settings as s3_settings
from tests.control_plane.conftest import RULES, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine
from tests.e2e.jobs import LINEAR, small
from tests.e2e.real_server import PATIENCE, RealServer, running
from workflows.argo_workflow import MAX_PLAN_BYTES
from workflows.causes import CauseCode
from workflows.job import Bundle, JobSpec

pytestmark = pytest.mark.timeout(420)
ROUNDS = 24
KUBELET_AWAY_S = 5.0
CUT_S = 10.0
CONTROLLER_AWAY_S = 60.0


def job(foedus: Foedus, name: str, rounds: int = ROUNDS) -> JobSpec:
    """All three steps, with a program that loads quickly."""
    return small(foedus, name, rounds)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the model that child processes of this machine make of the job."""
    with running(tmp_path_factory.mktemp("local")) as server, server.client() as foedus:
        closed = foedus.submit(job(foedus, "undisturbed")).wait(WAIT_S)
        assert closed.model is not None
        return foedus.models.get(closed.model).digest


@pytest.fixture
def on_argo(namespace: Namespace, image: str, tmp_path: Path) -> Iterator[RealServer]:
    settings = namespace.settings(image, tmp_path) | {"FOEDUS_SCRATCH_MB": "64"}
    with running(tmp_path / "argo", **settings) as server:
        yield server


@pytest.fixture
def victim(on_argo: RealServer, tmp_path: Path) -> Iterator[Victim]:
    """A run on Argo that is under way."""
    with on_argo.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "doomed")), tmp_path)
        victim.hear_until_round(2)
        yield victim


def test_the_link_of_a_pod_is_cut(
    victim: Victim, namespace: Namespace, expected: str, faults: Faults
) -> None:
    with namespace.cut_off():
        time.sleep(CUT_S)
    victim.relieve()

    closed = victim.require_same(
        faults, f"A pod is cut off the network for {CUT_S:g} s", expected, within_s=30
    )
    assert closed.attempt == 1
    namespace.require_nothing_left()


def test_the_disk_of_a_pod_is_full(
    victim: Victim, namespace: Namespace, expected: str, faults: Faults
) -> None:
    (pod,) = namespace.get("pods")
    # The kubelet looks at disks every minute or so; until then the step gets no further.
    fill = "dd if=/dev/zero of=/run/foedus/attempt/filler bs=1M count=100; kill -STOP -1"
    namespace.kubectl("exec", pod["metadata"]["name"], "-c", "main", "--", "sh", "-c", fill)

    closed = victim.require_same(faults, "The disk of a pod is full", expected, within_s=120)
    assert closed.attempt == 2
    namespace.require_nothing_left()
    (lost,) = [event for event in victim.handle.events() if event.kind == "attempt.lost"]
    assert 'EmptyDir volume "attempt" exceeds the limit' in lost.fields["cause"]["detail"]


def test_a_kubelet_is_killed_and_started_again(
    victim: Victim, lab: Path, namespace: Namespace, expected: str, faults: Faults
) -> None:
    namespace.kubernetes.kill("kubelet-0")
    time.sleep(KUBELET_AWAY_S)
    victim.relieve()
    subprocess.run([lab / "up"], check=True, capture_output=True, timeout=120)

    closed = victim.require_same(
        faults,
        f"The node's kubelet is killed, back after {KUBELET_AWAY_S:g} s",
        expected,
        within_s=60,
    )
    assert closed.attempt == 1
    namespace.require_nothing_left()


def test_argos_controller_is_away_for_a_minute(
    victim: Victim, lab: Path, namespace: Namespace, expected: str, faults: Faults
) -> None:
    namespace.kubernetes.kill("workflow-controller")
    time.sleep(CONTROLLER_AWAY_S)
    victim.relieve()
    subprocess.run([lab / "up"], check=True, capture_output=True, timeout=120)

    closed = victim.require_same(
        faults, f"Argo's controller is away for {CONTROLLER_AWAY_S:g} s", expected, within_s=60
    )
    assert closed.attempt == 1
    namespace.require_nothing_left()


def test_the_replica_that_began_a_run_on_argo_is_killed(
    namespace: Namespace,
    image: str,
    s3: Address,
    bucket: str,
    records_url: str,
    expected: str,
    faults: Faults,
    tmp_path: Path,
) -> None:
    """Two replicas behind one address, on one PostgreSQL and one bucket."""
    address = TcpProxy(0, HOST)
    settings = {
        **namespace.settings(image, tmp_path),
        **s3_settings(s3, bucket, tmp_path),
        "FOEDUS_ENDPOINT_URL": f"http://{HOST}:{address.port}",
        "FOEDUS_DATABASE_URL": records_url,
        "FOEDUS_LEASE_S": "2",
    }
    with running(tmp_path / "one", **settings) as one:
        address.lead_to(one.port)
        with one.client() as foedus:
            began = Victim(foedus.submit(job(foedus, "orphaned")), tmp_path)
            began.hear_until_round(1)  # so it is this one's
        with (
            running(tmp_path / "other", **settings) as other,
            Foedus(other.url, one.token, patience=PATIENCE) as foedus,
        ):
            victim = Victim(foedus.job(began.handle.id), tmp_path)
            victim.hear_until_round(3)
            one.kill()
            address.lead_to(other.port)
            closed = victim.require_same(
                *(faults, "kill -9 of the replica that began a run on Argo, one of two", expected),
                within_s=30,
            )
            namespace.require_nothing_left()
    address.close()

    assert closed.attempt == 1


def test_postgres_crashes_under_a_run(
    own_postgres: OwnPostgres, expected: str, faults: Faults, tmp_path: Path
) -> None:
    settings = {"FOEDUS_DATABASE_URL": own_postgres.url}
    with running(tmp_path / "server", **settings) as server, server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "shaken")), tmp_path)
        for number in (2, 5, 8):
            victim.hear_until_round(number)
            own_postgres.stop("immediate")
            time.sleep(1)
            own_postgres.start()
            victim.relieve()
        closed = victim.require_same(
            faults, "PostgreSQL crashes under a run, three times", expected, within_s=30
        )

    assert closed.attempt == 1


def test_minio_is_away_while_a_model_is_published(
    own_server: Server, expected: str, faults: Faults, tmp_path: Path
) -> None:
    settings = s3_settings(own_server.address, "kept", tmp_path)
    with running(tmp_path / "server", **settings) as server, server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "unpublished")), tmp_path)
        victim.hear_until(lambda e: e.kind == "step.started" and e.fields["step"] == "publish")
        own_server.kill()
        time.sleep(5)
        own_server.start()
        victim.relieve()
        closed = victim.require_same(
            faults, "MinIO is away for 5 s while a model is published", expected, within_s=30
        )

    assert closed.attempt == 1


def test_a_plan_near_the_limit_of_one_object_runs_and_one_beyond_it_is_refused(
    on_argo: RealServer, namespace: Namespace, faults: Faults, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.mkdir()
    code = (LINEAR / "program.py").read_text().replace("def build()", 'def build(note: str = "")')
    (program / "program.py").write_text(code)
    (program / "program.toml").write_text((LINEAR / "program.toml").read_text())
    with on_argo.client() as foedus:
        bundle = Bundle(digest=foedus.programs.push(program).digest)

        def noted(name: str, size: int) -> JobSpec:
            told = msgspec.structs.replace(bundle, config={"note": "x" * size})
            return msgspec.structs.replace(job(foedus, name, 2), program=told)

        began = time.monotonic()
        fits = foedus.submit(noted("near", MAX_PLAN_BYTES - 8_000)).wait(WAIT_S)
        needed_s = time.monotonic() - began
        with pytest.raises(JobFailed) as refused:
            foedus.submit(noted("beyond", MAX_PLAN_BYTES)).wait(WAIT_S)

    namespace.require_nothing_left()
    cause = refused.value.job.cause
    assert cause is not None
    assert cause.code == CauseCode.ENGINE_REFUSED
    faults.record(
        f"Plans of {MAX_PLAN_BYTES - 8_000} and {MAX_PLAN_BYTES} bytes and a little (etcd's limit)",
        f"{fits.phase}; failed, {cause.code}",
        needed_s,
        within_s=60,
        runs=2,
        lost=0,
    )


@pytest.mark.anyio
async def test_the_clock_is_a_day_off_until_an_attempt_is_lost(
    records_url: str, faults: Faults, tmp_path: Path
) -> None:
    told, needed_s = [], []
    for ahead in (timedelta(), timedelta(days=1), timedelta(days=-1)):
        off, began = [ahead], time.monotonic()
        engine = ScriptedEngine()
        engine.lose = {1: 3}  # before a round is over, so that a pause follows
        async with open_platform(
            folder=tmp_path,
            store=DirectoryStore(tmp_path / "objects"),
            rules=replace(RULES, retry_first_s=0.5),
            database_url=records_url,
            now=lambda off=off: datetime.now(UTC) + off[0],
        ) as platform:
            if not told:
                who = await platform.identity.authenticate(await bootstrap(platform) or "")
            reconciler = Reconciler(platform, engine, lambda: "here")
            job = (await submit_job(platform, who, job_spec(), f"key-{ahead.days:05}")).id
            over = select(ATTEMPT.c.number).where(
                ATTEMPT.c.job == job, ATTEMPT.c.ended_at.is_not(None)
            )
            while await reconciler.look():
                assert time.monotonic() < began + 30, reconciler.troubles
                await engine.play(platform)
                if await platform.database.rows(over):
                    off[0] = timedelta()
            told.append(await facts_of(platform, job))
            await leases.give_up(platform.database, platform.replica)
        needed_s.append(time.monotonic() - began)

    faults.record(
        "The clock is a day off, and then put right",
        "the same on record as undisturbed",
        max(needed_s),
        within_s=30,
        runs=2,
        lost=sum(len(told[0] - one) for one in told),
    )
    assert told[1:] == told[:1] * 2
