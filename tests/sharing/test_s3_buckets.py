from __future__ import annotations

import json

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
    rules = json.loads(policy(Buckets("north-datasets", "north-models")))["Statement"]

    reach = {action: set(rule["Resource"]) for rule in rules for action in rule["Action"]}
    assert reach["s3:PutObject"] == {"arn:aws:s3:::north-datasets/*"}
    assert reach["s3:GetObject"] == {
        "arn:aws:s3:::north-datasets/*",
        "arn:aws:s3:::north-models/*",
    }
    assert all(rule["Effect"] == "Allow" for rule in rules)
    assert "*" not in {place for rule in rules for place in rule["Resource"]}
