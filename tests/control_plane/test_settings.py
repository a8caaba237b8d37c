from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from control_plane import settings as module
from control_plane.settings import Settings, default_data_folder


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOEDUS_PORT", "9000")
    monkeypatch.setenv("FOEDUS_DATA", "/srv/foedus")
    monkeypatch.setenv("FOEDUS_TOKEN", "the client's, not ours")

    settings = Settings()

    assert (settings.port, settings.data) == (9000, Path("/srv/foedus"))


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "70000"), ("MAX_RUNNING", "0"), ("REQUEST_S", "soon")]
)
def test_a_wrong_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FOEDUS_{name}", value)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert refused.value.errors()[0]["loc"] == (name.lower(),)


def test_the_data_folder_follows_the_desktop_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")

    assert default_data_folder() == Path("/xdg/foedus")


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("foedus.local", "foedus.local"),
    ],
)
def test_this_machine_reaches_the_server(host: str, reachable: str) -> None:
    assert Settings(host=host).reachable_host == reachable


def test_every_setting_says_what_it_does() -> None:
    source = inspect.getsource(module)
    for name in Settings.model_fields:
        after = source.partition(f"\n    {name}: ")[2]
        assert after.split("\n\n")[0].count('"""') == 2, name
