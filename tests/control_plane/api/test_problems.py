"""Every error that a caller can meet has a public face."""

from __future__ import annotations

import ast
import builtins
import importlib
from pathlib import Path

import pytest
from litestar.exceptions import MethodNotAllowedException, ValidationException

import clients
import control_plane
import privacy
import sharing
import strategies
import translation
import workflows
from control_plane import refusals
from control_plane.api.problems import PROBLEMS, TRIAL_FACES, face_of, to_problem
from control_plane.holds import ObjectsHeld
from sharing.object_store import ObjectMissing, StoreFull, StoreUnavailable
from workflows.causes import Cause, CauseCode
from workflows.job import Inconsistent

ROOT = Path(control_plane.__file__).parent.parent
OURS = tuple(
    package.__name__
    for package in (clients, control_plane, privacy, sharing, strategies, translation, workflows)
)
ELSEWHERE = (
    # Raised in the processes of a step, which end with a cause.
    "workflows.trainers.trainer.ProgramError",
    "workflows.tasks.SiteFailure",
    "workflows.codecs.",
    "workflows.workbench.NotOpened",
    "workflows.frames.",
    "workflows.flower_grid.",
    "workflows.run_folder.StepError",
    "workflows.checkpoint.CheckpointUnreadable",
    "workflows.transcript.TranscriptInvalid",
    "workflows.courier.",
    "workflows.steps.publish.NotOnRecord",
    "workflows.wrapper.Over",
    "workflows.shard.",
    "strategies.forest.",
    "translation.",
    # Raised and understood by the reconciler.
    "control_plane.finalisation.Unverified",
    # Raised in the command line and the SDK.
    "clients.",
    "workflows.job_document.DocumentInvalid",
    # Raised before the server listens.
    "workflows.runtime_headers.HeaderInvalid",
    "control_plane.data_folder.FolderInUse",
    "workflows.kubernetes.ClusterUnknown",
    # Ends the command that makes or restores a backup.
    "control_plane.backups.BackupError",
    "control_plane.holds.HoldLost",
)
"""Prefixes of errors that never come to the border of HTTP, by where they end instead."""
HERE = {
    f"clients.identity.{name}" for name in ("NotAuthentic", "NotEntitled", "IdentityUnavailable")
}


def classes() -> dict[str, tuple[str, set[str]]]:
    """Name of the module and names of the bases of every class of the house, read from source."""
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                    found[f"{module}.{node.name}"] = (module, bases)
    return found


def errors() -> list[type[Exception]]:
    """Errors that can come to the border of HTTP. Only modules that define one are imported."""
    found = classes()
    known = {
        n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, Exception)
    }
    while True:
        names = {name for name, (_, bases) in found.items() if bases & known}
        simple = {name.rpartition(".")[2] for name in names}
        if simple <= known:
            break
        known |= simple
    met = [
        name
        for name in sorted(names)
        if name in HERE
        or not (name.rpartition(".")[2].startswith("_") or name.startswith(ELSEWHERE))
    ]
    return [
        getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
        for name in met
    ]


def test_each_error_of_the_house_has_a_face() -> None:
    faceless = [
        error
        for error in errors()
        if not any(cls in PROBLEMS for cls in error.__mro__ if cls is not Exception)
    ]

    assert faceless == []
    assert len(errors()) > 25


def test_a_slug_means_one_thing() -> None:
    meanings: dict[str, set[tuple[int, str]]] = {}
    for face in (*PROBLEMS.values(), *TRIAL_FACES.values()):
        meanings.setdefault(face.slug, set()).add((face.status, face.title))

    assert {slug for slug, found in meanings.items() if len(found) > 1} == set()


def test_the_caller_learns_of_its_own_faults_only() -> None:
    assert to_problem(ObjectMissing("sha256:00")).detail == "sha256:00"
    for error in (StoreUnavailable("connect 10.0.0.7"), KeyError("10.0.0.7"), StoreFull("/srv")):
        problem = to_problem(error)
        assert problem.status >= 500
        assert "10.0.0.7" not in str(problem)
        assert "/srv" not in str(problem)


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (refusals.NotFound("x"), 404, "not-found"),
        (refusals.JobClosed("x"), 409, "job-closed"),
        (refusals.Fenced("x"), 409, "fenced"),
        (refusals.EventGap("x"), 409, "event-gap"),
        (refusals.KeyReused("x"), 422, "idempotency-key-reused"),
        (refusals.VersionChanged("x"), 412, "precondition-failed"),
        (refusals.DatabaseUnavailable("x"), 503, "database-unavailable"),
        (refusals.TooManyStreams("x"), 429, "too-many-streams"),
        (StoreFull("x"), 507, "store-full"),
        (ObjectsHeld("x"), 503, "backup-under-way"),
        (MethodNotAllowedException(), 405, "method-not-allowed"),
        (ZeroDivisionError("x"), 500, "internal"),
    ],
    ids=str,
)
def test_what_callers_rely_on(error: Exception, status: int, slug: str) -> None:
    face = face_of(error)

    assert (face.status, face.slug) == (status, slug)


def test_a_job_that_does_not_fit_names_fields_and_mend() -> None:
    problem = to_problem(Inconsistent(("cohort.size", "data.sites"), "12 of 10", "take 10"))

    assert problem.fields == ("cohort.size", "data.sites")
    assert problem.hint == "take 10"
    assert problem.type == "https://foedus.dev/problems/job-inconsistent"


def test_a_failed_trial_is_called_by_its_cause() -> None:
    cause = Cause(code=CauseCode.PROGRAM_HUNG, detail="no end after 60 s")

    problem = to_problem(refusals.ProbeFailed(cause))

    assert problem.type.endswith("/program-hung")
    assert problem.detail == "no end after 60 s"
    assert "limits" in problem.hint


def test_parameters_are_named() -> None:
    error = ValidationException(
        "Validation failed for GET /v1/jobs?cursor=secret",
        extra=[{"message": "Expected `int` <= 200", "key": "limit", "source": "query"}],
    )

    problem = to_problem(error)

    assert problem.fields == ("limit",)
    assert "Expected `int` <= 200" in problem.detail
    assert "secret" not in problem.detail


def test_what_may_be_repeated_says_so() -> None:
    assert to_problem(refusals.StillInFlight("x")).retryable
    assert not to_problem(refusals.JobClosed("x")).retryable
