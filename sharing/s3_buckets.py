"""An organisation's own buckets, and credentials that reach these and nothing else.

``ORG-datasets`` is the organisation's to fill; ``ORG-models`` the platform's, for it to read. Both
keep what is overwritten or deleted. Credentials are temporary and bound to a policy at the server
(AssumeRole with a session policy), so nothing has to be revoked, and no list of keys be kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sharing.object_store import StoreError
from sharing.s3_bucket import Address, Bucket, assume_role

LEAST_LIFETIME_S: Final = 3600
MOST_LIFETIME_S: Final = 7 * 24 * 3600
_PLACE: Final = ("s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketVersions")
_READ: Final = ("s3:GetObject", "s3:GetObjectVersion")
_WRITE: Final = (
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)


class OrganisationUnfit(StoreError):
    """No bucket can be named after this organisation."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Names of an organisation's buckets.

    Attributes:
        datasets: What it brings; it may read and write.
        models: What the platform made for it; it may read.
    """

    datasets: str
    models: str


@dataclass(frozen=True, slots=True)
class Access:
    """How an organisation reaches its buckets for a while.

    Attributes:
        buckets: Their names.
        address: The server, with the temporary credentials.
        ends_at: When these end.
    """

    buckets: Buckets
    address: Address
    ends_at: datetime


def buckets_of(organisation: str) -> Buckets:
    """Names of the buckets of the organisation with this id; no two share one.

    Raises:
        OrganisationUnfit: It is no DNS label, or too long for one with its ending.
    """
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,50}[a-z0-9])?", organisation):
        raise OrganisationUnfit(f"{organisation!r} is not fit for the name of a bucket")
    return Buckets(datasets=f"{organisation}-datasets", models=f"{organisation}-models")


def make_buckets(address: Address, organisation: str) -> Buckets:
    """Make an organisation's buckets where they are not there yet; blocks, and may be repeated.

    Raises:
        OrganisationUnfit: No bucket can be named after it.
        StoreError: They were not (all) made.
    """
    buckets = buckets_of(organisation)
    for name in (buckets.datasets, buckets.models):
        bucket = Bucket(address, name, num_connections=1)
        try:
            bucket.make_keeping()
        finally:
            bucket.close()
    return buckets


def give_access(address: Address, organisation: str, lifetime_s: int) -> Access:
    """Temporary credentials for an organisation's buckets; blocks.

    Args:
        address: The server, with the platform's own credentials.
        organisation: Its id.
        lifetime_s: Seconds for which they hold: an hour to a week; others are brought there.

    Raises:
        OrganisationUnfit: It has no buckets.
        StoreError: None were made.
    """
    buckets = buckets_of(organisation)
    lifetime_s = min(max(lifetime_s, LEAST_LIFETIME_S), MOST_LIFETIME_S)
    temporary, ends_at = assume_role(address, policy(buckets), lifetime_s)
    return Access(buckets, temporary, ends_at)


def policy(buckets: Buckets) -> str:
    """What the organisation may do, as S3 spells it."""
    statements = [
        _allow(_PLACE, buckets.datasets, buckets.models),
        _allow(_READ, f"{buckets.datasets}/*", f"{buckets.models}/*"),
        _allow(_WRITE, f"{buckets.datasets}/*"),
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _allow(actions: tuple[str, ...], *places: str) -> dict[str, object]:
    resources = [f"arn:aws:s3:::{place}" for place in places]
    return {"Effect": "Allow", "Action": list(actions), "Resource": resources}
