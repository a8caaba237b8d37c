from __future__ import annotations

import re

from tests.control_plane.api.conftest import Server


def test_a_server_that_works_says_so(server: Server) -> None:
    assert server.client.get("/health/live").json()["status"] == "ok"

    ready = server.until(
        lambda: (answer := server.client.get("/health/ready")).status_code == 200 and answer
    )

    assert ready.json() == {
        "status": "ok",
        "checks": {"database": "ok", "store": "ok", "reconciler": "ok"},
    }


def test_metrics_count_requests_by_route_and_jobs_by_phase(server: Server) -> None:
    job = server.submit()
    server.get(f"/v1/jobs/{job}")
    server.get("/v1/jobs/job-none")
    server.get("/nowhere")

    text = server.client.get("/metrics").text

    served = r'foedus_requests_total\{method="GET",route="/v1/jobs/\{job\}",status="200"\} \d+'
    assert re.search(served, text.replace("{job:str}", "{job}")), text
    assert 'status="404"' in text
    assert 'route="(none)"' in text
    assert re.search(r'foedus_open_jobs\{phase="running"\} \d', text)
    assert "foedus_reconciler_pass_seconds" in text
    assert "foedus_event_stream_watchers 0.0" in text
    assert job not in text
    assert "foedus_request_seconds_bucket" in text
    server.cancel(job)
