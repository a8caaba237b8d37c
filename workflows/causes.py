"""Why runs fail: a closed catalogue, so that every failure says who can act and how."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal

import msgspec


class CauseCode(enum.StrEnum):
    """Every way in which a run or a site's round can fail."""

    PROGRAM_RAISED = "program-raised"
    PROGRAM_IMPORT_FAILED = "program-import-failed"
    PROGRAM_HUNG = "program-hung"
    PROGRAM_OUT_OF_MEMORY = "program-out-of-memory"
    PROGRAM_DIED = "program-died"
    PROGRAM_OUTPUT_TOO_LARGE = "program-output-too-large"
    UPDATE_NOT_FINITE = "update-not-finite"
    UPDATE_OUT_OF_RING = "update-out-of-ring"
    UPDATE_INCOMPATIBLE = "update-incompatible"
    UPDATE_STALE = "update-stale"
    DATA_UNREADABLE = "data-unreadable"
    TOO_FEW_EXAMPLES = "too-few-examples"
    COHORT_TOO_SMALL = "cohort-too-small"
    DEADLINE_PASSED = "deadline-passed"
    TRANSLATION_FAILED = "translation-failed"
    PARITY_FAILED = "parity-failed"
    MANIFEST_INVALID = "manifest-invalid"
    INPUT_MISSING = "input-missing"
    STEP_DIED = "step-died"
    ATTEMPT_LOST = "attempt-lost"
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    DISK_FULL = "disk-full"
    ENGINE_REFUSED = "engine-refused"
    PLATFORM_BUG = "platform-bug"


class Explanation(msgspec.Struct, frozen=True):
    """What a code means.

    Attributes:
        actor: Who can act.
        retryable: Whether the same run may succeed if tried again by itself.
        hint: What the actor can do.
    """

    actor: Literal["user", "site", "platform"]
    retryable: bool
    hint: str


C = CauseCode
CATALOGUE: Final[Mapping[CauseCode, Explanation]] = {
    C.PROGRAM_RAISED: Explanation(
        "user",
        False,
        "Read the traceback in the logs; `foedus program check DIR` shows it locally.",
    ),
    C.PROGRAM_IMPORT_FAILED: Explanation(
        "user", False, "Use only the packages of the runtime's environment, or bundle the module."
    ),
    C.PROGRAM_HUNG: Explanation(
        "user", False, "Raise limits.train_s or limits.import_s, or train less in a round."
    ),
    C.PROGRAM_OUT_OF_MEMORY: Explanation(
        "user", False, "Raise limits.memory_mb, or use a smaller model or batch."
    ),
    C.PROGRAM_DIED: Explanation(
        "user", False, "The process ended by itself or by a signal; the last log lines tell more."
    ),
    C.PROGRAM_OUTPUT_TOO_LARGE: Explanation(
        "user", False, "Raise limits.output_mb, or return a smaller model."
    ),
    C.UPDATE_NOT_FINITE: Explanation(
        "user", False, "Training diverged: lower the learning rate or clip gradients."
    ),
    C.UPDATE_OUT_OF_RING: Explanation(
        "user", False, "Raise ring.magnitude (and lower ring.fraction_bits if it then wraps)."
    ),
    C.UPDATE_INCOMPATIBLE: Explanation(
        "user", False, "Training must return the layers of `build()`, in their shapes."
    ),
    C.UPDATE_STALE: Explanation(
        "user", False, "Raise cohort.arrivals.max_staleness, or have fewer sites train at a time."
    ),
    C.DATA_UNREADABLE: Explanation("user", False, "Mend the file at the place that is named."),
    C.TOO_FEW_EXAMPLES: Explanation(
        "user", False, "Lower evaluate.minimum_count, or do without sites with fewer examples."
    ),
    C.COHORT_TOO_SMALL: Explanation(
        "user", False, "See why sites dropped out, or lower cohort.minimum."
    ),
    C.DEADLINE_PASSED: Explanation("site", False, "Raise cohort.deadline_s, or wait for the site."),
    C.TRANSLATION_FAILED: Explanation(
        "user", False, "The model has an operation without an ONNX form; set output.onnx to []."
    ),
    C.PARITY_FAILED: Explanation(
        "user", False, "The ONNX model answers differently; look for randomness in `forward`."
    ),
    C.MANIFEST_INVALID: Explanation("platform", True, "Results did not verify; they were dropped."),
    C.INPUT_MISSING: Explanation("platform", False, "An input is gone from the object store."),
    C.STEP_DIED: Explanation(
        "platform", True, "The step was ended from outside; it is tried again."
    ),
    C.ATTEMPT_LOST: Explanation("platform", True, "The attempt vanished; it is tried again."),
    C.ATTEMPTS_EXHAUSTED: Explanation(
        "platform", False, "Every attempt was lost; look at the machine, then submit again."
    ),
    C.DISK_FULL: Explanation("platform", True, "Free some room; the run goes on by itself."),
    C.ENGINE_REFUSED: Explanation("platform", False, "The engine will never run this plan."),
    C.PLATFORM_BUG: Explanation("platform", False, "Report it with the trace id of the event."),
}


class Cause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One failure.

    Attributes:
        code: Which of the catalogue.
        detail: What happened here, for the person who can act.
        site: Where, if at one site.
        round: When, if in a round.
        evidence: Last lines of the traceback or log; stays with those who may see logs.
    """

    code: CauseCode
    detail: str = ""
    site: str | None = None
    round: int | None = None
    evidence: str = ""

    @property
    def explanation(self) -> Explanation:
        """Who can act on it, and how."""
        return CATALOGUE[self.code]
