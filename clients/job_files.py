"""Job documents as people keep them: with paths of their own machine in them.

``program: ./folder``, ``program: {kind: bundle, path: ./folder, config: ...}`` and
``data: {dataset: ./file.csv}`` name what must be uploaded first; relative paths start at the
document's folder. The platform knows digests alone, so they take the paths' places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from clients.errors import FileRefused
from sharing.object_store import Digest
from workflows.job import DEFAULT_LABEL, Bundle, JobSpec, Partitioned
from workflows.job_document import read_job

DatasetFormat = Literal["npz", "csv", "parquet"]
FORMATS: Final[Mapping[str, DatasetFormat]] = {
    ".npz": "npz",
    ".csv": "csv",
    ".parquet": "parquet",
}
UNKNOWN: Final = "sha256:" + 64 * "0"
"""Stands where the digest of something not yet uploaded will be."""


class LocalJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that may still wait for uploads.

    Attributes:
        spec: The job; holds ``UNKNOWN`` where a path was written.
        program: Folder or archive to be uploaded; None if the document names no path.
        dataset: File to be uploaded; None if the document names no path.
    """

    spec: JobSpec
    program: Path | None = None
    dataset: Path | None = None

    @property
    def label(self) -> str:
        """Where the data set keeps its labels."""
        return self.spec.data.label if isinstance(self.spec.data, Partitioned) else DEFAULT_LABEL

    def with_digests(self, program: Digest | None, dataset: Digest | None) -> JobSpec:
        """The job, once what it needs is uploaded."""
        spec = self.spec
        if program is not None and isinstance(spec.program, Bundle):
            bundle = msgspec.structs.replace(spec.program, digest=program)
            spec = msgspec.structs.replace(spec, program=bundle)
        if dataset is not None and isinstance(spec.data, Partitioned):
            data = msgspec.structs.replace(spec.data, dataset=dataset)
            spec = msgspec.structs.replace(spec, data=data)
        return spec


def read_job_file(path: Path) -> LocalJob:
    """The job in the document at ``path``.

    Raises:
        FileRefused: The document, or a file it names, cannot be read.
        DocumentInvalid: It is not a job; the error names the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileRefused(f"{path}: not text; save it as UTF-8") from error
    found = dict[str, Path]()

    def rewrite(written: Any) -> Any:  # noqa: ANN401 - what JSON can say
        if not isinstance(written, dict):
            return written
        job = dict(written)
        program, data = job.get("program"), job.get("data")
        if isinstance(program, str) and _is_path(program):
            found["program"] = _local(path, "program", program)
            job["program"] = {"kind": "bundle", "digest": UNKNOWN}
        elif isinstance(program, dict) and isinstance(program.get("path"), str):
            rest = {key: value for key, value in program.items() if key != "path"}
            found["program"] = _local(path, "program.path", program["path"])
            job["program"] = {"kind": "bundle", "digest": UNKNOWN, **rest}
        data = data if isinstance(data, dict) else {}
        dataset = data.get("dataset")
        if isinstance(dataset, str) and (_is_path(dataset) or Path(dataset).suffix in FORMATS):
            found["dataset"] = _local(path, "data.dataset", dataset)
            job["data"] = {**data, "dataset": UNKNOWN}
        return job

    spec = read_job(text, str(path), rewrite)
    return LocalJob(spec=spec, program=found.get("program"), dataset=found.get("dataset"))


def format_of(path: Path) -> DatasetFormat:
    """Format of a data set, by the file's name.

    Raises:
        FileRefused: There is none of that name.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise FileRefused(f"{path}: the name must end in {', '.join(FORMATS)}") from None


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~"))


def _local(document: Path, field: str, text: str) -> Path:
    local = document.parent / Path(text).expanduser()
    if not local.exists():
        raise FileRefused(f"{document}: {field}: {local} does not exist")
    return local
