"""What the settings make of the application's parts, without starting it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from control_plane.app import _report_end, chosen_engine
from control_plane.settings import Settings
from tests.workflows.test_kubernetes import kubeconfig
from workflows.engine import Inspectable, Location


@pytest.mark.parametrize(
    ("pages", "url"),
    [
        (None, None),
        ("https://argo.example", "https://argo.example/workflows/runs/job-1-2"),
        ("https://argo.example/ui/", "https://argo.example/ui/workflows/runs/job-1-2"),
    ],
    ids=str,
)
def test_a_workflow_has_a_link_where_argo_has_pages(
    tmp_path: Path, pages: str | None, url: str | None
) -> None:
    settings = Settings(
        engine="argo",
        image="foedus:1",
        endpoint_url="http://foedus:8470",
        namespace="runs",
        kubeconfig=kubeconfig(tmp_path),
        argo_url=pages,
    )

    engine = chosen_engine(settings, {})

    assert isinstance(engine, Inspectable)
    assert engine.locate("job-1", 2) == Location(namespace="runs", name="job-1-2", url=url)


def test_an_engine_of_one_machine_has_no_place_to_look_at(tmp_path: Path) -> None:
    assert not isinstance(chosen_engine(Settings(data=tmp_path), {}), Inspectable)


async def _ended(name: str, *, is_cancelled: bool) -> list[str]:
    async def loop() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("a bug")

    task = asyncio.create_task(loop(), name=name)
    task.add_done_callback(_report_end)
    if is_cancelled:
        task.cancel()
    with capture_logs() as told:
        await asyncio.wait((task,))
        await asyncio.sleep(0)
    return [f"{one['log_level']} {one['event']}" for one in told]


@pytest.mark.parametrize("name", ["reconciler", "retention"])
def test_a_loop_that_ends_by_itself_is_told_of(name: str) -> None:
    assert asyncio.run(_ended(name, is_cancelled=False)) == [f"critical {name}.ended"]
    assert asyncio.run(_ended(name, is_cancelled=True)) == []
