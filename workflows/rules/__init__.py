"""What holds between the parts of a job, and between a job and the platform that shall run it.

A rule is a function that raises where a job breaks it, and names the fields that do not fit and
what would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from workflows.capabilities import Capabilities
from workflows.job import JobSpec
from workflows.rules.abilities import (
    require_output,
    require_privacy,
    require_resources,
    require_runtime,
    require_strategy,
    require_vectorizable,
)
from workflows.rules.analyses import settle_analysis
from workflows.rules.cohorts import require_arrivals, require_cohort, require_population
from workflows.rules.data import require_data, require_evaluation, require_root
from workflows.rules.numbers import require_canonical
from workflows.rules.programs import require_init, require_program

Rule = Callable[[JobSpec, Capabilities], None]
RULES: Final[tuple[Rule, ...]] = (
    require_canonical,
    require_runtime,
    require_privacy,
    require_program,
    require_vectorizable,
    require_data,
    require_population,
    require_strategy,
    require_root,
    require_cohort,
    require_arrivals,
    require_init,
    require_evaluation,
    require_output,
    require_resources,
)
"""In the order in which a developer would mend what they find."""


def check_job(spec: JobSpec, capabilities: Capabilities) -> JobSpec:
    """Return the job if its parts fit together and the platform can do what they ask.

    What an analysis leaves out is filled in as its query needs it; every other job is returned
    as it is.

    Raises:
        Unsupported: A field asks for what nothing here can do.
        Inconsistent: Two fields contradict each other.
    """
    job = settle_analysis(spec, capabilities)
    for rule in RULES:
        rule(job, capabilities)
    return job
