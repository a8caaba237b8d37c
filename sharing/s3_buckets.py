"""An organisation's own buckets, and credentials that reach these and nothing else.

``ORG-datasets`` is the organisation's to fill; ``ORG-models`` the platform's, for it to read. Both
keep what is overwritten or deleted. Credentials are users at the server whose policy binds them to
these buckets and to a time; they can be ended before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sharing.object_store import BucketAccess, StoreError
from sharing.s3_bucket import Address, Bucket, make_account

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


def give_access(
    address: Address, organisation: str, ends_at: datetime, public_endpoint: str
) -> BucketAccess:
    """Credentials for an organisation's buckets, which are made if need be; blocks.

    Args:
        address: The server, with the platform's own credentials.
        organisation: Its id.
        ends_at: When they end.
        public_endpoint: ``HOST[:PORT]`` by which organisations reach the server.

    Raises:
        OrganisationUnfit: It has no buckets.
        StoreError: None were made.
    """
    buckets = make_buckets(address, organisation)
    own = make_account(address, policy(buckets, ends_at))
    return BucketAccess(
        url=("https://" if address.secure else "http://") + public_endpoint,
        region=address.region,
        access_key=own.access_key,
        secret_key=own.secret_key,
        datasets=buckets.datasets,
        models=buckets.models,
    )


def policy(buckets: Buckets, ends_at: datetime) -> dict[str, object]:
    """What the organisation may do until then, as S3 spells it.

    What it makes of its credentials (temporary ones, by AssumeRole) is bound by it, too.
    """
    while_good = {"DateLessThan": {"aws:CurrentTime": f"{ends_at.astimezone(UTC):%FT%TZ}"}}
    allowed = [
        _allow(_PLACE, buckets.datasets, buckets.models),
        _allow(_READ, f"{buckets.datasets}/*", f"{buckets.models}/*"),
        _allow(_WRITE, f"{buckets.datasets}/*"),
    ]
    statements = [
        *({**statement, "Condition": while_good} for statement in allowed),
        {"Effect": "Deny", "Action": ["admin:*"]},  # or it could make accounts below its own
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(actions: tuple[str, ...], *places: str) -> dict[str, object]:
    resources = [f"arn:aws:s3:::{place}" for place in places]
    return {"Effect": "Allow", "Action": list(actions), "Resource": resources}
