"""One bucket of an S3 server, as blocking calls: the only module that knows the minio SDK.

Each call has a timeout and a bounded number of tries, and may therefore be repeated by itself;
callers count on no more than that. Keys and secrets are in no error: these name the bucket and
the right that is lacking.

The SDK offers multipart uploads only as a whole and conditional writes not at all, so requests go
through its ``_execute`` (signing, regions, redirects). Source: Amazon S3 API Reference, 2006-03-01;
the codes that start with XMinio are MinIO's (cmd/api-errors.go).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import urlunsplit
from xml.etree import ElementTree

import certifi
import urllib3
from minio import Minio, MinioAdmin, signer, time
from minio.commonconfig import COMPLIANCE, ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import InvalidResponseError, MinioAdminException, S3Error, ServerError
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)
from minio.retention import Retention
from minio.versioningconfig import VersioningConfig
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from sharing.object_store import (
    BucketMissing,
    ObjectMissing,
    RightMissing,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)

CONNECT_S: Final = 3.0
READ_S: Final = 20.0
"""Longest silence of the server; a part of an upload takes far less."""
MOST_TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.25
STAGING: Final = "partial/"
"""Of uploads whose name is not known yet; nobody reads there."""

_MISSING: Final = frozenset({"NoSuchKey", "NoSuchVersion", "MethodNotAllowed"})
_FULL: Final = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
)
_CREDENTIALS: Final = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "InvalidTokenId",
        "AccountProblem",
    }
)
_CONDITION: Final = frozenset(
    {"PreconditionFailed", "ConditionalRequestConflict", "BucketAlreadyOwnedByYou"}
)
_PASSING: Final = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "OperationAborted",
    }
)


class Right(Enum):
    """What a policy must allow for a call to work."""

    READ = "s3:GetObject"
    WRITE = "s3:PutObject"
    DELETE = "s3:DeleteObject"
    ABORT = "s3:AbortMultipartUpload"
    LIST = "s3:ListBucket"
    LIST_PARTS = "s3:ListMultipartUploadParts"
    MAKE = "s3:CreateBucket"
    KEEP = "s3:PutBucketVersioning"
    RETAIN = "s3:PutObjectRetention"
    EXPIRE = "s3:PutLifecycleConfiguration"


class ConditionFailed(StoreError):
    """The object is not (or no longer) as a condition of the call said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an S3 server is and who we are there.

    Attributes:
        endpoint: ``HOST`` or ``HOST:PORT``.
        secure: True for HTTPS.
        region: The buckets' region.
        access_key: Whose credentials.
        secret_key: Secret of ``access_key``; never shown.
        session_token: Of temporary credentials; empty for lasting ones.
        ca_file: Certificates to trust instead of the public authorities'.
    """

    endpoint: str
    secure: bool = True
    region: str = "us-east-1"
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an object.

    Attributes:
        size_bytes: Its length.
        etag: Changes when the bytes do.
        changed: When it was written, as the server spells it.
        id: Its name in a bucket with versions; otherwise empty.
    """

    size_bytes: int
    etag: str
    changed: str
    id: str


class Bucket:
    """A bucket; may be used by several threads at once."""

    def __init__(self, address: Address, name: str, *, num_connections: int = 16) -> None:
        """Nothing is asked of the server yet.

        Args:
            address: Where it is.
            name: Its name.
            num_connections: Most connections that are kept open.
        """
        self.name = name
        self._address = address
        self._http = _connections(address, num_connections)
        self._client = Minio(
            address.endpoint,
            access_key=address.access_key,
            secret_key=address.secret_key,
            session_token=address.session_token or None,
            secure=address.secure,
            region=address.region,
            http_client=self._http,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def version(self, key: str) -> Version:
        """The present state of an object.

        Raises:
            ObjectMissing: There is none.
        """
        try:
            headers = self._call(Right.READ, "HEAD", key).headers
        except ObjectMissing:
            self.require()  # for S3's answer to HEAD does not tell what is missing
            raise
        return Version(
            size_bytes=int(headers["Content-Length"]),
            etag=headers["ETag"],
            changed=headers["Last-Modified"],
            id=headers.get("x-amz-version-id", ""),
        )

    def read(self, key: str, version: Version, start: int, stop: int) -> bytes:
        """The bytes ``start`` to ``stop`` (exclusive, within it) of one state of an object.

        Raises:
            ObjectMissing: It was deleted.
            ConditionFailed: It was written since.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Match": version.etag}
        query = {"versionId": version.id} if version.id else {}
        content = self._call(Right.READ, "GET", key, headers=headers, query=query).data
        if len(content) != stop - start:
            raise StoreUnavailable(f"bucket {self.name}: an answer was cut short")
        return content

    def put(self, key: str, content: bytes, condition: Mapping[str, str]) -> None:
        """Write an object in one go.

        Raises:
            ConditionFailed: ``condition`` (headers of RFC 9110, section 13) does not hold.
        """
        self._call(Right.WRITE, "PUT", key, body=content, headers=condition)

    def begin(self, key: str) -> str:
        """Begin a multipart upload; its name."""
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._call(Right.WRITE, "POST", key, headers=headers, query={"uploads": ""})
        return _text(answer.data, "UploadId")

    def put_part(self, key: str, upload: str, number: int, content: bytes) -> str:
        """Add a part, numbered from 1; its ETag.

        Raises:
            UploadGone: The upload was completed or discarded.
        """
        query = {"partNumber": str(number), "uploadId": upload}
        return self._call(Right.WRITE, "PUT", key, body=content, query=query).headers["ETag"]

    def copy_part(
        self, key: str, upload: str, number: int, source: str, start: int, stop: int
    ) -> str:
        """Add bytes of another object of the bucket as a part, on the server; its ETag.

        The right to write was needed to begin the upload, so what lacks is the one to read.
        """
        headers = {
            "x-amz-copy-source": f"/{self.name}/{source}",
            "x-amz-copy-source-range": f"bytes={start}-{stop - 1}",
        }
        query = {"partNumber": str(number), "uploadId": upload}
        answer = self._call(Right.READ, "PUT", key, headers=headers, query=query)
        return _text(answer.data, "ETag")

    def complete(
        self, key: str, upload: str, etags: Sequence[str], condition: Mapping[str, str]
    ) -> None:
        """Make the parts, in order, an object.

        Raises:
            ConditionFailed: ``condition`` does not hold; the upload is as it was.
            UploadGone: The upload was completed or discarded.
        """
        root = ElementTree.Element("CompleteMultipartUpload")
        for number, etag in enumerate(etags, 1):
            part = ElementTree.SubElement(root, "Part")
            ElementTree.SubElement(part, "PartNumber").text = str(number)
            ElementTree.SubElement(part, "ETag").text = etag
        body = ElementTree.tostring(root)
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = {"Content-Type": "application/xml", "Content-MD5": md5, **condition}
        answer = self._call(
            Right.WRITE, "POST", key, body=body, headers=headers, query={"uploadId": upload}
        )
        root = ElementTree.fromstring(answer.data)  # noqa: S314 - from the server we trust with all
        if root.tag.rpartition("}")[2] == "Error":  # S3 may say 200 before it fails
            raise StoreUnavailable(f"bucket {self.name}: an upload could not be completed")

    def parts(self, key: str, upload: str) -> dict[int, tuple[str, int]]:
        """ETags and sizes in bytes of the parts that an upload has, by number.

        The right to write was needed to begin the upload, so what lacks is the one to list.

        Raises:
            UploadGone: The upload was completed or discarded.
        """
        found: dict[int, tuple[str, int]] = {}
        marker = "0"
        while marker:
            query = {"uploadId": upload, "part-number-marker": marker}
            answer = self._call(Right.LIST_PARTS, "GET", key, query=query)
            root = ElementTree.fromstring(answer.data)  # noqa: S314 - from the server we trust
            for part in root.iterfind("{*}Part"):
                number, etag, size = (
                    part.findtext(f"{{*}}{name}", "") for name in ("PartNumber", "ETag", "Size")
                )
                found[int(number)] = (etag, int(size))
            is_cut = root.findtext("{*}IsTruncated") == "true"
            marker = root.findtext("{*}NextPartNumberMarker", "") if is_cut else ""
        return found

    def part_link(
        self, key: str, upload: str, number: int, size_bytes: int, lifetime: timedelta
    ) -> str:
        """A URL that takes one part of just this size; nothing is asked of the server.

        The SDK signs the host alone. With ``Content-Length`` signed as well, whoever has the link
        cannot send more. Source: Amazon S3, Authenticating Requests: Using Query Parameters.
        """
        address, now = self._address, time.utcnow()
        region = address.region
        scope = signer._get_scope(now, region, "s3")
        signed = {
            "partNumber": str(number),
            "uploadId": upload,
            "X-Amz-Algorithm": signer.SIGN_V4_ALGORITHM,
            "X-Amz-Credential": f"{address.access_key}/{scope}",
            "X-Amz-Date": time.to_amz_date(now),
            "X-Amz-Expires": str(int(lifetime.total_seconds())),
            "X-Amz-SignedHeaders": "content-length;host",
        }
        if address.session_token:
            signed["X-Amz-Security-Token"] = address.session_token
        url = self._client._base_url.build(
            method="PUT",
            region=region,
            bucket_name=self.name,
            object_name=key,
            query_params={**signed},
        )
        headers = {"content-length": str(size_bytes), "host": url.netloc}
        request, _ = signer._get_canonical_request_hash("PUT", url, headers, "UNSIGNED-PAYLOAD")
        to_sign = signer._get_string_to_sign(now, scope, request)
        signing_key = signer._get_signing_key(address.secret_key, now, region, "s3")
        signature = signer._get_signature(signing_key, to_sign)
        return f"{urlunsplit(url)}&X-Amz-Signature={signature}"

    def abort(self, key: str, upload: str) -> None:
        """Discard an upload and its parts; may be repeated."""
        with contextlib.suppress(UploadGone):
            self._call(Right.ABORT, "DELETE", key, query={"uploadId": upload})

    def remove(self, key: str) -> None:
        """Delete an object; deleting an absent one is a no-op."""
        with contextlib.suppress(ObjectMissing):
            self._call(Right.DELETE, "DELETE", key)

    def link(self, key: str, lifetime: timedelta, file_name: str) -> str:
        """A URL that reads the object, for whoever has it; nothing is asked of the server."""
        disposition = {"response-content-disposition": f'attachment; filename="{file_name}"'}
        with self._translated(Right.READ, is_object=True):
            return self._client.presigned_get_object(
                self.name, key, expires=lifetime, response_headers={**disposition}
            )

    def require(self) -> None:
        """Raise unless the bucket is there.

        Raises:
            BucketMissing: It is not.
        """
        self._call(Right.LIST, "HEAD")

    def retain(self, key: str, until: datetime) -> None:
        """Keep the present version of an object from everybody until then, or for longer.

        Raises:
            ObjectMissing: There is none.
            RightMissing: We may not.
        """
        with self._translated(Right.RETAIN, is_object=True):
            kept = self._client.get_object_retention(self.name, key)
            if kept is None or kept.retain_until_date < until:
                retention = Retention(COMPLIANCE, until)
                self._client.set_object_retention(self.name, key, retention)

    def require_lock(self) -> None:
        """Raise unless objects of the bucket can be retained.

        Raises:
            StoreRefused: They cannot.
        """
        try:
            with self._translated(Right.RETAIN, is_object=False):
                self._client.get_object_lock_config(self.name)
        except BucketMissing as error:
            raise StoreRefused(
                f"bucket {self.name} was made without object lock, so nothing in it can be "
                "retained; use another bucket, or leave FOEDUS_S3_RETENTION_DAYS out"
            ) from error

    def make(self, *, is_locked: bool = False) -> bool:
        """Make the bucket, with rules that clear up after writers that died; False if it is there.

        Args:
            is_locked: Whether objects can be retained in it.

        Raises:
            RightMissing: It is not there, and we may not make it.
        """
        try:
            self.require()
        except BucketMissing:
            self._make(is_locked=is_locked)
            with self._translated(Right.EXPIRE, is_object=False):
                self._client.set_bucket_lifecycle(self.name, _RULES)
            return True
        return False

    def make_keeping(self) -> None:
        """Make the bucket unless it is there, and have it keep what is overwritten or deleted.

        Raises:
            RightMissing: We may not.
        """
        try:
            self.require()
        except BucketMissing:
            self._make()
        with self._translated(Right.KEEP, is_object=False):
            self._client.set_bucket_versioning(self.name, VersioningConfig(ENABLED))

    def _make(self, *, is_locked: bool = False) -> None:
        with contextlib.suppress(ConditionFailed), self._translated(Right.MAKE, is_object=False):
            # Somebody else may have done so just now.
            self._client.make_bucket(self.name, object_lock=is_locked)

    def _call(
        self,
        right: Right,
        method: str,
        key: str | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> BaseHTTPResponse:
        with self._translated(right, is_object=key is not None):
            return self._client._execute(
                method,
                self.name,
                key,
                body=body,
                headers=dict(headers or {}),
                query_params=dict(query or {}),
            )

    @contextlib.contextmanager
    def _translated(self, right: Right, *, is_object: bool) -> Iterator[None]:
        """Turn what the SDK says into what the port says."""
        try:
            yield
        except S3Error as error:
            raise self._refusal(error, right, is_object=is_object) from None
        except (ServerError, InvalidResponseError) as error:
            raise StoreUnavailable(
                f"bucket {self.name}: the server cannot be understood"
            ) from error
        except HTTPError as error:
            raise StoreUnavailable(f"bucket {self.name}: {_reason(error)}") from None

    def _refusal(self, error: S3Error, right: Right, *, is_object: bool) -> StoreError:
        code = error.response.headers.get("x-minio-error-code") or error.code
        place = f"bucket {self.name}"
        if code == "NoSuchBucket" or (error.response.status == 404 and not is_object):
            return BucketMissing(f"{place} does not exist")
        if code in _MISSING:
            return ObjectMissing(f"{place} has no such object")
        if code in _CONDITION:
            return ConditionFailed(f"{place}: someone else was there before")
        if code == "NoSuchUpload":
            return UploadGone(f"{place}: the upload is gone")
        if code in _FULL:
            return StoreFull(f"{place}: no room is left, or its quota is used up")
        if code in _CREDENTIALS:
            return StoreRefused(f"{place}: the server does not accept the credentials ({code})")
        if code in ("AccessDenied", "AllAccessDisabled"):
            return RightMissing(f"{place}: the credentials lack the right {right.value}")
        if code == "RequestTimeTooSkewed":
            return StoreRefused(f"{place}: the clocks of this machine and the server differ")
        if code in _PASSING or error.response.status >= 500:
            return StoreUnavailable(f"{place}: the server cannot just now ({code})")
        return StoreError(f"{place}: the server refused a request ({code})")


def make_account(address: Address, policy: Mapping[str, object]) -> Address:
    """Credentials that may do what ``policy`` says and nothing else.

    They are a user of their own at MinIO, not a service account of ours: those may list and remove
    each other (tried out at the release of February 2026; a policy that denies it is not asked).
    Source: MinIO's admin API, cmd/admin-handlers-users.go. Amazon's servers have none.

    Args:
        address: Of the server, with our own credentials.
        policy: As S3 spells what is allowed.

    Returns:
        The same address with the credentials.

    Raises:
        StoreRefused: The server does not make us such credentials.
        StoreUnavailable: It did not answer; what it may have made, nobody knows the secret of.
    """
    access_key, secret_key = f"foedus{secrets.token_hex(7)}", secrets.token_urlsafe(30)
    with _administration(address) as server:
        server.policy_add(access_key, policy={**policy})
        server.user_add(access_key, secret_key)
        server.policy_set(access_key, user=access_key)
    return replace(address, access_key=access_key, secret_key=secret_key)


def remove_account(address: Address, access_key: str) -> None:
    """End credentials that ``make_account`` made; may be repeated.

    Raises:
        StoreRefused: The server does not do that for us.
        StoreUnavailable: It did not answer; they may still count.
    """
    with _administration(address) as server:
        with contextlib.suppress(_AccountGone), _translated_administration():
            server.user_remove(access_key)
        server.policy_remove(access_key)


class _AccountGone(StoreError):
    """No account has this access key."""


@contextlib.contextmanager
def _administration(address: Address) -> Iterator[MinioAdmin]:
    """MinIO's admin API; what we ask of it may all be repeated."""
    http = _connections(address, 1)
    server = MinioAdmin(
        endpoint=address.endpoint,
        credentials=StaticProvider(
            address.access_key, address.secret_key, address.session_token or None
        ),
        region=address.region,
        secure=address.secure,
        http_client=http,
    )
    try:
        with _translated_administration():
            yield server
    finally:
        http.clear()


@contextlib.contextmanager
def _translated_administration() -> Iterator[None]:
    try:
        yield
    except MinioAdminException as error:
        raise _account_refusal(error) from None  # its text may be whatever the server said
    except HTTPError as error:
        raise StoreUnavailable(f"credentials: {_reason(error)}") from None


def _account_refusal(error: MinioAdminException) -> StoreError:
    status, body = error._code, error._body
    found = re.search(r'"Code": ?"(\w{1,60})"', body) or re.search(r"<Code>(\w{1,60})</Code>", body)
    code = found[1] if found else status
    if code == "XMinioAdminNoSuchUser":
        return _AccountGone("no such credentials")
    if code in _CREDENTIALS:
        return StoreRefused(f"the server does not accept the platform's credentials ({code})")
    if code == "AccessDenied":
        return RightMissing(
            "the platform's credentials at the S3 server lack a right of admin:CreateUser, "
            "admin:DeleteUser, admin:CreatePolicy, admin:DeletePolicy and "
            "admin:AttachUserOrGroupPolicy"
        )
    if code in _PASSING or status >= "500":
        return StoreUnavailable(f"credentials: the server cannot just now ({code})")
    return StoreRefused(f"the S3 server makes us no credentials ({code}); MinIO does")


def _connections(address: Address, most: int) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        maxsize=most,
        timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(address.ca_file or certifi.where()),
        retries=urllib3.Retry(
            total=MOST_TRIES,
            read=2,
            status=3,
            redirect=0,
            backoff_factor=FIRST_PAUSE_S,
            status_forcelist=(500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        ),
    )


# MinIO takes the rule for uploads and does not keep it: it drops abandoned ones after a day anyway.
_DAY: Final = 1
_RULES: Final = LifecycleConfig(
    [
        Rule(
            ENABLED,
            rule_id="foedus-abandoned-uploads",
            rule_filter=Filter(prefix=""),
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(
                days_after_initiation=_DAY
            ),
            noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=_DAY),
        ),
        Rule(
            ENABLED,
            rule_id="foedus-abandoned-staging",
            rule_filter=Filter(prefix=STAGING),
            expiration=Expiration(days=_DAY),
        ),
    ]
)


def _text(document: bytes, name: str) -> str:
    root = ElementTree.fromstring(document)  # noqa: S314 - from the server we trust with all
    found = root.findtext(f"{{*}}{name}")
    if not found:
        raise StoreUnavailable(f"the server's answer has no {name}")
    return found


def _reason(error: HTTPError) -> str:
    """What happened, without the URL that urllib3 writes into it."""
    cause = getattr(error, "reason", None) or error
    return f"the server did not answer ({type(cause).__name__})"
