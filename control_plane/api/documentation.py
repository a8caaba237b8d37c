"""The API described by itself: OpenAPI with a real example on every body, and its problems.

The framework derives paths, parameters and schemas from the handlers. Added here, from one table
each, are examples by type, problems by error, uploads and downloads. Handlers say what is theirs
in ``opt``: ``problems`` (error classes), ``also`` (further answers by status), ``upload`` and
``content`` (media types of raw bodies), ``event_stream``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.enums import MediaType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.routes import HTTPRoute

from clients.identity import NotAuthentic
from clients.resources import Problem
from control_plane.api import problems
from control_plane.api.bodies import JSON
from control_plane.api.cursors import CursorInvalid
from control_plane.api.decoding import Undecodable
from control_plane.api.event_stream import MEDIA_TYPE as EVENT_STREAM
from control_plane.api.event_stream import encode
from control_plane.api.examples import BODIES, EVENT, FURTHER, PAGES
from control_plane.api.ranges import RangeNotSatisfiable
from control_plane.api.reference import page
from control_plane.api.requests import BodyTooLarge
from control_plane.refusals import NotFound

API_VERSION: Final = "1"
_PAGE_NAME: Final = re.compile(rb"Page_[\w.]+?\.(\w+)_(?=\")")  # the framework's, of a generic type
SCHEMAS: Final = "#/components/schemas/"
BEARER: Final = "bearer"
METHODS: Final = ("get", "head", "post", "put", "patch", "delete")
PUBLIC: Final[Mapping[str, Any]] = {"access": "public"}


class _Described(OpenAPIRenderPlugin):
    """Serves the finished document at /schema and /schema/openapi.json."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        return describe(request.app)


def configuration() -> OpenAPIConfig:
    """What the framework must know to derive its part."""
    scheme = SecurityScheme(type="http", scheme="bearer", description="A token of a user.")
    return OpenAPIConfig(
        title="Foedus",
        version=API_VERSION,
        summary="A control plane for federated learning as a service",
        use_handler_docstrings=True,
        security=[{BEARER: []}],
        components=Components(security_schemes={BEARER: scheme}),
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, opt=dict(PUBLIC)
        ),
        render_plugins=[_Described(path=["/", "/openapi.json"], media_type=MediaType.JSON)],
    )


@get("/openapi.json", include_in_schema=False, opt=dict(PUBLIC), sync_to_thread=False)
def openapi_json(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The document, where many tools look for it."""
    return Response(describe(request.app), media_type=JSON)


@get("/docs", include_in_schema=False, opt=dict(PUBLIC), sync_to_thread=False)
def docs(request: Request[Any, Any, Any]) -> Response[str]:
    """A page to read."""
    return Response(page(msgspec.json.decode(describe(request.app))), media_type=MediaType.HTML)


HANDLERS: Final = (openapi_json, docs)


def describe(app: Litestar) -> bytes:
    """The whole document as JSON; made once."""
    known: bytes | None = app.state.get("openapi_document")
    if known is None:
        known = app.state["openapi_document"] = msgspec.json.encode(_document(app))
    return known


def _document(app: Litestar) -> dict[str, Any]:
    derived = msgspec.json.encode(app.openapi_schema.to_schema())
    document: dict[str, Any] = msgspec.json.decode(_PAGE_NAME.sub(rb"\1Page", derived))
    types = {type(example) for example in BODIES.values()} | {Problem}
    _, schemas = msgspec.json.schema_components(types, ref_template=f"{SCHEMAS}{{name}}")
    document["components"].setdefault("schemas", {}).update(schemas)
    for name, shown in FURTHER.items():
        document["components"]["schemas"][name]["examples"] = msgspec.to_builtins(shown)
    handlers = dict(_handlers(app))
    for path, item in document["paths"].items():
        for method in METHODS:
            if operation := item.get(method):
                _complete(operation, handlers[path, method].opt, f"{method.upper()} {path}")
    return document


def _handlers(app: Litestar) -> Iterator[tuple[tuple[str, str], HTTPRouteHandler]]:
    """Handlers by path, as the document spells it, and method."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    yield (route.path_format, method.lower()), handler


def _complete(operation: dict[str, Any], opt: Mapping[str, Any], title: str) -> None:
    """Add to an operation what only its handler knows."""
    responses = operation["responses"]
    responses.pop("400", None)  # the framework's own, which never goes out
    if uploads := opt.get("upload"):
        operation["requestBody"] = {"content": _binary(uploads), "required": True}
    if content := opt.get("content"):
        responses["200"]["content"] = {} if title.startswith("HEAD") else _binary(content)
    if RangeNotSatisfiable in opt.get("problems", ()):
        responses["206"] = {**responses["200"], "description": "The part asked for by Range."}
        responses["304"] = {"description": "The caller has it: If-None-Match names its ETag."}
    if opt.get("links") and title.startswith("GET"):
        responses["307"] = {"description": "Take it from Location, with `direct=true`."}
    for status, (type_, description) in opt.get("also", {}).items():
        schema = {"$ref": f"{SCHEMAS}{type_.__name__}"}
        responses[str(status)] = {"description": description, "content": {JSON: {"schema": schema}}}
    for part in (operation.get("requestBody", {}), *responses.values()):
        if body := part.get("content", {}).get(JSON):
            body["example"] = _example(body["schema"], title)
    if opt.get("event_stream"):
        told = encode(EVENT.id, EVENT.kind, msgspec.json.encode(EVENT)).decode()
        responses["200"]["content"][EVENT_STREAM] = {"schema": {"type": "string"}, "example": told}
    if opt.get("access") == "public":
        operation["security"] = []
    _tell_problems(operation, opt)


def _binary(media_types: Iterable[str]) -> dict[str, Any]:
    body = {"schema": {"type": "string", "format": "binary"}, "example": "(the bytes of the file)"}
    return dict.fromkeys(media_types, body)


def _example(schema: Mapping[str, Any], title: str) -> Any:  # noqa: ANN401 - JSON
    name = schema.get("$ref", "").removeprefix(SCHEMAS)
    example = BODIES.get(name) or PAGES.get(name)
    if example is None:
        raise LookupError(f"{title}: no example of {name or schema}")
    return msgspec.to_builtins(example)


def _tell_problems(operation: dict[str, Any], opt: Mapping[str, Any]) -> None:
    """Document which problems an operation can answer with, each with an example."""
    errors: list[type[Exception]] = list(opt.get("problems", ()))
    parameters = operation.get("parameters", ())
    if opt.get("access") != "public":
        errors.append(NotAuthentic)
    if any(parameter["in"] == "path" for parameter in parameters):
        errors.append(NotFound)
    if "requestBody" in operation or any(p["in"] != "path" for p in parameters):
        errors.append(Undecodable)
    if "requestBody" in operation and "upload" not in opt:
        errors.append(BodyTooLarge)
    if any(parameter["name"] == "cursor" for parameter in parameters):
        errors.append(CursorInvalid)
    faces = {face.slug: face for face in (problems.PROBLEMS[error] for error in errors)}
    for face in sorted(faces.values(), key=lambda face: (face.status, face.slug)):
        response = operation["responses"].setdefault(
            str(face.status), {"description": face.title, "content": {}}
        )
        content = response["content"].setdefault(
            problems.MEDIA_TYPE,
            {"schema": {"$ref": f"{SCHEMAS}Problem"}, "examples": {}},
        )
        content["examples"][face.slug] = {"value": msgspec.to_builtins(problems.example(face))}
