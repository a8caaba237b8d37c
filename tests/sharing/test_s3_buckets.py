from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from sharing.s3_buckets import Buckets, OrganisationUnfit, buckets_of, policy


def test_an_organisation_has_two_buckets() -> None:
    assert buckets_of("north") == Buckets("north-datasets", "north-models")


@pytest.mark.parametrize(
    "organisation",
    ["", "North", "north.south", "-north", "north-", "n/../*", "*", "n" * 53, "nörd"],
)
def test_what_is_no_dns_label_has_no_buckets(organisation: str) -> None:
    with pytest.raises(OrganisationUnfit):
        buckets_of(organisation)


def test_the_longest_name_fits_a_bucket() -> None:
    assert len(buckets_of("n" * 52).datasets) <= 63


def test_an_organisation_may_write_its_data_and_read_its_models() -> None:
    ends_at = datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=2)))
    stated = json.dumps(policy(Buckets("north-datasets", "north-models"), ends_at))
    *rules, denial = json.loads(stated)["Statement"]

    reach = {action: set(rule["Resource"]) for rule in rules for action in rule["Action"]}
    assert reach["s3:PutObject"] == {"arn:aws:s3:::north-datasets/*"}
    assert reach["s3:GetObject"] == {
        "arn:aws:s3:::north-datasets/*",
        "arn:aws:s3:::north-models/*",
    }
    until = {"DateLessThan": {"aws:CurrentTime": "2026-03-01T10:30:00Z"}}
    assert all((rule["Effect"], rule["Condition"]) == ("Allow", until) for rule in rules)
    assert denial == {"Effect": "Deny", "Action": ["admin:*"]}
    assert "*" not in {place for rule in rules for place in rule["Resource"]}
