"""``/v1/models``: what was trained, for those who may have it."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Response, get, route
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from clients.resources import Model, Page
from control_plane import models
from control_plane.api.bodies import DEFAULT_LIMIT, download, page, position, reading, to_link
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.ranges import RangeNotSatisfiable
from control_plane.api.requests import Call
from sharing.object_store import ObjectMissing, Presigning

SUFFIXES = {"safetensors": "safetensors", "onnx-fp32": "onnx"}


@get("/v1/models", operation_id="listModels", tags=["models"])
async def list_models(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Model]]:
    """List models, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await models.list_models(platform, request.who, limit, before))


@get("/v1/models/{model:str}", operation_id="getModel", tags=["models"])
async def get_model(request: Call, model: FromPath[str]) -> Model:
    """Fetch what is known of a model."""
    return await models.get_model(request.service.platform, request.who, model)


@route(
    "/v1/models/{model:str}/content",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    operation_id=reading("downloadModel"),
    tags=["models"],
    status_code=200,
    opt={
        "streams": True,
        "content": ("application/octet-stream",),
        "links": True,
        "problems": (RangeNotSatisfiable, ObjectMissing),
    },
)
async def download_model(
    request: Call,
    model: FromPath[str],
    variant: Annotated[
        str, QueryParameter(description="One of the model's variants.")
    ] = "onnx-fp32",
    direct: Annotated[
        bool,
        QueryParameter(
            description="Take it from the object store itself, where that hands out links; the "
            "link needs no token, is good for a short time, and nobody but you checks the digest."
        ),
    ] = False,
) -> Response[Any]:
    """Download a model; its ETag is its digest, and one range of bytes can be asked for."""
    platform = request.service.platform
    found = await models.get_variant(platform, request.who, model, variant)
    file_name = f"{model}.{SUFFIXES.get(variant, 'bin')}"
    if direct and request.method == "GET" and isinstance(platform.store, Presigning):
        lifetime_s = request.service.settings.link_s
        return to_link(
            await platform.store.link(found.digest, lifetime_s=lifetime_s, file_name=file_name)
        )
    await platform.store.stat(found.digest)
    return download(
        request,
        lambda start, stop: platform.store.get(found.digest, start=start, stop=stop),
        digest=found.digest,
        size_bytes=found.size_bytes,
        media_type=found.media_type,
        file_name=file_name,
    )


HANDLERS = (list_models, get_model, download_model)
