"""The developer's way to the platform from Python.

    with Foedus("http://127.0.0.1:8470", token) as foedus:
        job = foedus.submit("job.yaml")
        for round in job.rounds():
            print(round.number, round.loss, round.metrics)
        model = job.wait()
        foedus.models.pull(model.model, path="model.onnx")

Every call has a timeout, waits for a server that is being restarted, and may be repeated without
doing a thing twice: a job is submitted under an idempotency key, uploads are named by content.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

import msgspec

from clients.downloads import download
from clients.errors import (
    AnswerNotUnderstood,
    FileRefused,
    JobCancelled,
    JobFailed,
    ResultMissing,
    VariantMissing,
)
from clients.event_stream import follow
from clients.job_files import DatasetFormat, format_of, read_job_file
from clients.resources import (
    Artifact,
    AuditEntry,
    AuditVerification,
    CapabilitiesView,
    Dataset,
    DryRun,
    Event,
    Job,
    JobPatch,
    KeyRotation,
    Model,
    NewStorageCredential,
    NewToken,
    OrganisationUse,
    Page,
    PlatformKey,
    PlatformStatus,
    Program,
    QuotaChange,
    Round,
    StorageCredential,
    Token,
    User,
)
from clients.transport import DEFAULT_PATIENCE, JSON, Call, Patience, TokenSource, Transport
from clients.uploads import LEAST_BYTES, send_in_parts
from workflows.analyses import AnyFinding, Finding
from workflows.job import DEFAULT_LABEL, JobSpec
from workflows.plan import RESULT
from workflows.program import BundleError, pack
from workflows.run import Phase

T = TypeVar("T")
PROBE_S: Final = 600.0
"""Longest wait for the answer to an upload, which is tried out before it is taken, in seconds."""


class Foedus:
    """A client in the name of one user. Close it, or use it as a context."""

    def __init__(
        self,
        url: str,
        token: str | TokenSource,
        *,
        timeout_s: float = 30.0,
        patience: Patience = DEFAULT_PATIENCE,
        allow_plain_http: bool = False,
    ) -> None:
        """Connect lazily.

        Args:
            url: Of the server.
            token: Bearer token, as ``foedus_...``, or what gives one, as
                ``clients.tokens.ClientCredentials``.
            timeout_s: Longest silence of the server within one answer, in seconds.
            patience: With a server that is away.
            allow_plain_http: Whether the token may travel unencrypted to another machine.

        Raises:
            NotSecure: It would, and may not.
        """
        self._transport = Transport(
            url, token, timeout_s=timeout_s, patience=patience, allow_plain_http=allow_plain_http
        )
        self.programs = Programs(self._transport)
        self.datasets = Datasets(self._transport)
        self.models = Models(self._transport)
        self.tokens = Tokens(self._transport)
        self.storage = Storage(self._transport)
        self.admin = Admin(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def submit(self, job: JobSpec | str | Path, *, idempotency_key: str | None = None) -> JobHandle:
        """Submit a job, or the one in a document; what the document names by path is pushed first.

        Args:
            job: The job, or the path of a YAML or JSON document.
            idempotency_key: 8 to 200 characters; submitting twice under one key submits once.

        Raises:
            DocumentInvalid: The document is not a job.
            FileRefused: A local file cannot be used.
            ApiError: The platform refused; the problem names the fields.
            Unreachable: No answer came; submit again under the same key to be sure.
        """
        spec = self.resolve(job)
        key = idempotency_key or uuid.uuid4().hex
        call = Call(
            method="POST",
            path="/v1/jobs",
            headers={**JSON, "Idempotency-Key": key},
            body=msgspec.json.encode(spec),
        )
        return JobHandle(self._transport, self._transport.fetch(call, Job))

    def dry_run(self, job: JobSpec | str | Path) -> DryRun:
        """What a job would be; programs and data that a document names by path are pushed.

        Raises:
            As ``submit``.
        """
        body = msgspec.json.encode(self.resolve(job))
        params = {"dryRun": "true"}
        call = Call(method="POST", path="/v1/jobs", params=params, headers=JSON, body=body)
        return self._transport.fetch(call, DryRun)

    def resolve(self, job: JobSpec | str | Path) -> JobSpec:
        """The job as the platform takes it, after pushing what its document names by path.

        Raises:
            As ``submit``.
        """
        if isinstance(job, JobSpec):
            return job
        local = read_job_file(Path(job))
        program = self.programs.push(local.program).digest if local.program else None
        dataset = None
        if local.dataset is not None:
            dataset = self.datasets.push(local.dataset, label=local.label).digest
        return local.with_digests(program, dataset)

    def job(self, job_id: str) -> JobHandle:
        """One job.

        Raises:
            NotFound: There is none of this id, or it is not for this user to see.
        """
        return JobHandle(self._transport, _get(self._transport, f"/v1/jobs/{_part(job_id)}", Job))

    def jobs(self, *, phase: Phase | None = None, name: str | None = None) -> Iterator[Job]:
        """Jobs that this user may see, newest first, fetched page by page."""
        filters = {"phase": phase or "", "name": name or ""}
        params = {key: value for key, value in filters.items() if value}
        return _pages(self._transport, "/v1/jobs", Page[Job], params)

    def capabilities(self) -> CapabilitiesView:
        """What the platform can do."""
        return _get(self._transport, "/v1/capabilities", CapabilitiesView)

    def quota(self) -> OrganisationUse:
        """What this user's organisation has and may have."""
        return _get(self._transport, "/v1/quota", OrganisationUse)

    def whoami(self) -> User:
        """The user behind the token."""
        return _get(self._transport, "/v1/whoami", User)


class JobHandle:
    """One job, as it was when last looked at.

    Attributes:
        id: Its id.
        last: The job as last seen; ``refresh`` looks again.
    """

    def __init__(self, transport: Transport, job: Job) -> None:
        self._transport = transport
        self._path = f"/v1/jobs/{_part(job.id)}"
        self.id = job.id
        self.last = job

    def refresh(self) -> Job:
        """The job as it is now."""
        self.last = _get(self._transport, self._path, Job)
        return self.last

    def events(self, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """Events as they happen, each once and in order, until the job is closed.

        Args:
            after: Number of the last event that is already known.
            timeout_s: Longest time to follow, in seconds; None for ever.

        Raises:
            WaitTimedOut: The job is still open after ``timeout_s``.
            Unreachable: The server stayed away.
        """
        return follow(self._transport, _part(self.id), after, timeout_s)

    def rounds(self, after: int = 0, timeout_s: float | None = None) -> Iterator[Round]:
        """Rounds as they finish, each once, until the job is closed.

        Raises:
            As ``events``.
        """
        last = after
        for event in self.events(timeout_s=timeout_s):
            if event.kind == "round.finished" and event.fields["round"] > last:
                last = event.fields["round"]
                fields = {**event.fields, "number": last, "at": event.at}
                yield msgspec.convert(fields, Round)

    def wait(self, timeout_s: float | None = None) -> Job:
        """The job, once it has succeeded.

        Args:
            timeout_s: Longest time to wait, in seconds; None for ever.

        Raises:
            JobFailed: It failed; ``.job.cause`` says why.
            JobCancelled: It was cancelled.
            WaitTimedOut: It is still open; it goes on.
            Unreachable: The server stayed away.
        """
        for _ in self.events(timeout_s=timeout_s):
            pass
        job = self.refresh()
        if job.phase is Phase.FAILED:
            raise JobFailed(job)
        if job.phase is Phase.CANCELLED:
            raise JobCancelled(job)
        return job

    def cancel(self) -> Job:
        """Ask for the job to be cancelled; it stops within seconds.

        Raises:
            Conflict: It is closed already.
        """
        body = msgspec.json.encode(JobPatch(desired="cancelled"))
        call = Call(method="PATCH", path=self._path, headers=JSON, body=body)
        self.last = self._transport.fetch(call, Job)
        return self.last

    def delete(self) -> None:
        """Forget a closed job; models that it published stay.

        Raises:
            Conflict: It is still open.
        """
        self._transport.send(Call(method="DELETE", path=self._path))

    def logs(self, step: str | None = None, tail_bytes: int | None = None) -> str:
        """What its steps printed.

        Args:
            step: ``federate``, ``translate`` or ``publish``; None for all, each under a heading.
            tail_bytes: Only so much of the end of each.
        """
        params = {} if step is None else {"step": step}
        if tail_bytes is not None:
            params["tail"] = str(tail_bytes)
        call = Call(method="GET", path=f"{self._path}/logs", params=params)
        return self._transport.send(call).text

    def artifacts(self) -> tuple[Artifact, ...]:
        """What it made."""
        return tuple(_pages(self._transport, f"{self._path}/artifacts", Page[Artifact]))

    def result(self) -> Finding:
        """What the query of an analysis found, verified by its digest.

        Raises:
            ResultMissing: The job asks no query, or has not succeeded.
            As ``pull_artifact``.
        """
        made = next((one for one in self.artifacts() if one.name == RESULT), None)
        if made is None:
            problem = f"{self.id} has no {RESULT}"
            raise ResultMissing(f"{problem}; only an analysis that has succeeded makes one")
        with tempfile.TemporaryDirectory(prefix="foedus-") as scratch:
            path = self.pull_artifact(made, Path(scratch) / RESULT)
            try:
                found: Finding = msgspec.json.decode(path.read_bytes(), type=AnyFinding)
            except msgspec.MsgspecError as error:
                raise AnswerNotUnderstood(f"{RESULT}: {error}") from error
        return found

    def pull_artifact(self, artifact: Artifact, path: str | Path) -> Path:
        """Fetch one of its artifacts to ``path``, verified.

        Raises:
            As ``Models.pull``.
        """
        call = Call(method="GET", path=f"{self._path}/artifacts/{_part(artifact.name)}")
        download(self._transport, call, artifact.digest, artifact.size_bytes, Path(path))
        return Path(path)


class Models:
    """Published models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Model]:
        """Models that this user may see, newest first."""
        return _pages(self._transport, "/v1/models", Page[Model])

    def get(self, model_id: str) -> Model:
        """One model.

        Raises:
            NotFound: There is none of this id, or it is not for this user to see.
        """
        return _get(self._transport, f"/v1/models/{_part(model_id)}", Model)

    def pull(
        self,
        model_id: str,
        variant: str = "onnx-fp32",
        path: str | Path = ".",
        *,
        direct: bool = False,
    ) -> Path:
        """Fetch a form of a model, verified by its digest; resumes where it was broken off.

        Args:
            model_id: The model.
            variant: Which form.
            path: Where to; a folder gets a file named after the model.
            direct: Take the bytes from the object store itself, if it hands out links; this
                machine must reach it.

        Returns:
            The file.

        Raises:
            VariantMissing: The model has no such form.
            DownloadCorrupt: Other bytes arrived; nothing is kept.
            DownloadBusy: Another process fetches to the same place.
            FileRefused: The file cannot be written.
            Unreachable: The server stayed away; call again to resume.
        """
        model = self.get(model_id)
        found = next((form for form in model.variants if form.name == variant), None)
        if found is None:
            names = ", ".join(form.name for form in model.variants) or "nothing"
            raise VariantMissing(f"{model.id} has no variant {variant}; it has {names}")
        target = Path(path)
        if target.is_dir():
            suffix = "onnx" if variant.startswith("onnx") else variant
            stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in model.name).strip(".")
            target = target / f"{stem}.{suffix}"
        content = f"/v1/models/{_part(model.id)}/content"
        params = {"variant": variant} | ({"direct": "true"} if direct else {})
        call = Call(method="GET", path=content, params=params, takes_link=direct)
        download(self._transport, call, found.digest, found.size_bytes, target)
        return target


class Programs:
    """Uploaded programs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Program]:
        """Programs of this user's organisation, newest first."""
        return _pages(self._transport, "/v1/programs", Page[Program])

    def push(self, source: str | Path, name: str | None = None) -> Program:
        """Upload a program; the same content is the same program.

        Args:
            source: Its folder, or an archive of it.
            name: For people; by default the folder's or file's.

        Raises:
            FileRefused: The folder is no program.
            Refused: The platform tried it out, and it does not work.
        """
        path = Path(source).resolve()
        params = {"name": name or path.name.partition(".")[0]}
        if not path.is_dir():
            return self._upload(path, params, _archive_type(path))
        with tempfile.TemporaryDirectory(prefix="foedus-") as scratch:
            archive = Path(scratch) / "bundle.tar"
            try:
                pack(path, archive)
            except (BundleError, OSError) as error:
                raise FileRefused(f"{source}: {error}") from error
            return self._upload(archive, params, "application/x-tar")

    def _upload(self, archive: Path, params: Mapping[str, str], media_type: str) -> Program:
        return _post_file(self._transport, "/v1/programs", archive, params, media_type, Program)


class Datasets:
    """Uploaded files of examples, for simulations."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Dataset]:
        """Data sets of this user's organisation, newest first."""
        return _pages(self._transport, "/v1/datasets", Page[Dataset])

    def push(
        self,
        source: str | Path,
        *,
        label: str = DEFAULT_LABEL,
        name: str | None = None,
        format: DatasetFormat | None = None,
    ) -> Dataset:
        """Upload a data set; the same content is the same data set.

        Args:
            source: A ``.npz``, ``.csv`` or ``.parquet`` file.
            label: Its column or array of labels.
            name: For people; by default the file's.
            format: If the file's name does not say it.

        Raises:
            FileRefused: The file cannot be read, or its format is unknown.
            Refused: The platform cannot use it; the problem names the row and the column.
        """
        path = Path(source)
        params = {"format": format or format_of(path), "label": label, "name": name or path.stem}
        media_type = "application/octet-stream"
        return _post_file(self._transport, "/v1/datasets", path, params, media_type, Dataset)


class Tokens:
    """Bearer tokens."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Token]:
        """Tokens of this user, newest first; without their secrets."""
        return _pages(self._transport, "/v1/tokens", Page[Token])

    def make(self, new: NewToken) -> Token:
        """A new token; its ``secret`` is shown this once.

        Raises:
            Unreachable: No answer came; one may have been made all the same.
        """
        body = msgspec.json.encode(new)
        call = Call(method="POST", path="/v1/tokens", headers=JSON, body=body, is_repeatable=False)
        return self._transport.fetch(call, Token)

    def revoke(self, token_id: str) -> None:
        """End a token.

        Raises:
            NotFound: There is none of this id, or it is not for this user to end.
        """
        self._transport.send(Call(method="DELETE", path=f"/v1/tokens/{_part(token_id)}"))


class Storage:
    """Credentials for an organisation's own buckets; the organisation by id or name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, organisation: str) -> Iterator[StorageCredential]:
        """Credentials of an organisation, newest first; without their secrets."""
        return _pages(self._transport, _storage_of(organisation), Page[StorageCredential])

    def make(self, organisation: str, new: NewStorageCredential) -> StorageCredential:
        """New credentials; the secret in their ``access`` is shown this once.

        Raises:
            Conflict: The platform's objects are not in buckets.
            Unreachable: No answer came; some may have been made all the same.
        """
        call = Call(
            method="POST",
            path=_storage_of(organisation),
            headers=JSON,
            body=msgspec.json.encode(new),
            is_repeatable=False,
        )
        return self._transport.fetch(call, StorageCredential)

    def revoke(self, organisation: str, credential_id: str) -> None:
        """End credentials at once.

        Raises:
            NotFound: There are none of this id, or they are not for this user to end.
        """
        path = f"{_storage_of(organisation)}/{_part(credential_id)}"
        self._transport.send(Call(method="DELETE", path=path))


class Admin:
    """For those who run the platform, and for auditors."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def status(self) -> PlatformStatus:
        """The whole platform at a glance."""
        return _get(self._transport, "/v1/admin/status", PlatformStatus)

    def change_quota(self, organisation: str, change: QuotaChange) -> OrganisationUse:
        """Set what an organisation, by id or by name, may have."""
        path, body = f"/v1/admin/quotas/{_part(organisation)}", msgspec.json.encode(change)
        call = Call(method="PATCH", path=path, headers=JSON, body=body)
        return self._transport.fetch(call, OrganisationUse)

    def keys(self) -> tuple[PlatformKey, ...]:
        """The platform's own keys, without what they are."""
        return _get(self._transport, "/v1/admin/keys", Page[PlatformKey]).items

    def rotate_key(self, purpose: str, *, at_once: bool = False) -> PlatformKey:
        """Have a new key take the place of the one that seals for ``purpose``; the new one.

        Args:
            purpose: As ``cursors``.
            at_once: Whether what the one before sealed is refused from now on.
        """
        path, body = f"/v1/admin/keys/{_part(purpose)}/rotations", KeyRotation(at_once=at_once)
        call = Call(method="POST", path=path, headers=JSON, body=msgspec.json.encode(body))
        return self._transport.fetch(call, PlatformKey)

    def audit(self, since: datetime | None = None) -> Iterator[AuditEntry]:
        """Who did what, newest first; all of it for the platform's host, else one's own."""
        params = {} if since is None else {"since": since.isoformat()}
        return _pages(self._transport, "/v1/admin/audit", Page[AuditEntry], params)

    def verify_audit(self, known: tuple[int, str] | None = None) -> AuditVerification:
        """Have every digest of the audit log computed anew.

        Args:
            known: Number and digest of an entry, as they were kept elsewhere.
        """
        params = {} if known is None else {"number": str(known[0]), "digest": known[1]}
        path = "/v1/admin/audit/verification"
        call = Call(method="GET", path=path, params=params, answer_s=PROBE_S)
        return self._transport.fetch(call, AuditVerification)


def _part(text: str) -> str:
    """``text`` as one segment of a path."""
    return quote(text, safe="")


def _storage_of(organisation: str) -> str:
    return f"/v1/organisations/{_part(organisation)}/storage-credentials"


def _get(transport: Transport, path: str, kind: type[T]) -> T:
    return transport.fetch(Call(method="GET", path=path), kind)


def _pages(
    transport: Transport, path: str, kind: type[Page[T]], params: Mapping[str, str] = {}
) -> Iterator[T]:
    cursor: str | None = ""
    while cursor is not None:
        asked = {**params, "cursor": cursor} if cursor else params
        page = transport.fetch(Call(method="GET", path=path, params=asked), kind)
        yield from page.items
        cursor = page.next


def _post_file(
    transport: Transport,
    path: str,
    file: Path,
    params: Mapping[str, str],
    media_type: str,
    kind: type[T],
) -> T:
    if not file.is_file():
        raise FileRefused(f"{file}: there is no such file")
    call = Call(method="POST", path=path, params=params, answer_s=PROBE_S)
    try:
        if file.stat().st_size >= LEAST_BYTES and (digest := send_in_parts(transport, file)):
            arrived = {**params, "upload": digest}
            return transport.fetch(msgspec.structs.replace(call, params=arrived), kind)
        headers = {"Content-Type": media_type}
        ordinary = msgspec.structs.replace(call, headers=headers, body=file)
        return transport.fetch(ordinary, kind)
    except OSError as error:
        raise FileRefused(f"{file}: {error.strerror or error}") from error


def _archive_type(path: Path) -> str:
    if path.suffix == ".zip":
        return "application/zip"
    return "application/x-tar" if path.suffix == ".tar" else "application/gzip"
