"""What a step asks of its workers and what they answer, as values that cross the wire.

A task names files by path; arrays travel as blobs beside it (``workflows.frames``), the global
model as a file that every worker maps once (``ModelRef``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from sharing.object_store import Digest
from strategies import AnyStrategy
from workflows.analyses import AnyQuery
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause
from workflows.codecs import AnyCodec, NoCodec
from workflows.frames import ArraySpec, arrays_from
from workflows.job import JobSpec, Local, Partitioned
from workflows.model_file import ModelRef
from workflows.transcript import Commitment

Clock = Literal["import_s", "train_s"]
Part = Literal["held-out", "training"]


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What a worker says when a task is done."""


class Done(Answer, frozen=True, tag="done"):
    """It is."""


class Opened(Answer, frozen=True, tag="opened"):
    """The program is loaded."""

    facts: ProgramFacts


class Prepared(Answer, frozen=True, tag="prepared"):
    """The data is there.

    Attributes:
        num_sites: How many there are (``site_names``).
        num_examples: That each of them trains on, in order; one number where all have as many.
        features: Shape of one example.
        num_classes: 0 for real-valued targets.
        central: Examples in the central part.
    """

    num_sites: int
    num_examples: tuple[int, ...] | int
    features: tuple[int, ...]
    num_classes: int
    central: int


class Arrays(Answer, frozen=True, tag="arrays"):
    """The blobs are these arrays."""

    arrays: tuple[ArraySpec, ...]


class TrainedSite(Answer, frozen=True, tag="trained"):
    """The blobs are what one site sends, encoded, and after that what it keeps.

    Attributes:
        arrays: The delta and what travels beside it.
        num_examples: Behind them.
        loss: Of the training; None if not told.
        scalars: What else the strategy has it tell.
        memory: What is handed to the site again when it is drawn next.
    """

    arrays: tuple[ArraySpec, ...]
    num_examples: int
    loss: float | None
    scalars: Mapping[str, float] = {}
    memory: tuple[ArraySpec, ...] = ()


class Measures(Answer, frozen=True, tag="measures"):
    """A model on one site's examples."""

    values: Mapping[str, float]
    num_examples: int


class Failed(Answer, frozen=True, tag="failed"):
    """The task failed by the program's doing; the worker lives on."""

    cause: Cause


class FoldedSite(Answer, frozen=True, tag="folded-site"):
    """One site is in the fold.

    Attributes:
        commitment: To its update as it would have travelled.
        loss: Of the training; None if not told.
        size_bytes: Of that update.
    """

    commitment: Commitment
    loss: float | None
    size_bytes: int


class TrainedMany(Answer, frozen=True, tag="trained-many"):
    """The blobs are the sums of a fold.

    Attributes:
        arrays: Those sums.
        weight: Of all that was folded.
        sites: What came of each site, in the order of the question.
        seconds: That they took.
    """

    arrays: tuple[ArraySpec, ...]
    weight: int
    sites: tuple[FoldedSite | Failed, ...]
    seconds: float


AnyAnswer = Done | Opened | Prepared | Arrays | TrainedSite | TrainedMany | Measures | Failed


class Task(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One thing for a worker to do."""

    clock: ClassVar[Clock] = "train_s"
    """Which of the job's limits ends a worker that is at it for too long."""
    answered_by: ClassVar[type[Answer]] = Answer
    """What the answer must be, unless it is ``Failed``."""


class Open(Task, frozen=True, tag="open"):
    """Load the program and build its model.

    Attributes:
        program: Folder of the unpacked bundle.
        config: Handed to its ``build``.
        seed: Under which the model is built.
        features: Shape of one example; empty where there is no data.
        classes: Of the data; 0 for real-valued targets.
    """

    answered_by: ClassVar[type[Answer]] = Opened
    clock: ClassVar[Clock] = "import_s"
    program: str
    config: Mapping[str, Any] = {}
    seed: int = 0
    features: tuple[int, ...] = ()
    classes: int = 0


class OpenQuery(Task, frozen=True, tag="open-query"):
    """Take up a query in the place of a program; the data must be open.

    Attributes:
        query: What is asked.
        label: Name of the data's label.
        minimum_count: Examples that a site must have to answer.
    """

    answered_by: ClassVar[type[Answer]] = Opened
    clock: ClassVar[Clock] = "import_s"
    query: AnyQuery
    label: str
    minimum_count: int


class Load(Task, frozen=True, tag="load"):
    """Import the framework ahead of the program, which takes seconds.

    Attributes:
        framework: Of the program.
        vectorized: Whether sites are going to be trained together.
    """

    answered_by: ClassVar[type[Answer]] = Done
    clock: ClassVar[Clock] = "import_s"
    framework: Literal["torch", "sklearn", "xgboost"]
    vectorized: bool = False


class Prepare(Task, frozen=True, tag="prepare"):
    """Divide a data set among sites, in files.

    Attributes:
        data: How.
        inputs: Folder where an uploaded data set lies.
        folder: Where the result goes; made if absent.
    """

    answered_by: ClassVar[type[Answer]] = Prepared
    data: Partitioned
    inputs: str
    folder: str


class OpenData(Task, frozen=True, tag="open-data"):
    """Map what ``Prepare`` wrote."""

    answered_by: ClassVar[type[Answer]] = Prepared
    folder: str


class Initial(Task, frozen=True, tag="initial"):
    """The arrays of the model as built."""

    answered_by: ClassVar[type[Answer]] = Arrays
    clock: ClassVar[Clock] = "import_s"


class Train(Task, frozen=True, tag="train"):
    """Train one site from the global model; the blobs are what the site kept.

    Attributes:
        site: Whose examples; the central part for ``ROOT``.
        model: The global model, and beside it what else the strategy has travel.
        local: How to train.
        strategy: Whose client half applies.
        seed: Of this site and round.
        memory: What the blobs are.
        codec: How the answer is encoded.
        codec_seed: Of what is random in that.
    """

    answered_by: ClassVar[type[Answer]] = TrainedSite
    site: str
    model: ModelRef
    local: Local
    strategy: AnyStrategy
    seed: int
    memory: tuple[ArraySpec, ...] = ()
    codec: AnyCodec = NoCodec()
    codec_seed: int = 0


class TrainMany(Task, frozen=True, tag="train-many"):
    """Train some sites from the global model and fold what they would send.

    Attributes:
        sites: Whose examples.
        counts: How often each counts, in their order; None where it counts by its examples.
        round: From 1.
        model: The global model, and beside it what else the strategy has travel.
        spec: The job.
        plan: Plan digest.
        job: Id of the run.
    """

    answered_by: ClassVar[type[Answer]] = TrainedMany
    sites: tuple[str, ...]
    counts: tuple[int, ...] | None
    round: int
    model: ModelRef
    spec: JobSpec
    plan: Digest
    job: str


class Measure(Task, frozen=True, tag="measure"):
    """Measure the model on a site's held-out or training part, or the central one.

    Attributes:
        site: Whose; None for the central part.
        model: Which model.
        metrics: Names.
        part: Which of the site's.
    """

    answered_by: ClassVar[type[Answer]] = Measures
    site: str | None
    model: ModelRef
    metrics: tuple[str, ...]
    part: Part = "held-out"


class Export(Task, frozen=True, tag="export"):
    """Write ``model.onnx`` and ``reference.npz``.

    Attributes:
        model: Which model.
        num_samples: Most held-out examples to answer with the original: of the central part if
            there is one, else of the sites in turn; training examples where nothing is held out.
        folder: Where the files go; made if absent.
    """

    answered_by: ClassVar[type[Answer]] = Done
    model: ModelRef
    num_samples: int
    folder: str


AnyTask = (
    Load | Open | OpenQuery | Prepare | OpenData | Initial | Train | TrainMany | Measure | Export
)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """An answer with its blobs.

    Attributes:
        answer: Never ``Failed``: that becomes a ``SiteFailure``.
        blobs: Bytes of the arrays that the answer announces.
    """

    answer: Any
    blobs: list[bytes] = field(default_factory=list)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is answered, as read-only arrays.

        Raises:
            FrameError: The blobs are not what the answer announces.
        """
        return arrays_from(self.answer.arrays, self.blobs[: self._num_arrays])

    @property
    def memory(self) -> dict[str, np.ndarray]:
        """What the site keeps, as read-only arrays.

        Raises:
            FrameError: The blobs are not what the answer announces.
        """
        return arrays_from(self.answer.memory, self.blobs[self._num_arrays :])

    @property
    def size_bytes(self) -> int:
        """Bytes of what is answered."""
        return sum(len(blob) for blob in self.blobs[: self._num_arrays])

    @property
    def _num_arrays(self) -> int:
        return max(0, len(self.blobs) - len(getattr(self.answer, "memory", ())))


class SiteFailure(Exception):
    """A task did not get a usable answer; others still can.

    Attributes:
        cause: Why.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(f"{cause.code}: {cause.detail}")
        self.cause = cause
