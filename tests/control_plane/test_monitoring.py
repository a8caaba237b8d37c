"""What the dashboard and the alerts ask for is what the server tells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from clients.resources import OrganisationUse, Quota, Use
from control_plane.api.metrics import Metrics, Readings, exposition_of
from workflows.run import Phase

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"foedus_\w+")


def readings(**changes: object) -> Readings:
    parts: dict[str, object] = {
        "open_jobs": {Phase.PENDING: 3},
        "oldest_wait_s": 12.5,
        "slots": 2,
        "stalled": 1,
        "losses": {"attempt-lost": 2},
        "watchers": 4,
        "age_s": 0.2,
    }
    return Readings(**{**parts, **changes})  # type: ignore[arg-type]


def samples(text: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def told() -> set[str]:
    """Names of all series that a server tells."""
    metrics = Metrics()
    metrics.answered("GET", "/v1/jobs", 200, 0.01)
    metrics.failed("store-unavailable")
    use = OrganisationUse(
        id="organisation-1",
        name="home",
        use=Use(running=1, workers=4, storage_bytes=10, open_jobs=2),
        quota=Quota(storage_bytes=100),
    )
    return {*samples(metrics.exposition(readings())), *samples(exposition_of([use]))}


def test_every_metric_of_the_alerts_is_told(told: set[str]) -> None:
    rules = YAML(typ="safe").load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    asked = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in NAME.findall(rule["expr"])
    }

    assert len(asked) >= 8
    assert asked <= told


def test_every_metric_of_the_dashboard_is_told(told: set[str]) -> None:
    board = json.loads((DEPLOY / "grafana" / "foedus.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in NAME.findall(target["expr"])
    }

    assert len(asked) >= 12
    assert asked <= told


def test_losses_are_counted_on_from_what_was_told() -> None:
    metrics = Metrics()

    metrics.exposition(readings(losses={"attempt-lost": 2}))
    text = metrics.exposition(readings(losses={"attempt-lost": 5}))

    assert samples(text)["foedus_attempts_lost_total"] == 5
    assert samples(text)["foedus_queue_oldest_seconds"] == 12.5
    assert samples(text)["foedus_queued_jobs"] == 3


def test_passes_are_counted_by_how_long_they_took() -> None:
    metrics = Metrics()
    metrics.passed(0.04)
    metrics.passed(0.2)

    text = metrics.exposition(readings()).decode()

    assert 'foedus_reconciler_pass_seconds_bucket{le="0.03"} 0.0' in text
    assert 'foedus_reconciler_pass_seconds_bucket{le="0.1"} 1.0' in text
    assert "foedus_reconciler_pass_seconds_count 2.0" in text


def test_the_public_page_names_nobody() -> None:
    assert b"organisation" not in Metrics().exposition(readings())
