"""What an AI developer asks for: one federated training job, as a value.

A job is wire format, table column and signed statement at once. Every field exists from the first
version; what no runtime can do yet is refused by ``JobSpec.check`` with that reason, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from math import isfinite, prod
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from privacy import AnyMechanism, Protection
from sharing.object_store import Digest, is_digest
from strategies import AnyStrategy, FedAvg, Ring, RingTooSmall
from strategies.kept import KeptFold
from strategies.tally import Tally
from workflows.analyses import AnyQuery
from workflows.analyses.columns import Columns
from workflows.analyses.query import unknown_column
from workflows.analyses.terms import contradiction, settled, terms
from workflows.arrivals import Virtual as VirtualArrivals
from workflows.capabilities import Capabilities, DatasetFacts, ProgramFacts, RuntimeAbilities
from workflows.codecs import AnyCodec, NoCodec
from workflows.data.partitioners import AnyPartitioner, ByLabel, Dirichlet, Iid
from workflows.data.virtual import Virtual
from workflows.selection import AnySelection, Uniform
from workflows.selection.round_robin import RoundRobin
from workflows.selection.weighted import Weighted

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[\w][\w .:/-]*$")]
DEFAULT_LABEL: Final = "y"


class JobError(Exception):
    """The parts of a job do not fit together, or nothing here can do what it asks.

    Attributes:
        fields: Paths of the fields that do not fit, the one to change first.
        mend: What would fit.
    """

    def __init__(self, fields: tuple[str, ...], problem: str, mend: str) -> None:
        super().__init__(f"{' and '.join(fields)}: {problem}; {mend}")
        self.fields = fields
        self.problem = problem
        self.mend = mend


class Inconsistent(JobError):
    """Two fields contradict each other."""


class Unsupported(JobError):
    """The field is understood, but nothing on this platform can honour it."""


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a job. Unknown fields are errors, so that a misspelt one is never ignored."""


class Tagged(Value, frozen=True, tag_field="kind"):
    """A part of a job that comes in kinds."""


class Builtin(Tagged, frozen=True, tag="builtin"):
    """A program that ships with the platform.

    Attributes:
        name: One of ``workflows.programs``.
        config: Handed to the program's ``build``.
    """

    name: str
    config: Mapping[str, Any] = {}


class Bundle(Tagged, frozen=True, tag="bundle"):
    """The developer's own program, uploaded beforehand.

    Attributes:
        digest: Name of the bundle's archive.
        config: Handed to the program's ``build``.
    """

    digest: Digest
    config: Mapping[str, Any] = {}


class Image(Tagged, frozen=True, tag="image"):
    """A program as a container image.

    Attributes:
        image: By digest, ``registry/name@sha256:...``.
        config: Handed to the program's ``build``.
    """

    image: Annotated[str, Meta(pattern=r"^[\w.:/-]+@sha256:[0-9a-f]{64}$")]
    config: Mapping[str, Any] = {}


class Analysis(Tagged, frozen=True, tag="analysis"):
    """No program but a query: its answer is what the job makes, and no model.

    Attributes:
        query: What is asked about the examples of all sites.
    """

    config: ClassVar[Mapping[str, Any]] = {}
    query: AnyQuery


class Runtime(Value, frozen=True):
    """Which framework moves the bytes.

    Attributes:
        kind: Name of a script in ``workflows.runtimes``; checked against capabilities.
        mode: Simulated clients over partitioned data, or real sites.
        workers: Worker processes of a simulation; 0 for one per processor, 4 at most. The
            result does not depend on it.
        vectorized: Whether small sites are trained together, in one operation for all; the result
            differs from that of training them one by one in last bits, and in no other way.
    """

    kind: str = "flower"
    mode: Literal["simulation", "sites"] = "simulation"
    workers: Annotated[int, Meta(ge=0, le=64)] = 0
    vectorized: bool = False


class Partitioned(Tagged, frozen=True, tag="partitioned"):
    """One data set, divided among simulated sites.

    Attributes:
        dataset: Name of a bundled set, or digest of an uploaded .npz, .csv or .parquet file.
        label: Column (csv, parquet) or array (npz) with the labels; ignored for bundled sets.
        sites: Number of simulated sites; above 100,000 only virtual ones, which are drawn when they
            are asked.
        partitioner: How examples are divided.
        holdout: Fraction of each site's examples that is kept from training, for its evaluation.
        central: Fraction of all examples set aside before partitioning, for central evaluation; or
            for the server's own training, where the strategy has it train (fltrust).
        seed: Of the division.
    """

    dataset: str
    label: str = DEFAULT_LABEL
    sites: Annotated[int, Meta(ge=1, le=10_000_000)] = 10
    partitioner: AnyPartitioner = Iid()
    holdout: Fraction = 0.2
    central: Fraction = 0.0
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0


class AtSites(Tagged, frozen=True, tag="at-sites"):
    """Data that real sites hold under a name they agreed on."""

    dataset: str
    version: int = 1


class Seed(Tagged, frozen=True, tag="seed"):
    """Initial parameters as the program builds them under this seed, which seeds training too."""

    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0


class FromModel(Tagged, frozen=True, tag="model"):
    """Initial parameters from an earlier model.

    Attributes:
        digest: Of the model's safetensors file.
        seed: Of the training.
    """

    digest: Digest
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0


class Sgd(Tagged, frozen=True, tag="sgd"):
    """Stochastic gradient descent."""

    lr: Positive = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0


class Adam(Tagged, frozen=True, tag="adam"):
    """Adam (Kingma and Ba, ICLR 2015), with decoupled weight decay."""

    lr: Positive = 0.001
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0


class Local(Value, frozen=True):
    """Training at a site in one round."""

    epochs: Count = 1
    batch_size: Count = 32
    optimizer: Sgd | Adam = Sgd()


class Cohort(Value, frozen=True):
    """Who takes part in a round.

    Attributes:
        size: Sites a round; None for all of them. With ``arrivals``, sites at work at a time.
        minimum: Updates without which a round fails the run. (A draw with fewer sites is no
            failure: the round asks nobody, and the model stays what it was.)
        deadline_s: Longest a round waits for its sites, in seconds.
        on_site_failure: Whether a round goes on without a site that failed.
        selection: How the cohort is drawn.
        arrivals: When answers arrive, for strategies that step while sites are training; None
            where a round waits for its cohort.
    """

    size: Count | None = None
    minimum: Count = 1
    deadline_s: Positive = 900.0
    on_site_failure: Literal["drop", "fail"] = "drop"
    selection: AnySelection = Uniform()
    arrivals: VirtualArrivals | None = None


class Limits(Value, frozen=True):
    """What the developer's code may take, per process; beyond it the process is ended.

    Attributes:
        import_s: Longest import of the program and building of its model, in seconds.
        train_s: Longest training of one site in one round, in seconds.
        memory_mb: Most resident memory of one worker, in MiB.
        output_mb: Largest update or model, in MiB.
        log_mb: Most output (stdout and stderr) that is kept of one step, in MiB.
    """

    import_s: Positive = 60.0
    train_s: Positive = 600.0
    memory_mb: Annotated[int, Meta(ge=64)] = 4096
    output_mb: Count = 64
    log_mb: Count = 4


class Allotment(Value, frozen=True):
    """Processors and memory of one part of a run."""

    cpu: Positive = 1.0
    gpu: Annotated[int, Meta(ge=0)] = 0
    memory_mb: Annotated[int, Meta(ge=64)] = 4096


class Resources(Value, frozen=True):
    """What an engine reserves."""

    server: Allotment = Allotment(cpu=2.0)
    site: Allotment = Allotment()
    priority: Literal["low", "normal", "high"] = "normal"


class Evaluate(Value, frozen=True):
    """How and when the global model is measured.

    Attributes:
        every: Rounds between evaluations; the last round is always evaluated.
        metrics: Names of metrics; the first one selects the best model. Built in: accuracy,
            auroc (binary), mse. A program may declare more.
        where: On each site's held-out part (a mean weighted by examples), or on the central one.
        minimum_count: Fewest examples behind a metric that a site may release.
        select: Which round's model is the result.
    """

    every: Count = 1
    metrics: tuple[str, ...] = ("accuracy",)
    where: Literal["sites", "central"] = "sites"
    minimum_count: Count = 1
    select: Literal["best", "last"] = "last"


class Output(Value, frozen=True):
    """What is made of the trained model.

    Attributes:
        onnx: Variants to export; empty for none.
        publish: Whether the model is registered for those who may see it.
    """

    onnx: tuple[Literal["fp32", "int8"], ...] = ("fp32",)
    publish: bool = True


class JobSpec(Value, frozen=True):
    """A job as submitted: everything a run needs, and nothing that it finds out.

    Attributes:
        name: For people; not unique.
        collaboration: Name of the collaboration that owns the job; None for one's own.
        program: The code, or what is asked instead.
        runtime: What moves the bytes.
        data: What is trained on.
        init: Where the parameters start.
        local: Training at a site.
        strategy: The server half of the optimiser.
        privacy: Mechanisms that are enforced, in the order in which they apply at a site.
        protect: What they are meant to protect; None if nothing is claimed.
        cohort: Who takes part in a round.
        codec: How updates travel.
        ring: Scale of exact sums.
        rounds: Server steps.
        limits: What the code may take.
        resources: What the engine reserves.
        evaluate: How the model is measured.
        output: What is made of it.
    """

    name: Name
    program: Builtin | Bundle | Image | Analysis
    data: Partitioned | AtSites
    collaboration: Name | None = None
    runtime: Runtime = Runtime()
    init: Seed | FromModel = Seed()
    local: Local = Local()
    strategy: AnyStrategy = FedAvg()
    privacy: tuple[AnyMechanism, ...] = ()
    protect: Protection | None = None
    cohort: Cohort = Cohort()
    codec: AnyCodec = NoCodec()
    ring: Ring = Ring()
    rounds: Annotated[int, Meta(ge=1, le=100_000)] = 10
    limits: Limits = Limits()
    resources: Resources = Resources()
    evaluate: Evaluate = Evaluate()
    output: Output = Output()

    @property
    def num_sites(self) -> int | None:
        """Sites of a simulation; None where real sites decide by themselves."""
        return self.data.sites if isinstance(self.data, Partitioned) else None

    @property
    def cohort_size(self) -> int:
        """Sites that the job wants in a round."""
        return self.cohort.size or self.num_sites or 1

    @property
    def answers_a_round(self) -> int:
        """Answers that the job wants in a round."""
        return self.strategy.buffered or self.cohort_size

    @property
    def most_updates(self) -> int:
        """Most updates that one round can fold."""
        if self.strategy.buffered:
            return self.strategy.buffered
        return self.cohort.selection.most(self.cohort_size, self.num_sites or self.cohort_size)

    @property
    def has_memory(self) -> bool:
        """Whether sites keep something like the model from round to round."""
        return self.strategy.has_memory or self.codec.has_memory

    @property
    def most_versions(self) -> int:
        """Most models before the one in force that sites at work may have been given."""
        arrivals = self.cohort.arrivals
        return min(self.cohort_size, arrivals.max_staleness) if arrivals else 0

    def check(self, capabilities: Capabilities) -> JobSpec:
        """Return the job if its parts fit together and the platform can do what they ask.

        What an analysis leaves out is filled in as its query needs it; every other job is returned
        as it is.

        Raises:
            Unsupported: A field asks for what nothing here can do.
            Inconsistent: Two fields contradict each other.
        """
        spec = _settled(self, capabilities)
        for rule in RULES:
            rule(spec, capabilities)
        return spec


# What `check` holds true, one rule each, in the order in which a developer would mend them.

MOST_LISTED: Final = 100_000
"""Sites that may be named one by one."""
MOST_KEPT_MB: Final = 1024
"""Most that simulated sites may keep or go by together: it is in the checkpoint of every round."""
LARGEST_INTEGER: Final = 2**53 - 1
CLASS_METRICS: Final = frozenset({"accuracy", "auroc"})
FRAMEWORK_MB: Final[Mapping[str, int]] = {
    "torch": 512,
    "sklearn": 256,
    "xgboost": 256,
    "analysis": 256,
}
"""Below it a worker has no room beside its framework (measured resident: 330, 180, 170 MiB), or
beside what reads the data, which an analysis needs as well."""
BUILTIN_METRICS: Final = CLASS_METRICS | {"mse"}


def _require_canonical(spec: JobSpec, _: Capabilities) -> None:
    """Every number has one canonical form, so that the job has a digest."""
    for path, leaf in _leaves(msgspec.to_builtins(spec)):
        if isinstance(leaf, int) and abs(leaf) > LARGEST_INTEGER:
            raise Inconsistent((path,), f"{leaf} is beyond 2**53", "write a smaller number or text")
        if isinstance(leaf, float) and not isfinite(leaf):
            raise Inconsistent((path,), f"{leaf} is no JSON number", "write a finite number")


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    match value:
        case dict():
            for key, part in value.items():
                yield from _leaves(part, f"{path}.{key}" if path else str(key))
        case list() | tuple():
            for index, part in enumerate(value):
                yield from _leaves(part, f"{path}[{index}]")
        case _:
            yield path, value


def _settled(spec: JobSpec, capabilities: Capabilities) -> JobSpec:
    """The job with what its query needs, if it asks one and says nothing else."""
    if not isinstance(spec.program, Analysis):
        if isinstance(spec.strategy, Tally):
            problem = "a tally adds up answers to a query, and a model is no such answer"
            mend = "use fedavg, or ask for an analysis"
            raise Inconsistent(("strategy.kind", "program.kind"), problem, mend)
        return spec
    _require_canonical(spec, capabilities)
    _require_runtime(spec, capabilities)
    query, data, facts = spec.program.query, _partitioned(spec), _dataset(spec, capabilities)
    columns = Columns(facts.columns, prod(facts.features), data.label)
    misfit = query.misfit(facts.num_examples) or unknown_column(query, columns)
    if misfit:
        fields = tuple(f"program.query.{field}" for field in misfit.fields)
        raise Inconsistent(fields, misfit.problem, misfit.mend)
    if spec.evaluate.minimum_count > (largest := max(1, _largest_site(data, facts))):
        problem = f"no site can have so many examples, {largest} at most"
        fields = ("evaluate.minimum_count", "data.sites")
        raise Inconsistent(fields, problem, f"lower evaluate.minimum_count to {largest}")
    found = terms(query, facts.num_examples, data.sites)
    if misfit := contradiction(spec, found):
        raise Inconsistent(misfit.fields, misfit.problem, misfit.mend)
    return settled(spec, found)


def _require_runtime(spec: JobSpec, capabilities: Capabilities) -> None:
    runtime = _runtime(spec, capabilities)
    mode = spec.runtime.mode
    if mode not in runtime.modes:
        problem = f"runtime {spec.runtime.kind} has no mode {mode} yet"
        raise Unsupported(("runtime.mode",), problem, f"use {_one_of(runtime.modes)}")
    if isinstance(spec.data, AtSites):
        problem = "data of real sites cannot be reached from here yet"
        raise Unsupported(("data.kind",), problem, "use partitioned with a data set of your own")
    if mode == "sites":
        problem = "partitioned data is for simulated sites"
        raise Inconsistent(("data.kind", "runtime.mode"), problem, "use mode simulation")
    if (codec := _kind(spec.codec)) not in runtime.codecs:
        problem = f"runtime {spec.runtime.kind} does not speak {codec}"
        raise Unsupported(("codec.kind",), problem, f"use {_one_of(runtime.codecs)}")
    if spec.strategy.has_memory and not isinstance(spec.codec, NoCodec):
        raise Inconsistent(
            ("codec.kind", "strategy.kind"),
            f"what a site keeps under {_kind(spec.strategy)} must be what the server was sent, "
            f"and {codec} changes that on its way",
            "use the codec none, or a strategy whose sites keep nothing",
        )
    if spec.codec.has_memory and isinstance(spec.strategy, KeptFold):
        raise Inconsistent(
            ("codec.kind", "strategy.kind"),
            f"what a site does not send by {codec} is made up for where updates are added up, and "
            f"{_kind(spec.strategy)} does not add them up",
            "use another codec, or a strategy that folds a sum, as fedavg",
        )


def _require_privacy(spec: JobSpec, capabilities: Capabilities) -> None:
    runtime = _runtime(spec, capabilities)
    kinds = [_kind(mechanism) for mechanism in spec.privacy]
    for index, kind in enumerate(kinds):
        field = f"privacy[{index}].kind"
        if kind not in runtime.mechanisms:
            problem = f"runtime {spec.runtime.kind} does not enforce {kind} yet"
            mend = f"use {_one_of(runtime.mechanisms)}" if runtime.mechanisms else "leave it out"
            raise Unsupported((field, "runtime.kind"), problem, mend)
        if kind in kinds[:index]:
            raise Inconsistent((field,), f"{kind} is asked for twice", "leave one out")
    if spec.protect is not None:
        problem = "nothing here can check yet whether mechanisms protect that"
        raise Unsupported(("protect",), problem, "leave it out, so that nothing is claimed")


def _require_program(spec: JobSpec, capabilities: Capabilities) -> None:
    facts = _program(spec, capabilities)
    reaches_in = spec.strategy.client_half().reaches_in
    if reaches_in and facts.own_train and not facts.uses_hooks:
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{_kind(spec.strategy)} reaches into the local loop, but the program's own train "
            "does not say that it calls the hooks it is handed",
            "use fedavg, or call config.hooks in train and declare hooks = true in program.toml",
        )
    _require_trees(spec, facts)
    _require_local_optimizer(spec, facts)
    if facts.framework == "sklearn":
        _require_plain_sgd(spec)
    if spec.limits.memory_mb < (needed := FRAMEWORK_MB.get(facts.framework, 0)):
        raise Inconsistent(
            ("limits.memory_mb", "program"),
            f"workers for {facts.framework} need {needed} MiB before they hold anything",
            f"raise limits.memory_mb to {needed} or more",
        )
    _require_room_for_memories(spec, facts)
    _require_room_for_trees(spec, facts)
    size = _size_bytes(facts) * _models_in_answer(spec)
    if not spec.program.config and size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", "program"),
            f"a site's answer takes {size} bytes, more than {spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}",
        )


def _require_trees(spec: JobSpec, facts: ProgramFacts) -> None:
    """Trees are grown by what can grow them, and nothing else of the job reaches into them."""
    kind, grows = _kind(spec.strategy), spec.strategy.model_kind == "trees"
    if grows != (facts.framework == "xgboost"):
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{kind} appends trees, and the program is in {facts.framework}"
            if grows
            else f"the program's model is an ensemble of trees, of which {kind} can make no mean",
            "use a program in xgboost, as digits-xgb" if grows else "use xgb-bagging or xgb-cyclic",
        )
    if not grows:
        return
    if spec.privacy:
        problem = f"{_kind(spec.privacy[0])} is made for sums, and {kind} appends trees"
        raise Inconsistent(("privacy[0].kind", "strategy.kind"), problem, "leave privacy out")
    if not isinstance(spec.codec, NoCodec):
        problem = f"{_kind(spec.codec)} is made for real numbers, and trees travel as text"
        raise Inconsistent(("codec.kind", "strategy.kind"), problem, "use the codec none")
    usual = Local()
    for field in ("optimizer", "batch_size"):
        if getattr(spec.local, field) != getattr(usual, field):
            raise Inconsistent(
                (f"local.{field}", "program"),
                "trees are grown on all examples at once, by the rate (eta) that build() sets",
                f"leave local.{field} out",
            )
    if isinstance(spec.cohort.selection, Weighted):
        raise Inconsistent(
            ("cohort.selection.kind", "strategy.kind"),
            f"{kind} has no mean in which a site that is drawn twice could count twice",
            "use the selection uniform",
        )


def _require_room_for_trees(spec: JobSpec, facts: ProgramFacts) -> None:
    """The last round's ensemble is within what a model may take, if every tree were full."""
    if not facts.growth_bytes or spec.program.config:
        return
    size = most_model_bytes(spec, facts, spec.rounds)
    if size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", "program"),
            f"after {spec.rounds} rounds the trees may take {size} bytes, more than "
            f"{spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}, or ask for fewer rounds or smaller trees",
        )


def most_model_bytes(spec: JobSpec, facts: ProgramFacts, rounds: int) -> int:
    """Most bytes that the global model takes after ``rounds`` rounds."""
    each = spec.local.epochs * facts.growth_bytes
    return _size_bytes(facts) + rounds * spec.most_updates * each


def _require_vectorizable(spec: JobSpec, capabilities: Capabilities) -> None:
    """Sites are trained together where the loop is ours and nothing in it is a site's own."""
    if not spec.runtime.vectorized:
        return
    facts, strategy = _program(spec, capabilities), spec.strategy
    half, here = strategy.client_half(), "runtime.vectorized"
    if not _runtime(spec, capabilities).vectorizes:
        able = [kind for kind, one in capabilities.runtimes.items() if one.vectorizes]
        problem = f"runtime {spec.runtime.kind} trains one site after the other"
        raise Unsupported((here, "runtime.kind"), problem, f"use {_one_of(able)}")
    misfit: tuple[str, str] | None = None
    if facts.framework != "torch":
        misfit = "program", f"{facts.framework} trains one site after the other"
    elif facts.own_train or facts.own_optimizer:
        own = "train" if facts.own_train else "optimizer"
        misfit = "program", f"the program brings its own {own}, which is made for one site"
    elif facts.frozen_bytes:
        misfit = "program", "the program has a frozen base, which is made for one site"
    elif strategy.buffered:
        misfit = "strategy.kind", f"{_kind(strategy)} takes one answer after the other"
    elif spec.has_memory:
        part = "codec" if spec.codec.has_memory else "strategy"
        misfit = f"{part}.kind", f"sites keep something under {_kind(getattr(spec, part))}"
    elif not strategy.is_sum:
        misfit = "strategy.kind", f"{_kind(strategy)} needs each site's own update"
    elif half.wants_gradient or "loss_before" in half.scalars:
        misfit = "strategy.kind", f"{_kind(strategy)} has a site look at the model before training"
    if misfit:
        field, problem = misfit
        raise Inconsistent((here, field), problem, "set runtime.vectorized to false")
    entries = sum(prod(parameter.shape) for parameter in facts.parameters)
    size = 8 * entries * (1 + len(strategy.vectors))
    if not spec.program.config and size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", here),
            f"the sum of a group takes {size} bytes, more than {spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}",
        )


def _require_room_for_memories(spec: JobSpec, facts: ProgramFacts) -> None:
    """What simulated sites keep fits into a round's checkpoint."""
    if not spec.has_memory or spec.program.config:
        return
    part, keeper = (
        ("codec", _kind(spec.codec))
        if spec.codec.has_memory
        else (
            "strategy",
            _kind(spec.strategy),
        )
    )
    sites, each = _partitioned(spec).sites, _size_bytes(facts)
    if sites * each > MOST_KEPT_MB << 20:
        raise Inconsistent(
            (f"{part}.kind", "data.sites"),
            f"every site keeps {each} bytes for {keeper}, {sites} sites more than "
            f"{MOST_KEPT_MB} MiB",
            f"ask for at most {max(1, (MOST_KEPT_MB << 20) // each)} sites, or use another {part}",
        )


def _models_in_answer(spec: JobSpec) -> int:
    """Arrays like the model that a site's answer holds: what it sends, and what it keeps."""
    return 1 + len(spec.strategy.vectors) + spec.has_memory


def _require_local_optimizer(spec: JobSpec, facts: ProgramFacts) -> None:
    """The strategy's algorithm holds for what takes the local steps."""
    wanted, optimizer, kind = (
        spec.strategy.local_optimizers,
        spec.local.optimizer,
        _kind(spec.strategy),
    )
    if wanted == "any":
        return
    if facts.own_optimizer:
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{kind} is made for SGD, and the program brings an optimizer of its own",
            "leave optimizer() out of the program, or use another strategy",
        )
    if not isinstance(optimizer, Sgd) or (optimizer.momentum and wanted == "plain-sgd"):
        plain = " without momentum" if wanted == "plain-sgd" else ""
        raise Inconsistent(
            ("local.optimizer", "strategy.kind"),
            f"{kind} is made for SGD{plain}",
            "use {kind: sgd, lr: ...}",
        )


def _require_plain_sgd(spec: JobSpec) -> None:
    """The loop is scikit-learn's own, and it knows no more than a rate."""
    local, usual = spec.local, Local()
    optimizer = local.optimizer
    if not isinstance(optimizer, Sgd) or optimizer.momentum or optimizer.weight_decay:
        raise Inconsistent(
            ("local.optimizer", "program"),
            "scikit-learn trains by plain SGD",
            "use {kind: sgd, lr: ...}, and set any decay as `alpha` of the estimator",
        )
    if local.batch_size != usual.batch_size:
        problem = "scikit-learn takes one example after another, or all at once"
        raise Inconsistent(("local.batch_size", "program"), problem, "leave local.batch_size out")


def _require_data(spec: JobSpec, capabilities: Capabilities) -> None:
    data = _partitioned(spec)
    facts = _dataset(spec, capabilities)
    program = _program(spec, capabilities)
    if data.label != DEFAULT_LABEL and not is_digest(data.dataset):
        problem = f"the bundled set {data.dataset} has labels of its own"
        raise Inconsistent(("data.label", "data.dataset"), problem, "leave data.label out")
    if program.features and program.features != facts.features:
        raise Inconsistent(
            ("program", "data.dataset"),
            f"the program takes examples shaped {list(program.features)}, {data.dataset} has "
            f"{list(facts.features)}",
            "choose a program and a data set that fit",
        )
    each = _fewest_per_site(data)
    training = _num_training(data, facts)
    is_virtual = isinstance(data.partitioner, Virtual)
    if is_virtual and not training:
        problem = "no examples are left for the sites"
        raise Inconsistent(("data.central", "data.dataset"), problem, "lower data.central")
    if not is_virtual and data.sites * each > training:
        raise Inconsistent(
            ("data.sites", "data.dataset"),
            f"{data.sites} sites need at least {data.sites * each} examples, {training} are there",
            f"ask for at most {training // each} sites",
        )
    most = data.partitioner.examples if isinstance(data.partitioner, Virtual) else training
    if spec.ring.max_weight < most and not isinstance(spec.strategy, Tally):
        raise Inconsistent(
            ("ring.max_weight", "data.partitioner.examples" if is_virtual else "data.dataset"),
            f"one site may hold {most} examples, more than the weight {spec.ring.max_weight}",
            f"raise ring.max_weight to {most}",
        )


def _require_population(spec: JobSpec, capabilities: Capabilities) -> None:
    """Nothing lists the sites where there are too many for it."""
    sites, runtime = _partitioned(spec).sites, _runtime(spec, capabilities)
    if sites <= MOST_LISTED:
        return
    if not isinstance(_partitioned(spec).partitioner, Virtual):
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
            f"use {_one_of(able)}" if able else f"ask for at most {runtime.most_sites}",
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
            f"{_kind(spec.cohort.selection)} looks at each of {sites} sites in every round",
            f"use uniform or poisson, or ask for at most {MOST_LISTED} sites",
        )
    if spec.cohort_size > MOST_LISTED:
        raise Inconsistent(
            ("cohort.size", "data.sites"),
            f"the transcript of a round lists its cohort, {MOST_LISTED} sites at most, not "
            f"{spec.cohort_size}",
            f"set cohort.size to {MOST_LISTED} or less",
        )


def _require_strategy(spec: JobSpec, capabilities: Capabilities) -> None:
    runtime = _runtime(spec, capabilities)
    kind = _kind(spec.strategy)
    offered = capabilities.strategies if "*" in runtime.strategies else runtime.strategies
    if kind not in offered:
        problem = f"runtime {spec.runtime.kind} does not fold {kind}"
        raise Unsupported(("strategy.kind", "runtime.kind"), problem, f"use {_one_of(offered)}")


def _require_root(spec: JobSpec, capabilities: Capabilities) -> None:
    """The server has data of its own where the strategy wants it to train, and for that alone."""
    if not spec.strategy.wants_root:
        return
    data, kind = _partitioned(spec), _kind(spec.strategy)
    facts = _dataset(spec, capabilities)
    central = facts.num_examples - _num_training(data, facts)
    if not central:
        raise Inconsistent(
            ("data.central", "strategy.kind"),
            f"{kind} has the server train on the central part, and there is none",
            "set data.central above 0, as 0.1",
        )
    if spec.evaluate.metrics and spec.evaluate.where == "central":
        raise Inconsistent(
            ("evaluate.where", "strategy.kind"),
            f"{kind} has the server train on the central part, so a measure on it says nothing",
            "set evaluate.where to sites",
        )
    if spec.ring.max_weight < central:
        raise Inconsistent(
            ("ring.max_weight", "data.central"),
            f"the central part holds {central} examples, more than the weight "
            f"{spec.ring.max_weight}",
            f"raise ring.max_weight to {central}",
        )


def _require_cohort(spec: JobSpec, _: Capabilities) -> None:
    sites = _partitioned(spec).sites
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
            f"{_kind(spec.strategy)} trains at one site a round, each in its turn",
            "use cohort {size: 1, selection: {kind: round-robin}}",
        )
    if size < spec.strategy.min_updates:
        needed = spec.strategy.min_updates
        problem = f"{_kind(spec.strategy)} needs {needed} updates a round, {size} can come"
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


def _require_arrivals(spec: JobSpec, capabilities: Capabilities) -> None:
    cohort, buffer, kind = spec.cohort, spec.strategy.buffered, _kind(spec.strategy)
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
            f"{_kind(cohort.selection)} draws a cohort, and {kind} has none: one idle site is "
            "drawn whenever another returns",
            "use uniform",
        )
    sites = _partitioned(spec).sites
    if buffer > sites:
        problem = f"{buffer} answers a step cannot come from {sites} sites, once from each"
        raise Inconsistent(("strategy.buffer", "data.sites"), problem, f"buffer at most {sites}")
    if cohort.minimum > buffer:
        problem = f"{kind} steps after {buffer} answers, {cohort.minimum} never come"
        mend = f"ask for at most {buffer}"
        raise Inconsistent(("cohort.minimum", "strategy.kind"), problem, mend)
    _require_room_for_versions(spec, _program(spec, capabilities))


def _require_room_for_versions(spec: JobSpec, facts: ProgramFacts) -> None:
    """The models that sites at work were given fit into a round's checkpoint."""
    versions, each = spec.most_versions, _size_bytes(facts)
    if spec.program.config:
        return
    if versions * each > MOST_KEPT_MB << 20:
        raise Inconsistent(
            ("cohort.arrivals.max_staleness", "cohort.size"),
            f"{versions} earlier models of {each} bytes may be in use, more than {MOST_KEPT_MB} "
            "MiB together",
            f"lower one of them to {max(1, (MOST_KEPT_MB << 20) // each)}",
        )


def _require_init(spec: JobSpec, capabilities: Capabilities) -> None:
    if not isinstance(spec.init, FromModel):
        return
    given = capabilities.models.get(spec.init.digest)
    if given is None:
        problem = "no model with this digest is known here"
        raise Unsupported(("init.digest",), problem, "copy the digest of a model you may see")
    wanted = _program(spec, capabilities).parameters
    if spec.strategy.model_kind == "trees":  # whose length grows; the run looks into them
        given, wanted = (
            tuple(msgspec.structs.replace(p, shape=(0,)) for p in parameters)
            for parameters in (given, wanted)
        )
    differing = set(given) ^ set(wanted)
    if differing and not spec.program.config:
        names = ", ".join(sorted({parameter.name for parameter in differing})[:5])
        raise Inconsistent(
            ("init.digest", "program"),
            f"name, shape or dtype differ between the model's and the program's {names}",
            "start from a model of the same program",
        )


def _require_evaluation(spec: JobSpec, capabilities: Capabilities) -> None:
    metrics, data = spec.evaluate.metrics, _partitioned(spec)
    if not metrics:
        if spec.evaluate.select == "best":
            problem = "without a metric there is no best round"
            raise Inconsistent(("evaluate.select", "evaluate.metrics"), problem, "use last")
        return
    field, share = (
        ("data.central", data.central)
        if spec.evaluate.where == "central"
        else ("data.holdout", data.holdout)
    )
    if spec.evaluate.where == "sites" and isinstance(data.partitioner, Virtual):
        raise Inconsistent(
            ("evaluate.where", "data.partitioner.kind"),
            "virtual sites draw from the same data, so others train on what one holds out",
            "use central, with data.central above 0",
        )
    if share == 0:
        problem = f"nothing is held out for evaluation at {spec.evaluate.where}"
        raise Inconsistent((field, "evaluate.where"), problem, f"set {field} above 0, as 0.2")
    if len(set(metrics)) < len(metrics):
        raise Inconsistent(("evaluate.metrics",), "one is named twice", "name each once")
    facts, dataset = _program(spec, capabilities), _dataset(spec, capabilities)
    known = sorted(BUILTIN_METRICS | set(facts.metrics))
    for index, metric in enumerate(metrics):
        path = f"evaluate.metrics[{index}]"
        if metric not in known:
            problem = f"neither the platform nor the program measures {metric}"
            raise Unsupported((path, "program"), problem, f"use {_one_of(known)}")
        if metric not in facts.metrics:
            _require_metric_fits(path, metric, dataset)
    measurable = _most_held_out(data, dataset, spec.evaluate.where)
    if measurable < spec.evaluate.minimum_count:
        raise Inconsistent(
            ("evaluate.minimum_count", field),
            f"a part held out at {spec.evaluate.where} has {measurable} examples at most",
            f"raise {field}, or lower evaluate.minimum_count to {max(measurable, 1)}",
        )


def _require_metric_fits(path: str, metric: str, dataset: DatasetFacts) -> None:
    fields = (path, "data.dataset")
    if dataset.num_classes == 0 and metric in CLASS_METRICS:
        raise Inconsistent(fields, f"{metric} needs classes, the targets are real", "use mse")
    if dataset.num_classes != 0 and metric == "mse":
        raise Inconsistent(fields, "mse needs real targets, there are classes", "use accuracy")
    if dataset.num_classes != 2 and metric == "auroc":
        problem = f"auroc is for two classes, there are {dataset.num_classes}"
        raise Inconsistent(fields, problem, "use accuracy")


def _require_output(spec: JobSpec, capabilities: Capabilities) -> None:
    variants = spec.output.onnx
    for index, variant in enumerate(variants):
        path = f"output.onnx[{index}]"
        if variant not in capabilities.onnx:
            problem = f"the ONNX variant {variant} cannot be made yet"
            raise Unsupported((path,), problem, f"use {_one_of(capabilities.onnx)}")
        if variant in variants[:index]:
            raise Inconsistent((path,), f"{variant} is asked for twice", "leave one out")


def _require_resources(spec: JobSpec, capabilities: Capabilities) -> None:
    engine = capabilities.engine
    for part in ("server", "site"):
        asked: Allotment = getattr(spec.resources, part)
        usual: Allotment = getattr(Resources(), part)
        for field in asked.__struct_fields__:
            can = engine.gpus if field == "gpu" else engine.reserves
            if not can and getattr(asked, field) != getattr(usual, field):
                raise Unsupported(
                    (f"resources.{part}.{field}",),
                    "the engine here reserves nothing, and has no GPU to give"
                    if field == "gpu"
                    else "the engine here reserves nothing",
                    f"leave it out ({getattr(usual, field):g}); limits bound what is used",
                )


Rule = Callable[[JobSpec, Capabilities], None]
RULES: Final[tuple[Rule, ...]] = (
    _require_canonical,
    _require_runtime,
    _require_privacy,
    _require_program,
    _require_vectorizable,
    _require_data,
    _require_population,
    _require_strategy,
    _require_root,
    _require_cohort,
    _require_arrivals,
    _require_init,
    _require_evaluation,
    _require_output,
    _require_resources,
)


def _runtime(spec: JobSpec, capabilities: Capabilities) -> RuntimeAbilities:
    try:
        return capabilities.runtimes[spec.runtime.kind]
    except KeyError:
        problem = f"there is no runtime {spec.runtime.kind}"
        mend = f"use {_one_of(capabilities.runtimes)}"
        raise Unsupported(("runtime.kind",), problem, mend) from None


def _program(spec: JobSpec, capabilities: Capabilities) -> ProgramFacts:
    match spec.program:
        case Builtin(name=name):
            builtin = sorted(key for key in capabilities.programs if not is_digest(key))
            field, mend = "program.name", f"use {_one_of(builtin)}"
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


def _dataset(spec: JobSpec, capabilities: Capabilities) -> DatasetFacts:
    name = _partitioned(spec).dataset
    if name not in capabilities.datasets:
        bundled = sorted(key for key in capabilities.datasets if not is_digest(key))
        mend = "upload it first" if is_digest(name) else f"use {_one_of(bundled)}"
        raise Unsupported(("data.dataset",), f"no data set {name} is known here", mend)
    return capabilities.datasets[name]


def _partitioned(spec: JobSpec) -> Partitioned:
    """The data, once `_require_runtime` let no other kind pass."""
    if not isinstance(spec.data, Partitioned):
        raise TypeError(spec.data)
    return spec.data


def _kind(value: msgspec.Struct) -> str:
    return str(value.__struct_config__.tag)


def _fewest_per_site(data: Partitioned) -> int:
    match data.partitioner:
        case Dirichlet(minimum=fewest) | ByLabel(shards_per_site=fewest):
            return fewest
        case _:
            return 1


def _num_training(data: Partitioned, facts: DatasetFacts) -> int:
    """Examples that are divided among the sites."""
    return facts.num_examples - round(facts.num_examples * data.central)


def _most_held_out(data: Partitioned, facts: DatasetFacts, where: str) -> int:
    """Most examples that one measurement can stand on, at a site or on the central part."""
    training = _num_training(data, facts)
    if where == "central":
        return facts.num_examples - training
    largest = _largest_site(data, facts)
    return min(int(data.holdout * largest), largest - 1)


def _largest_site(data: Partitioned, facts: DatasetFacts) -> int:
    """Most examples that one site can have."""
    training = _num_training(data, facts)
    spread_evenly = isinstance(data.partitioner, Iid)
    others = (data.sites - 1) * _fewest_per_site(data)
    return -(-training // data.sites) if spread_evenly else training - others


def _size_bytes(facts: ProgramFacts) -> int:
    return sum(prod(x.shape) * np.dtype(x.dtype).itemsize for x in facts.parameters)


def _one_of(names: Collection[str]) -> str:
    *rest, last = names or ("nothing of the kind",)
    return f"{', '.join(rest)} or {last}" if rest else last
