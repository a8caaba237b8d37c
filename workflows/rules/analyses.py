"""A query in the place of a program, and what the rest of its job must then be."""

from __future__ import annotations

from math import prod

from strategies.tally import Tally
from workflows.analyses.columns import Columns
from workflows.analyses.query import unknown_column
from workflows.analyses.terms import contradiction, settled, terms
from workflows.capabilities import Capabilities
from workflows.job import Analysis, Inconsistent, JobSpec
from workflows.rules.abilities import require_runtime
from workflows.rules.named import dataset_of, partitioned
from workflows.rules.numbers import require_canonical
from workflows.rules.sizes import largest_site


def settle_analysis(spec: JobSpec, capabilities: Capabilities) -> JobSpec:
    """The job with what its query needs, if it asks one and says nothing else."""
    if not isinstance(spec.program, Analysis):
        if isinstance(spec.strategy, Tally):
            problem = "a tally adds up answers to a query, and a model is no such answer"
            mend = "use fedavg, or ask for an analysis"
            raise Inconsistent(("strategy.kind", "program.kind"), problem, mend)
        return spec
    require_canonical(spec, capabilities)
    require_runtime(spec, capabilities)
    query, data, facts = spec.program.query, partitioned(spec), dataset_of(spec, capabilities)
    columns = Columns(facts.columns, prod(facts.features), data.label)
    misfit = query.misfit(facts.num_examples) or unknown_column(query, columns)
    if misfit:
        fields = tuple(f"program.query.{field}" for field in misfit.fields)
        raise Inconsistent(fields, misfit.problem, misfit.mend)
    if spec.evaluate.minimum_count > (largest := max(1, largest_site(data, facts))):
        problem = f"no site can have so many examples, {largest} at most"
        fields = ("evaluate.minimum_count", "data.sites")
        raise Inconsistent(fields, problem, f"lower evaluate.minimum_count to {largest}")
    found = terms(query, facts.num_examples, data.sites)
    if misfit := contradiction(spec, found):
        raise Inconsistent(misfit.fields, misfit.problem, misfit.mend)
    return settled(spec, found)
