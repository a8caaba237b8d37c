"""What the server tells Prometheus of itself; labels are routes and phases, never names or ids."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from workflows.run import Phase

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
UNMATCHED = "(none)"


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
        self._pass = Gauge(
            "foedus_reconciler_pass_seconds",
            "Seconds that the last pass over open jobs took.",
            registry=self.registry,
        )
        self._age = Gauge(
            "foedus_reconciler_age_seconds",
            "Seconds since the last pass over open jobs ended.",
            registry=self.registry,
        )
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

    def exposition(
        self, *, open_jobs: Mapping[Phase, int], watchers: int, pass_s: float, age_s: float
    ) -> bytes:
        """Everything as text, with the gauges as they are now."""
        for phase in Phase:
            if not phase.is_final:
                self._open_jobs.labels(phase.value).set(open_jobs.get(phase, 0))
        self._watchers.set(watchers)
        self._pass.set(pass_s)
        self._age.set(age_s)
        return generate_latest(self.registry)
