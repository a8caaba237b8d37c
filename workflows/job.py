"""What an AI developer asks for: one federated training job, as a value.

A job is wire format, table column and signed statement at once. Every field exists from the first
version; what no runtime can do yet is refused by ``workflows.rules`` with that reason, and never
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from privacy import AnyMechanism, Protection
from sharing.object_store import Digest
from strategies import AnyStrategy, FedAvg, Ring
from workflows.analyses import AnyQuery
from workflows.arrivals import VirtualTime
from workflows.codecs import AnyCodec, NoCodec
from workflows.data.partitioners import AnyPartitioner, Iid
from workflows.selection import AnySelection, Uniform

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
        shards: Machines (on one machine: groups of processes) that the simulated sites are spread
            over, each with that many workers; the result does not depend on it either. With one,
            they are simulated beside the server.
        vectorized: Whether small sites are trained together, in one operation for all; the result
            differs from that of training them one by one in last bits, and in no other way.
    """

    kind: str = "flower"
    mode: Literal["simulation", "sites"] = "simulation"
    workers: Annotated[int, Meta(ge=0, le=64)] = 0
    shards: Annotated[int, Meta(ge=1, le=64)] = 1
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
    arrivals: VirtualTime | None = None


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
    def fewest_updates(self) -> int:
        """Updates without which there is no server step."""
        return max(self.cohort.minimum, self.strategy.min_updates)

    @property
    def has_memory(self) -> bool:
        """Whether sites keep something like the model from round to round."""
        return self.strategy.has_memory or self.codec.has_memory

    @property
    def most_versions(self) -> int:
        """Most models before the one in force that sites at work may have been given."""
        arrivals = self.cohort.arrivals
        return min(self.cohort_size, arrivals.max_staleness) if arrivals else 0
