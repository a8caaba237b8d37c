"""Published models, as those see them who may."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import bindparam, select

from clients.identity import Principal
from clients.resources import Model, Variant
from control_plane.jobs import sight_on
from control_plane.pages import Slice, cut
from control_plane.platform import Platform
from control_plane.records.tables import COLLABORATION, MEMBER, MODEL, VARIANT
from control_plane.refusals import NotFound
from control_plane.views import model_of, variant_of
from control_plane.visibility import redact_model

_SEEN: Final = (
    select(MODEL, COLLABORATION.c.visibility)
    .join(COLLABORATION, COLLABORATION.c.id == MODEL.c.collaboration)
    .join(MEMBER, MEMBER.c.collaboration == MODEL.c.collaboration)
    .where(MEMBER.c.organisation == bindparam("organisation"))
)
_ONE: Final = _SEEN.where(MODEL.c.id == bindparam("model"))
_ENOUGH: Final = 200


async def list_models(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Model]:
    """Those that the caller may see, newest first."""
    seen: list[tuple[str, Model]] = []
    while len(seen) <= limit:
        query = _SEEN.order_by(MODEL.c.id.desc()).limit(_ENOUGH)
        if before is not None:
            query = query.where(MODEL.c.id < before)
        rows = await platform.database.rows(query, {"organisation": who.organisation})
        variants = await _variants(platform, [row.id for row in rows])
        for row in rows:
            sight = sight_on(who, row)
            if sight.models:
                seen.append((row.id, redact_model(model_of(row, variants[row.id]), sight)))
        if len(rows) < _ENOUGH:
            break
        before = rows[-1].id
    return cut(seen, limit)


async def get_model(platform: Platform, who: Principal, model: str) -> Model:
    """One model.

    Raises:
        NotFound: There is none that the caller may know of.
    """
    row = await platform.database.one_or_none(
        _ONE, {"organisation": who.organisation, "model": model}
    )
    if row is None or not (sight := sight_on(who, row)).models:
        raise NotFound("no such model")
    variants = await _variants(platform, [model])
    return redact_model(model_of(row, variants[model]), sight)


async def get_variant(platform: Platform, who: Principal, model: str, variant: str) -> Variant:
    """One form of a model.

    Raises:
        NotFound: There is none that the caller may know of.
    """
    found = await get_model(platform, who, model)
    for one in found.variants:
        if one.name == variant:
            return one
    has = ", ".join(one.name for one in found.variants)
    raise NotFound(f"the model has no variant {variant!r}; it has {has}")


async def _variants(platform: Platform, models: list[str]) -> dict[str, tuple[Variant, ...]]:
    rows = await platform.database.rows(
        select(VARIANT).where(VARIANT.c.model.in_(models)).order_by(VARIANT.c.name)
    )
    found: dict[str, list[Any]] = {model: [] for model in models}
    for row in rows:
        found[row.model].append(variant_of(row))
    return {model: tuple(variants) for model, variants in found.items()}
