"""What the server tells Prometheus of itself; labels are routes and phases, never names or ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clients.resources import OrganisationUse, Quota
from workflows.run import Phase

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
PASS_BUCKETS_S = (
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
UNMATCHED = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """How things are at one moment.

    Attributes:
        open_jobs: Jobs by phase.
        oldest_wait_s: Seconds that the first of the queue has waited.
        slots: Jobs that may run at a time.
        stalled: Runs in trouble.
        losses: Attempts lost since the start, by cause.
        watchers: Open event streams.
        age_s: Seconds since the reconciler's last pass ended.
    """

    open_jobs: Mapping[Phase, int]
    oldest_wait_s: float
    slots: int
    stalled: int
    losses: Mapping[str, int]
    watchers: int
    age_s: float


class Metrics:
    """The server's gauges and counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "foedus_requests_total",
            "Requests answered, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "foedus_request_seconds",
            "Seconds until the answer began, by route.",
            ("method", "route"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._open_jobs = Gauge(
            "foedus_open_jobs",
            "Jobs that have not ended, by phase.",
            ("phase",),
            registry=self.registry,
        )
        self._watchers = Gauge(
            "foedus_event_stream_watchers", "Event streams that are open.", registry=self.registry
        )
        self._pass = Histogram(
            "foedus_reconciler_pass_seconds",
            "Seconds that a pass over open jobs took.",
            buckets=PASS_BUCKETS_S,
            registry=self.registry,
        )
        self._age = Gauge(
            "foedus_reconciler_age_seconds",
            "Seconds since the last pass over open jobs ended.",
            registry=self.registry,
        )
        self._queue = Gauge(
            "foedus_queued_jobs", "Jobs that wait for a slot.", registry=self.registry
        )
        self._oldest = Gauge(
            "foedus_queue_oldest_seconds",
            "Seconds since the job was submitted that has waited longest for a slot; 0 if none.",
            registry=self.registry,
        )
        self._slots = Gauge("foedus_slots", "Jobs that may run at a time.", registry=self.registry)
        self._stalled = Gauge(
            "foedus_stalled_runs",
            "Runs of which something cannot be done just now.",
            registry=self.registry,
        )
        self._lost = Counter(
            "foedus_attempts_lost_total",
            "Attempts lost since the server started, by cause.",
            ("cause",),
            registry=self.registry,
        )
        self._failures = Counter(
            "foedus_failures_total",
            "Requests that failed on our side, by problem.",
            ("problem",),
            registry=self.registry,
        )
        self._told_lost: Mapping[str, int] = {}
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request, ``route`` being its path's template; None if no route fits."""
        key = (method, route or UNMATCHED, status)
        series = self._known.get(key)
        if series is None:
            series = self._known[key] = (
                self._requests.labels(method, key[1], str(status)),
                self._latency.labels(method, key[1]),
            )
        series[0].inc()
        series[1].observe(seconds)

    def passed(self, seconds: float) -> None:
        """Count one pass over open jobs."""
        self._pass.observe(seconds)

    def failed(self, problem: str) -> None:
        """Count a request that failed on our side, by the slug of its problem."""
        self._failures.labels(problem).inc()

    def exposition(self, now: Readings) -> bytes:
        """Everything as text, with the gauges as they are now."""
        for phase in Phase:
            if not phase.is_final:
                self._open_jobs.labels(phase.value).set(now.open_jobs.get(phase, 0))
        self._queue.set(now.open_jobs.get(Phase.PENDING, 0))
        self._oldest.set(now.oldest_wait_s)
        self._slots.set(now.slots)
        self._stalled.set(now.stalled)
        self._watchers.set(now.watchers)
        self._age.set(now.age_s)
        for cause, count in now.losses.items():
            self._lost.labels(cause).inc(count - self._told_lost.get(cause, 0))
        self._told_lost = dict(now.losses)
        return generate_latest(self.registry)


def exposition_of(organisations: Sequence[OrganisationUse]) -> bytes:
    """What each organisation has and may have, as text; labels are their ids."""
    registry = CollectorRegistry()
    used = Gauge(
        "foedus_organisation_used",
        "What an organisation has, in the terms of its quota.",
        ("organisation", "resource"),
        registry=registry,
    )
    quota = Gauge(
        "foedus_organisation_quota",
        "What an organisation may have; absent where nothing bounds it.",
        ("organisation", "resource"),
        registry=registry,
    )
    for one in organisations:
        for name in Quota.__struct_fields__:
            used.labels(one.id, name).set(getattr(one.use, name))
            if (bound := getattr(one.quota, name)) is not None:
                quota.labels(one.id, name).set(bound)
    return generate_latest(registry)
