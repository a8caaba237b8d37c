"""Who is asked in a round, out of how many, and when their answers arrive."""

from __future__ import annotations

from typing import Final

from strategies import RingTooSmall
from workflows.capabilities import Capabilities, ProgramFacts
from workflows.data.virtual import Virtual
from workflows.job import Inconsistent, JobSpec, Unsupported
from workflows.rules.named import kind_of, one_of, partitioned, program_of, runtime_of
from workflows.rules.sizes import MOST_KEPT_MB, size_bytes
from workflows.selection import Uniform
from workflows.selection.round_robin import RoundRobin

MOST_LISTED: Final = 100_000
"""Sites that may be named one by one."""


def require_population(spec: JobSpec, capabilities: Capabilities) -> None:
    """Nothing lists the sites where there are too many for it."""
    sites, runtime = partitioned(spec).sites, runtime_of(spec, capabilities)
    if sites <= MOST_LISTED:
        return
    if not isinstance(partitioned(spec).partitioner, Virtual):
        raise Inconsistent(
            ("data.sites", "data.partitioner.kind"),
            f"data are divided among {MOST_LISTED} sites at most, not {sites}",
            "ask for fewer, or use virtual sites",
        )
    if sites > runtime.most_sites:
        able = [kind for kind, one in capabilities.runtimes.items() if sites <= one.most_sites]
        raise Unsupported(
            ("data.sites", "runtime.kind"),
            f"runtime {spec.runtime.kind} lists its sites, {runtime.most_sites} at most",
            f"use {one_of(able)}" if able else f"ask for at most {runtime.most_sites}",
        )
    if spec.cohort.arrivals is not None:
        raise Inconsistent(
            ("cohort.arrivals", "data.sites"),
            f"who is idle is listed for arrivals, {MOST_LISTED} sites at most, not {sites}",
            f"ask for at most {MOST_LISTED} sites, or use a strategy that waits for its cohort",
        )
    if not spec.cohort.selection.scales:
        raise Inconsistent(
            ("cohort.selection.kind", "data.sites"),
            f"{kind_of(spec.cohort.selection)} looks at each of {sites} sites in every round",
            f"use uniform or poisson, or ask for at most {MOST_LISTED} sites",
        )
    if spec.cohort_size > MOST_LISTED:
        raise Inconsistent(
            ("cohort.size", "data.sites"),
            f"the transcript of a round lists its cohort, {MOST_LISTED} sites at most, not "
            f"{spec.cohort_size}",
            f"set cohort.size to {MOST_LISTED} or less",
        )


def require_cohort(spec: JobSpec, _: Capabilities) -> None:
    """A cohort can be drawn, gives what the strategy needs, and its sum cannot wrap."""
    sites = partitioned(spec).sites
    size = spec.cohort_size
    if size > sites:
        problem = f"{size} of {sites} sites cannot be drawn"
        raise Inconsistent(("cohort.size", "data.sites"), problem, f"ask for at most {sites}")
    if spec.cohort.minimum > size:
        problem = f"{spec.cohort.minimum} updates cannot come from {size} sites"
        raise Inconsistent(("cohort.minimum", "cohort.size"), problem, f"ask for at most {size}")
    if spec.strategy.takes_turns and (
        size > 1 or not isinstance(spec.cohort.selection, RoundRobin)
    ):
        raise Inconsistent(
            ("cohort", "strategy.kind"),
            f"{kind_of(spec.strategy)} trains at one site a round, each in its turn",
            "use cohort {size: 1, selection: {kind: round-robin}}",
        )
    if size < spec.strategy.min_updates:
        needed = spec.strategy.min_updates
        problem = f"{kind_of(spec.strategy)} needs {needed} updates a round, {size} can come"
        mend = f"draw at least {needed} sites a round"
        raise Inconsistent(("strategy.kind", "cohort.size"), problem, mend)
    if misfit := spec.cohort.selection.misfit(spec.cohort.size, sites):
        fields = tuple(f"cohort.{field}" for field in misfit.fields)
        raise Inconsistent(fields, misfit.problem, misfit.mend)
    try:
        spec.ring.check(spec.most_updates)
    except RingTooSmall as error:
        fields = ("ring.fraction_bits", "ring.magnitude", "ring.max_weight", "cohort.size")
        raise Inconsistent(fields, error.problem, error.mend) from error


def require_arrivals(spec: JobSpec, capabilities: Capabilities) -> None:
    """Arrivals are told where the strategy steps between them, and nowhere else."""
    cohort, buffer, kind = spec.cohort, spec.strategy.buffered, kind_of(spec.strategy)
    if buffer is None:
        if cohort.arrivals is not None:
            raise Inconsistent(
                ("cohort.arrivals", "strategy.kind"),
                f"{kind} waits for its cohort, so nothing arrives between its rounds",
                "leave cohort.arrivals out, or use fedasync or fedbuff",
            )
        return
    if cohort.arrivals is None:
        raise Inconsistent(
            ("cohort.arrivals", "strategy.kind"),
            f"{kind} steps while sites are training, and the job does not say when answers arrive",
            "set cohort.arrivals, as {kind: virtual, sigma: 0.5}",
        )
    if not isinstance(cohort.selection, Uniform):
        raise Inconsistent(
            ("cohort.selection.kind", "cohort.arrivals"),
            f"{kind_of(cohort.selection)} draws a cohort, and {kind} has none: one idle site is "
            "drawn whenever another returns",
            "use uniform",
        )
    sites = partitioned(spec).sites
    if buffer > sites:
        problem = f"{buffer} answers a step cannot come from {sites} sites, once from each"
        raise Inconsistent(("strategy.buffer", "data.sites"), problem, f"buffer at most {sites}")
    if cohort.minimum > buffer:
        problem = f"{kind} steps after {buffer} answers, {cohort.minimum} never come"
        mend = f"ask for at most {buffer}"
        raise Inconsistent(("cohort.minimum", "strategy.kind"), problem, mend)
    _require_room_for_versions(spec, program_of(spec, capabilities))


def _require_room_for_versions(spec: JobSpec, facts: ProgramFacts) -> None:
    """The models that sites at work were given fit into a round's checkpoint."""
    versions, each = spec.most_versions, size_bytes(facts)
    if spec.program.config:
        return
    if versions * each > MOST_KEPT_MB << 20:
        raise Inconsistent(
            ("cohort.arrivals.max_staleness", "cohort.size"),
            f"{versions} earlier models of {each} bytes may be in use, more than {MOST_KEPT_MB} "
            "MiB together",
            f"lower one of them to {max(1, (MOST_KEPT_MB << 20) // each)}",
        )
