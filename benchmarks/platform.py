"""What the platform adds to a run on Argo, and how it holds up under a queue of jobs.

Everything is real: the lab's Kubernetes and Argo Workflows, PostgreSQL and MinIO, and the product's
own server beside them, in a namespace, a database and a bucket of its own. ``FOEDUS_LAB`` names the
lab's folder.

**Overhead.** The same job runs on the platform and as a workflow that is handed to ``argo submit
--wait``: the same three steps as three pods in the same order, of the same image, with the same
resources, each running the very command that the platform's wrapper runs (``python -P -m
workflows.runtimes.native FOLDER``, and so on). What the platform adds is missing there: wrapper,
Secret, confinement of the pod, events, logs, checkpoints and artifacts on record, verification. The
steps of the bare workflow hand files on by a volume that is there before, which is quicker than any
artifact. Both are timed by their client, from before it asks until it is told that all is over, in
turn, with few rounds and with many. What a round takes is told by the step's own clock, from the
first round's end to the last one's, for seconds go by as pods wait for room; what is still to be
told then is in the whole run's time.

**Queue.** Two hundred jobs of one pod each (an analysis: no training, so that four processors can
hold twenty of them at a time) are submitted at once, and run twenty at a time. Every workflow that
the cluster ever sees in the namespace is noted by its uid: each job must have one, and no more.
Meanwhile another process reads as people do: jobs, lists, rounds and events, forty reads a second.
The server tells itself how long its passes over open jobs took; percentiles of that histogram are
read as Prometheus reads them, so they are no finer than its buckets.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx
import msgspec

from benchmarks import lab
from benchmarks.api import together
from benchmarks.report import Figure, run_benchmark
from clients.resources import Job
from clients.sdk import Foedus
from sharing.object_store import digest_of
from tests.cluster import minio_server
from tests.cluster.kubernetes import HOST, Namespace
from tests.control_plane.databases import new_database
from tests.e2e.real_server import RealServer, running
from workflows.argo_workflow import MANAGED_BY, Placement, name_of, workflow_of
from workflows.events import AnyStepEvent, RoundFinished
from workflows.job import JobSpec
from workflows.plan import Plan, compile_plan
from workflows.run import Phase

REPETITIONS: Final = 5
FEW_ROUNDS: Final = 5
MANY_ROUNDS: Final = 105
JOBS: Final = 200
AT_A_TIME: Final = 20
READS_PER_S: Final = 40
WAIT_S: Final = 600.0
OVERHEAD_TARGET_S: Final = 3.0
ROUND_TARGET_MS: Final = 10.0
PASS_TARGET_MS: Final = 100.0
READ_TARGET_MS: Final = 50.0
CLAIM: Final = "bare"
EXECUTOR: Final = "foedus-executor"
TRAINING: Final = {
    "name": "overhead",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits", "sites": 10},
    "runtime": {"kind": "native", "workers": 1},
    "init": {"kind": "seed", "seed": 7},
    "output": {"onnx": []},
    "resources": {"server": {"cpu": 0.5}},
}
ANALYSIS: Final = {
    "name": "queued",
    "program": {
        "kind": "analysis",
        "query": {"kind": "count", "column": "y", "values": [100, 200]},
    },
    "data": {"kind": "partitioned", "dataset": "diabetes", "sites": 5},
    "runtime": {"kind": "native", "workers": 1},
    "resources": {"server": {"cpu": 0.1, "memory_mb": 256}, "site": {"memory_mb": 512}},
}


def spec_of(document: Mapping[str, object]) -> JobSpec:
    """A job, from what a user would write."""
    return msgspec.convert(document, JobSpec)


def bare_workflow(plan: Plan, namespace: str, image: str, map_name: str) -> dict[str, Any]:
    """The plan's steps as somebody would write them without a platform."""
    ours = workflow_of(plan, Placement(namespace=namespace, image=image))["spec"]
    templates = {one["name"]: one for one in ours["templates"]}
    folder = "/bare/{{workflow.name}}"

    def template(name: str, module: str, *, is_first: bool) -> dict[str, Any]:
        lay = f"mkdir -p {folder}/inputs {folder}/objects && cp /plan/job.json {folder}/ && "
        run = f"cd {folder} && exec python -P -m {module} {folder}"
        return {
            "name": name,
            "container": {
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", (lay if is_first else "") + run],
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                "resources": templates[name]["container"]["resources"],
                "securityContext": templates[name]["container"]["securityContext"],
                "volumeMounts": [
                    {"name": "files", "mountPath": "/bare"},
                    {"name": "plan", "mountPath": "/plan"},
                ],
            },
        }

    tasks = [
        {"name": step.name, "template": step.name, "dependencies": list(step.after)}
        for step in plan.steps
    ]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "bare-", "namespace": namespace},
        "spec": {
            "entrypoint": "run",
            "serviceAccountName": EXECUTOR,
            "executor": {"serviceAccountName": EXECUTOR},
            "automountServiceAccountToken": False,
            # The namespace admits nothing else.
            "securityContext": ours["securityContext"],
            "podSpecPatch": ours["podSpecPatch"],
            "volumes": [
                {"name": "files", "persistentVolumeClaim": {"claimName": CLAIM}},
                {"name": "plan", "configMap": {"name": map_name}},
            ],
            "templates": [
                {"name": "run", "dag": {"tasks": tasks}},
                *(
                    template(step.name, step.argv[0], is_first=not step.after)
                    for step in plan.steps
                ),
            ],
        },
    }


class Run(NamedTuple):
    """How long a run took, and a round of it on average, in seconds."""

    whole_s: float
    round_s: float


def _apart(ends: Sequence[float]) -> float:
    return (ends[-1] - ends[0]) / (len(ends) - 1)


@dataclass(frozen=True)
class Stage:
    """What runs are measured on.

    Attributes:
        namespace: Of the cluster.
        image: Of all pods.
        server: The platform.
    """

    namespace: Namespace
    image: str
    server: RealServer

    def on_platform(self, rounds: int) -> Run:
        """From before a job is submitted until its client is told that it succeeded."""
        with self.server.client() as foedus:
            began = time.monotonic()
            closed = foedus.submit(spec_of({**TRAINING, "rounds": rounds})).wait(WAIT_S)
            took = time.monotonic() - began
            ends = [one.at.timestamp() for one in foedus.job(closed.id).rounds()]
        if closed.phase != Phase.SUCCEEDED or closed.attempt != 1:
            raise RuntimeError(f"{closed.id}: {closed.phase}, attempt {closed.attempt}")
        return Run(took, _apart(ends))

    def bare(self, rounds: int) -> Run:
        """From before a workflow is submitted until Argo's command line ends."""
        plan = compile_plan(
            "bare", 1, spec_of({**TRAINING, "rounds": rounds}), digest_of(b"bare"), {}
        )
        map_name = f"bare-{rounds}"
        data = {"job.json": msgspec.json.encode(plan).decode()}
        self._apply({"kind": "ConfigMap", "metadata": {"name": map_name}, "data": data})
        manifest = bare_workflow(plan, self.namespace.name, self.image, map_name)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(manifest, file)
            file.flush()
            began = time.monotonic()
            told = self.namespace.argo("submit", "--wait", "-o", "name", file.name)
            took = time.monotonic() - began
        [name] = [line for line in told.split() if line.startswith("bare-")][:1]
        phase = self.namespace.kubectl("get", "workflow", name, "-o", "jsonpath={.status.phase}")
        if phase != "Succeeded":
            raise RuntimeError(f"{name}: {phase}")
        lines = (self._volume() / name / "federate.events.jsonl").read_bytes().splitlines()
        events = [msgspec.json.decode(line, type=AnyStepEvent) for line in lines]
        return Run(took, _apart([one.at for one in events if isinstance(one, RoundFinished)]))

    def claim(self) -> None:
        """Make the volume of the bare workflows."""
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        self._apply({"kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec})

    def _volume(self) -> Path:
        """The folder of this machine that the claim was given."""
        told = self.namespace.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.spec.volumeName}")
        path = "jsonpath={.spec.hostPath.path}"
        return Path(self.namespace.kubectl("get", "pv", told.strip(), "-o", path).strip())

    def _apply(self, manifest: Mapping[str, object]) -> None:
        self.namespace.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", **manifest})
        )


@contextmanager
def stage() -> Iterator[Stage]:
    """A namespace, a database, a bucket and a server on them."""
    s3, bucket = lab.s3(), f"foedus-benchmark-{uuid4().hex[:8]}"
    cluster = lab.kubernetes()
    image = lab.image()
    with ExitStack() as stack:
        stack.callback(minio_server.empty, s3, bucket)
        url = stack.enter_context(new_database(lab.postgres()))
        namespace = cluster.make_namespace()
        stack.callback(namespace.delete)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {
            "FOEDUS_STORE": "s3",
            "FOEDUS_S3_ENDPOINT": s3.endpoint,
            "FOEDUS_S3_SECURE": "false",
            "FOEDUS_S3_REGION": s3.region,
            "FOEDUS_S3_ACCESS_KEY": s3.access_key,
            "FOEDUS_S3_SECRET_KEY": s3.secret_key,
            "FOEDUS_S3_BUCKET": bucket,
            "FOEDUS_DATABASE_URL": str(url),
            "FOEDUS_ENGINE": "argo",
            "FOEDUS_HOST": "0.0.0.0",
            "FOEDUS_ENDPOINT_URL": f"http://{HOST}:{{port}}",
            "FOEDUS_KUBECONFIG": str(namespace.kubeconfig(folder / "kubeconfig")),
            "FOEDUS_NAMESPACE": namespace.name,
            "FOEDUS_IMAGE": image,
            "FOEDUS_MAX_RUNNING": str(AT_A_TIME),
            "FOEDUS_LOG_LEVEL": "warning",
        }
        server = stack.enter_context(running(folder, **settings))
        yield Stage(namespace, image, server)


def overhead(on: Stage) -> Iterator[Figure]:
    """Seconds of whole runs, and what a round costs more."""
    on.claim()
    runs: dict[tuple[str, int], list[Run]] = {
        (way, rounds): [] for way in ("bare", "ours") for rounds in (FEW_ROUNDS, MANY_ROUNDS)
    }
    on.bare(FEW_ROUNDS)  # the image's files are read for the first time
    for _ in range(REPETITIONS):
        for rounds in (FEW_ROUNDS, MANY_ROUNDS):
            runs["bare", rounds].append(on.bare(rounds))
            runs["ours", rounds].append(on.on_platform(rounds))
    for rounds in (FEW_ROUNDS, MANY_ROUNDS):
        for way, name in (("bare", "argo submit of the bare containers"), ("ours", "platform")):
            values = tuple(run.whole_s for run in runs[way, rounds])
            yield Figure(name=f"{name}, {rounds} rounds", unit="s", values=values)
        pairs = list(zip(runs["ours", rounds], runs["bare", rounds], strict=True))
        yield Figure(
            name=f"overhead of a whole run, {rounds} rounds",
            unit="s",
            values=tuple(ours.whole_s - bare.whole_s for ours, bare in pairs),
            target=OVERHEAD_TARGET_S,
        )
    for way, name in (("bare", "a round of the bare containers"), ("ours", "a round")):
        values = tuple(1e3 * run.round_s for run in runs[way, MANY_ROUNDS])
        yield Figure(name=name, unit="ms", values=values)
    a_round = tuple(1e3 * (ours.round_s - bare.round_s) for ours, bare in pairs)
    yield Figure(name="overhead of a round", unit="ms", values=a_round, target=ROUND_TARGET_MS)


class Sightings:
    """Every workflow that the cluster sees in a namespace, by a watch of its own."""

    def __init__(self, namespace: Namespace) -> None:
        # Those of the overhead, which were handed to Argo as they are, are there still.
        columns = "NAME:.metadata.name,UID:.metadata.uid,PHASE:.status.phase"
        command = [str(namespace.kubernetes.programs / "kubectl"), "-n", namespace.name, "get"]
        self._watch = subprocess.Popen(
            [
                *command,
                "workflows",
                "-l",
                MANAGED_BY,
                "--watch",
                "--no-headers",
                "-o",
                f"custom-columns={columns}",
            ],
            env={**os.environ, "KUBECONFIG": str(namespace.kubernetes.kubeconfig)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.uids: dict[str, str] = {}
        self.most_running = 0
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._watch.stdout is not None
        is_running: set[str] = set()
        for line in self._watch.stdout:
            name, uid, phase = line.split()
            self.uids[uid] = name
            (is_running.add if phase == "Running" else is_running.discard)(uid)
            self.most_running = max(self.most_running, len(is_running))

    def end(self) -> None:
        """Stop watching."""
        self._watch.terminate()
        self._watch.wait(30)
        self._reading.join(30)


def _read_on(pipe: Connection, url: str, token: str, jobs: Sequence[str]) -> None:
    """Read at an even pace until asked to end; tell how long each answer took, by route."""
    pipe.send(None)
    pipe.recv()
    paths = (
        *("/v1/jobs/{job}", "/v1/jobs/{job}/events?limit=50", "/v1/jobs/{job}/rounds"),
        *("/v1/jobs?limit=50", "/v1/jobs/{job}"),
    )
    took: list[float] = []
    began = time.monotonic()
    with httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=30,
    ) as client:
        number = 0
        while not pipe.poll():
            due = began + number / READS_PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            path = paths[number % len(paths)].format(job=jobs[number * 7 % len(jobs)])
            start = time.monotonic()
            client.get(path).raise_for_status()
            took.append(time.monotonic() - start)
            number += 1
    pipe.send(took)


def histogram(text: str) -> dict[float, float]:
    """How many passes took so long at most, by that bound."""
    found = re.findall(r'foedus_reconciler_pass_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    return {float(bound): float(count) for bound, count in found}


def percentile(counts: Mapping[float, float], which: float) -> float:
    """As Prometheus's ``histogram_quantile``: linear within a bucket."""
    bounds = sorted(counts)
    rank = counts[bounds[-1]] * which
    below = 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            if bound == float("inf"):
                return below
            inside = counts[bound] - counts.get(below, 0.0)
            return below + (bound - below) * (rank - counts.get(below, 0.0)) / inside
        below = bound
    raise RuntimeError("no pass was counted")


def queue(on: Stage) -> Iterator[Figure]:
    """Two hundred jobs at once."""
    sightings = Sightings(on.namespace)
    before = histogram(httpx.get(f"{on.server.url}/metrics", trust_env=False).text)
    try:
        with on.server.client() as foedus:
            began = time.monotonic()
            jobs = [foedus.submit(spec_of(ANALYSIS)).id for _ in range(JOBS)]
            submitted_s = time.monotonic() - began
            read = partial(_read_on, url=on.server.url, token=on.server.token, jobs=jobs)
            with together(1, read) as (pipe,):
                closed = _wait_for(foedus, jobs)
                whole_s = time.monotonic() - began
                after = histogram(httpx.get(f"{on.server.url}/metrics", trust_env=False).text)
                pipe.send(None)
                reads = pipe.recv()
    finally:
        sightings.end()
    ends = Counter(job.phase for job in closed)
    if ends != {Phase.SUCCEEDED: JOBS}:
        raise RuntimeError(f"jobs ended as {ends}")
    seen = Counter(sightings.uids.values())
    expected = {name_of(job.id, job.attempt) for job in closed}
    passes = {bound: count - before[bound] for bound, count in after.items()}
    cuts = quantiles(reads, n=100)
    yield Figure(name="jobs", unit="", values=(JOBS,))
    yield Figure(name="lost workflows", unit="", values=(len(expected - set(seen)),), target=0)
    doubled = sum(seen.values()) - len(expected & set(seen))
    yield Figure(name="doubled or foreign workflows", unit="", values=(doubled,), target=0)
    again = sum(job.attempt - 1 for job in closed)
    yield Figure(name="attempts beyond the first", unit="", values=(again,))
    yield Figure(
        name="workflows that ran at a time, most",
        unit="",
        values=(sightings.most_running,),
        target=AT_A_TIME,
    )
    yield Figure(name="all submitted", unit="s", values=(submitted_s,))
    yield Figure(name="all ended", unit="s", values=(whole_s,))
    yield Figure(name="passes over open jobs", unit="", values=(passes[float("inf")],))
    yield Figure(name="pass, median", unit="ms", values=(1e3 * percentile(passes, 0.5),))
    yield Figure(
        name="pass, 99th percentile",
        unit="ms",
        values=(1e3 * percentile(passes, 0.99),),
        target=PASS_TARGET_MS,
    )
    yield Figure(name="reads", unit="", values=(len(reads),))
    yield Figure(name="read, median", unit="ms", values=(1e3 * cuts[49],))
    yield Figure(
        name="read, 95th percentile", unit="ms", values=(1e3 * cuts[94],), target=READ_TARGET_MS
    )
    yield Figure(name="read, 99th percentile", unit="ms", values=(1e3 * cuts[98],))


def _wait_for(foedus: Foedus, jobs: Sequence[str]) -> list[Job]:
    """All jobs, once they have ended."""
    deadline = time.monotonic() + WAIT_S
    left, closed = list(jobs), []
    while left:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(left)} of {len(jobs)} jobs have not ended")
        job = foedus.job(left[0]).last
        if job.phase.is_final:
            closed.append(job)
            left.pop(0)
        else:
            time.sleep(0.5)
    return closed


def measure() -> Sequence[Figure]:
    """All figures."""
    with stage() as on:
        return [*overhead(on), *queue(on)]


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "platform",
            "The platform on Argo",
            __doc__ or "",
            ("hera", "psycopg", "minio", "litestar", "sqlalchemy"),
            measure,
        )
    )
