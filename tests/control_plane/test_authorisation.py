from __future__ import annotations

from itertools import product

import pytest

from clients.identity import Principal
from clients.resources import Role
from control_plane.authorisation import Action, Relation, may, relation_of

# action               | own organisation's                                        | a partner's
TABLE = """
read                   | developer operator admin data-owner privacy-officer auditor | developer operator admin data-owner privacy-officer auditor
submit                 | developer admin                                           | developer admin
cancel                 | developer operator admin                                  | operator
delete                 | developer admin                                           |
read-logs              | developer operator admin                                  | operator
upload                 | developer admin                                           |
found                  | admin                                                     |
manage-users           | admin                                                     |
manage-organisations   | admin                                                     |
manage-storage         | admin                                                     |
read-audit             | admin auditor                                             |
read-platform          | admin operator                                            |
"""  # noqa: E501 - a table
EXPECTED = {
    (action.strip(), relation): set(roles.split())
    for action, owner, partner in (line.split("|") for line in TABLE.strip().splitlines())
    for relation, roles in (("owner", owner), ("partner", partner), ("stranger", ""))
}


@pytest.mark.parametrize(("action", "relation"), [*product(Action, Relation)])
def test_each_role_may_what_is_written(action: Action, relation: Relation) -> None:
    allowed = {str(role) for role in Role if may(frozenset({role}), action, relation)}

    assert allowed == EXPECTED[action, relation]


@pytest.mark.parametrize(("action", "relation"), [*product(Action, Relation)])
def test_roles_add_up_and_none_is_nothing(action: Action, relation: Relation) -> None:
    assert may(frozenset(Role), action, relation) == bool(EXPECTED[action, relation])
    assert not may(frozenset(), action, relation)


@pytest.mark.parametrize(
    ("organisation", "is_partner", "expected"),
    [
        ("a", True, "owner"),
        ("a", False, "owner"),
        ("b", True, "partner"),
        ("b", False, "stranger"),
    ],
)
def test_a_caller_stands_to_a_thing_as(organisation: str, is_partner: bool, expected: str) -> None:
    who = Principal(user="u", name="u", organisation=organisation, roles=frozenset())

    assert relation_of(who, "a", is_partner=is_partner) == expected
