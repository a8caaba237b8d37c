"""What the chart hands to the server is what the server reads; no helm is needed to see that."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices
from pydantic_settings import BaseSettings
from ruamel.yaml import YAML

from control_plane import settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"


def read_by_the_server() -> set[str]:
    """Variables of every settings class that there is."""
    found: set[str] = set()
    for _, kind in inspect.getmembers(settings, inspect.isclass):
        if issubclass(kind, BaseSettings) and kind is not BaseSettings:
            for name, field in kind.model_fields.items():
                alias = field.validation_alias
                if isinstance(alias, AliasChoices):
                    found |= {choice for choice in alias.choices if isinstance(choice, str)}
                else:
                    found.add(f"FOEDUS_{name.upper()}")
    return found


def rendered_by_the_chart() -> set[str]:
    templates = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
    return set(re.findall(r"FOEDUS_[A-Z0-9_]*[A-Z0-9]", templates)) | free_settings()


def free_settings() -> set[str]:
    """What ``settings`` of the values may name."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = schema["properties"]["settings"]["propertyNames"]["enum"]
    return {f"FOEDUS_{name.upper()}" for name in names}


def test_every_variable_that_the_chart_renders_is_read_by_the_server() -> None:
    assert rendered_by_the_chart() <= read_by_the_server()


def test_every_setting_of_the_server_can_be_given_through_the_chart() -> None:
    ours = {name for name in read_by_the_server() if name.startswith("FOEDUS_")}

    left_out = ours - rendered_by_the_chart()

    in_files_of_secrets = {"FOEDUS_S3_SECRET_KEY", "FOEDUS_DATABASE_URL"}
    other_names = {"FOEDUS_KEYCLOAK", "FOEDUS_KEYCLOAK_CLIENT_ID"}
    known_to_a_pod = {"FOEDUS_KUBECONFIG"}
    assert left_out == in_files_of_secrets | other_names | known_to_a_pod


def test_what_the_chart_decides_itself_is_no_free_setting() -> None:
    templates = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))

    decided = set(re.findall(r"(FOEDUS_[A-Z0-9_]+):", templates))

    assert "FOEDUS_DATA" in decided
    assert not decided & free_settings()


def test_the_chart_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    chart = YAML(typ="safe").load(CHART / "Chart.yaml")

    assert (chart["version"], chart["appVersion"]) == (version, version)


@pytest.mark.parametrize(
    "section", ["", "s3", "argo", "keycloak", "networkPolicy", "ingress", "database"]
)
def test_values_and_schema_name_the_same(section: str) -> None:
    values: dict[str, Any] = YAML(typ="safe").load(CHART / "values.yaml")
    schema = json.loads((CHART / "values.schema.json").read_text())
    if section:
        values, schema = values[section], schema["properties"][section]

    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"global"} == set(values)
