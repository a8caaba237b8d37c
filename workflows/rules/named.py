"""What a job names, looked up among what is here."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from sharing.object_store import is_digest
from workflows.capabilities import Capabilities, DatasetFacts, ProgramFacts, RuntimeAbilities
from workflows.job import Analysis, Builtin, Bundle, Image, JobSpec, Partitioned, Unsupported


def runtime_of(spec: JobSpec, capabilities: Capabilities) -> RuntimeAbilities:
    """What the job's runtime can do."""
    try:
        return capabilities.runtimes[spec.runtime.kind]
    except KeyError:
        problem = f"there is no runtime {spec.runtime.kind}"
        mend = f"use {one_of(capabilities.runtimes)}"
        raise Unsupported(("runtime.kind",), problem, mend) from None


def program_of(spec: JobSpec, capabilities: Capabilities) -> ProgramFacts:
    """Facts of the job's program."""
    match spec.program:
        case Builtin(name=name):
            builtin = sorted(key for key in capabilities.programs if not is_digest(key))
            field, mend = "program.name", f"use {one_of(builtin)}"
        case Bundle(digest=name):
            field, mend = "program.digest", "upload it first (`foedus program push DIR`)"
        case Image():
            problem = "container images cannot be run yet"
            raise Unsupported(("program.kind",), problem, "use builtin or bundle")
        case Analysis(query=query):
            return ProgramFacts(framework="analysis", parameters=query.parameters(), own_train=True)
    if name not in capabilities.programs:
        raise Unsupported((field,), f"no program {name} is known here", mend)
    return capabilities.programs[name]


def dataset_of(spec: JobSpec, capabilities: Capabilities) -> DatasetFacts:
    """Facts of the job's data."""
    name = partitioned(spec).dataset
    if name not in capabilities.datasets:
        bundled = sorted(key for key in capabilities.datasets if not is_digest(key))
        mend = "upload it first" if is_digest(name) else f"use {one_of(bundled)}"
        raise Unsupported(("data.dataset",), f"no data set {name} is known here", mend)
    return capabilities.datasets[name]


def partitioned(spec: JobSpec) -> Partitioned:
    """The data, once `require_runtime` let no other kind pass."""
    if not isinstance(spec.data, Partitioned):
        raise TypeError(spec.data)
    return spec.data


def kind_of(value: msgspec.Struct) -> str:
    """Kind of a tagged part of a job, as it is written in the document."""
    return str(value.__struct_config__.tag)


def one_of(names: Collection[str]) -> str:
    """The names as a choice, for a mend."""
    *rest, last = names or ("nothing of the kind",)
    return f"{', '.join(rest)} or {last}" if rest else last
