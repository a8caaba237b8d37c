"""What one organisation sees of another's runs, as pure functions on what the API answers.

A collaboration says which of its members see models, metrics and the names of sites. Text that
may hold a site's name or its log (details, evidence, reasons of waiting) goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from clients.identity import Principal
from clients.resources import CauseView, Event, Job, Model, Round, Visibility
from control_plane.authorisation import Action, Relation, may, relation_of

A_SITE: Final = "a site"
_WAITS_FOR_SITES: Final = "its sites"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a caller sees of the runs of a collaboration.

    Attributes:
        models: Published models and what they are made of.
        metrics: Metrics and losses.
        site_names: Sites by name.
        evidence: Tracebacks and last lines of logs.
    """

    models: bool
    metrics: bool
    site_names: bool
    evidence: bool


FULL: Final = Sight(models=True, metrics=True, site_names=True, evidence=True)


def sight_of(who: Principal, owner: str, visibility: Visibility) -> Sight:
    """What ``who``, of its collaboration, sees of a job of ``owner``; of its own, all."""
    relation = relation_of(who, owner, is_partner=True)

    def listed(organisations: tuple[str, ...]) -> bool:
        return relation is Relation.OWNER or not organisations or who.organisation in organisations

    return Sight(
        models=listed(visibility.models),
        metrics=listed(visibility.metrics),
        site_names=listed(visibility.site_names),
        evidence=listed(visibility.site_names) and may(who.roles, Action.READ_LOGS, relation),
    )


def redact_job(job: Job, sight: Sight) -> Job:
    """``job`` as ``sight`` sees it."""
    if sight == FULL:
        return job
    return replace(
        job,
        waits_for=job.waits_for if sight.site_names or not job.waits_for else _WAITS_FOR_SITES,
        loss=job.loss if sight.metrics else None,
        metrics=job.metrics if sight.metrics else {},
        cause=job.cause and redact_cause(job.cause, sight),
        model=job.model if sight.models else None,
        workflow=job.workflow if sight.evidence else None,
    )


def redact_cause(cause: CauseView, sight: Sight) -> CauseView:
    """``cause`` as ``sight`` sees it."""
    return replace(
        cause,
        detail=cause.detail if sight.site_names else "",
        site=cause.site if sight.site_names or cause.site is None else A_SITE,
        evidence=cause.evidence if sight.evidence else "",
    )


def redact_round(round_: Round, sight: Sight) -> Round:
    """``round_`` as ``sight`` sees it."""
    return round_ if sight.metrics else replace(round_, loss=None, metrics={})


def redact_model(model: Model, sight: Sight) -> Model:
    """``model``, of whose existence ``sight`` may know, as it sees it."""
    return model if sight.metrics else replace(model, metrics={})


def redact_event(event: Event, sight: Sight) -> Event:
    """``event`` as ``sight`` sees it; its id stays, so that nobody sees a gap."""
    if sight == FULL:
        return event
    fields = dict(event.fields)
    if not sight.metrics:
        for name in ("loss", "metrics"):
            fields.pop(name, None)
    if not sight.models:
        for name in ("model", "checkpoint"):
            fields.pop(name, None)
    if not sight.site_names:
        for name, instead in (
            ("site", A_SITE),
            ("reason", _WAITS_FOR_SITES),
            ("waits_for", _WAITS_FOR_SITES),
        ):
            if fields.get(name):
                fields[name] = instead
    if isinstance(cause := fields.get("cause"), Mapping):
        fields["cause"] = _redact_plain_cause(cause, sight)
    return replace(event, fields=fields)


def _redact_plain_cause(cause: Mapping[str, Any], sight: Sight) -> dict[str, Any]:
    kept = dict(cause)
    if not sight.site_names:
        kept.pop("detail", None)
        if kept.get("site"):
            kept["site"] = A_SITE
    if not sight.evidence:
        kept.pop("evidence", None)
    return kept


def sees_artifact(name: str, sight: Sight) -> bool:
    """True if ``sight`` may know of a job's output of this name."""
    match name:
        case "transcripts.jsonl":
            return sight.site_names
        case "model.json":
            return sight.models and sight.metrics
        case _:
            return sight.models
