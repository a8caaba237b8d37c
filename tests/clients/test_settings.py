from __future__ import annotations

import stat
from pathlib import Path

import pytest

from clients.errors import FileRefused
from clients.settings import ClientSettings, Login, choose_login, read_login, write_login

HOME = Login("http://127.0.0.1:8470", "foedus_home")


def settings(**changes: object) -> ClientSettings:
    return ClientSettings.model_validate({"url": "", "token": "", **changes})


def test_a_login_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "credentials.json"

    write_login(path, HOME)

    assert read_login(path) == HOME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [kept.name for kept in path.parent.iterdir()] == ["credentials.json"]


def test_a_second_login_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"

    write_login(path, HOME)
    write_login(path, Login("http://127.0.0.1:1", "other"))

    assert read_login(path) == Login("http://127.0.0.1:1", "other")


def test_without_a_login_there_is_none(tmp_path: Path) -> None:
    assert read_login(tmp_path / "credentials.json") is None


def test_a_damaged_login_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_text('{"url": "http://127.0.0.1", "token": foedus_secret')

    with pytest.raises(FileRefused, match="foedus login") as caught:
        read_login(path)

    assert "foedus_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept", "expected"),
    [
        ({}, None, Login("http://127.0.0.1:8470", "")),
        ({}, HOME, HOME),
        ({"token": "foedus_env"}, HOME, Login(HOME.url, "foedus_env")),
        ({"url": HOME.url + "/"}, HOME, HOME),
        ({"url": "http://other"}, HOME, Login("http://other", "")),
        ({"url": "http://other", "token": "t"}, HOME, Login("http://other", "t")),
    ],
    ids=[
        "nothing is known",
        "the kept login is taken",
        "the environment's token wins",
        "a slash makes no other server",
        "a token is not shown to another server",
        "all from the environment",
    ],
)
def test_which_server_is_asked_with_which_token(
    given: dict[str, str], kept: Login | None, expected: Login
) -> None:
    assert choose_login(settings(**given), kept) == expected


def test_a_token_is_not_shown_in_representations() -> None:
    assert "foedus_home" not in repr(HOME)
    assert "foedus_env" not in repr(settings(token="foedus_env"))
