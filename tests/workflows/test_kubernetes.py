"""Kubeconfigs: what is understood, and what is refused in words that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workflows.kubernetes import ClusterUnknown, in_cluster, read_kubeconfig


def kubeconfig(folder: Path, **changes: Any) -> Path:
    config = {
        "current-context": "here",
        "clusters": [{"name": "lab", "cluster": {"server": "https://10.0.0.1:6443"}}],
        "users": [{"name": "me", "user": {"token": "hunter2"}}],
        "contexts": [{"name": "here", "context": {"cluster": "lab", "user": "me"}}],
        **changes,
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def test_the_current_context_says_where_and_as_whom(tmp_path: Path) -> None:
    cluster = read_kubeconfig(kubeconfig(tmp_path))

    assert cluster.url == "https://10.0.0.1:6443"
    assert cluster.token is not None
    assert cluster.token() == "hunter2"
    assert "hunter2" not in repr(cluster)


def test_a_token_file_is_read_anew_each_time(tmp_path: Path) -> None:
    users = [{"name": "me", "user": {"tokenFile": "token"}}]
    (tmp_path / "token").write_text("first\n")
    cluster = read_kubeconfig(kubeconfig(tmp_path, users=users))
    assert cluster.token is not None

    before = cluster.token()
    (tmp_path / "token").write_text("second\n")

    assert (before, cluster.token()) == ("first", "second")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"current-context": "there"}, "names 'there'"),
        ({"clusters": []}, "names 'lab'"),
        ({"users": []}, "names 'me'"),
        ({"clusters": "many"}, "no kubeconfig that is understood"),
        ({"clusters": [{"name": "lab", "cluster": {"server": "http://a"}}]}, "by https"),
        (
            {
                "clusters": [
                    {
                        "name": "lab",
                        "cluster": {"server": "https://a", "certificate-authority-data": "?"},
                    }
                ]
            },
            "no kubeconfig that is understood",
        ),
        (
            {
                "clusters": [
                    {
                        "name": "lab",
                        "cluster": {"server": "https://a", "certificate-authority": "x"},
                    }
                ]
            },
            "can not be read",
        ),
    ],
    ids=["context", "cluster", "user", "kind", "plain-text", "certificate", "certificate-file"],
)
def test_a_kubeconfig_that_can_not_be_used_says_why(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ClusterUnknown, match=problem) as refusal:
        read_kubeconfig(kubeconfig(tmp_path, **changes))

    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("content", ["", "a: [", "\0"], ids=["empty", "torn", "binary"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "kubeconfig").write_text(content)

    with pytest.raises(ClusterUnknown):
        read_kubeconfig(tmp_path / "kubeconfig")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnknown, match="can not be read"):
        read_kubeconfig(tmp_path / "kubeconfig")


def test_outside_a_cluster_there_is_none(tmp_path: Path) -> None:
    for environ in ({}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}):
        with pytest.raises(ClusterUnknown, match="give a kubeconfig"):
            in_cluster(environ, tmp_path)
