"""Bodies in and out: strict JSON in, pages and downloads out."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from litestar import Response
from litestar.dto import AbstractDTO
from litestar.response import Stream

from clients.resources import Page
from control_plane.api.decoding import decode
from control_plane.api.ranges import entity_tag, may_resume, names, parse_range
from control_plane.api.requests import Call
from control_plane.pages import Slice

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.dto.data_structures import DTOFieldDefinition
    from litestar.openapi.spec import Reference, Schema
    from litestar.types import OperationIDCreator
    from litestar.typing import FieldDefinition

T = TypeVar("T")
JSON: Final = "application/json"
DEFAULT_LIMIT: Final = 50
MOST_ITEMS: Final = 200


class StrictJson(AbstractDTO[Any]):
    """Decodes a handler's ``data`` by its type, strictly, with errors that name the field.

    The framework's own decoding takes text for numbers; this is its extension point for another.
    """

    def decode_bytes(self, value: bytes) -> Any:  # noqa: ANN401 - the framework's signature
        """The body as the type that the handler asks for."""
        field = self.asgi_connection.route_handler.parsed_data_field
        return decode(value, field.annotation) if field else None

    @classmethod
    def create_for_field_definition(cls, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Nothing has to be prepared."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """The schema of the handler's own type."""
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """None: values are decoded whole."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Never: values are decoded whole."""
        return False


def position(request: Call, cursor: str | None) -> str | None:
    """Where the page begins that was asked for; None for the first.

    Raises:
        CursorInvalid: The cursor was not made for this list and filter.
    """
    return None if cursor is None else request.service.cursors.open(_scope(request), cursor)


def page(request: Call, part: Slice[T]) -> Response[Page[T]]:
    """A page of a list, with a link to the next one."""
    if part.next is None:
        return Response(Page(items=part.items))
    cursor = request.service.cursors.seal(_scope(request), part.next)
    query = urlencode([*_filters(request, ("cursor",)), ("cursor", cursor)])
    link = f'<{request.scope["path"]}?{query}>; rel="next"'
    return Response(Page(items=part.items, next=cursor), headers={"Link": link})


def _scope(request: Call) -> str:
    """The list that a cursor belongs to: who lists, which path, under which filter."""
    filters = urlencode(_filters(request, ("cursor", "limit")))
    return f"{request.who.user} {request.scope['path']}?{filters}"


def _filters(request: Call, without: tuple[str, ...]) -> list[tuple[str, str]]:
    given = request.query_params.multi_items()
    return sorted((name, str(value)) for name, value in given if name not in without)


def versioned(request: Call, value: T, version: object) -> Response[Any]:
    """A value with its validator; 304 if the caller has this version."""
    tag = {"ETag": entity_tag(str(version))}
    if names(request.headers.get("if-none-match"), str(version)):
        return Response(None, status_code=304, headers=tag)
    return Response(msgspec.json.encode(value), media_type=JSON, headers=tag)


def download(
    request: Call,
    open_part: Callable[[int, int | None], AsyncIterator[bytes]],
    *,
    digest: str,
    size_bytes: int,
    media_type: str,
    file_name: str,
) -> Response[Any]:
    """An object's bytes, whole or in part, streamed.

    Args:
        request: Says which part is wanted, and which version the caller has.
        open_part: Reads from the first byte to one past the last; None for the end.
        digest: Of the whole; its validator too.
        size_bytes: Of the whole.
        media_type: Of the content.
        file_name: What a browser would call it.

    Raises:
        RangeNotSatisfiable: The range starts past the end.
    """
    sha256 = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
    headers = {
        "ETag": entity_tag(digest),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{sha256}:",
        "Content-Disposition": f'attachment; filename="{file_name}"',
    }
    if names(request.headers.get("if-none-match"), digest):
        return Response(None, status_code=304, headers=headers)
    wanted = request.headers.get("range") if request.method == "GET" else None
    resumes = may_resume(request.headers.get("if-range"), digest)
    part = parse_range(wanted, size_bytes) if resumes else None
    if part is None:
        headers["Content-Length"] = str(size_bytes)
        chunks = open_part(0, None)
    else:
        headers["Content-Length"] = str(part.stop - part.start)
        headers["Content-Range"] = part.content_range
        chunks = open_part(part.start, part.stop)
    return Stream(chunks, status_code=206 if part else 200, media_type=media_type, headers=headers)


def to_link(link: str) -> Response[Any]:
    """Send the caller to a link that is a secret of theirs: no cache keeps it, no page tells it."""
    headers = {"Location": link, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(None, status_code=307, headers=headers)


def reading(operation: str) -> OperationIDCreator:
    """Names the operations of a handler that answers both GET and HEAD."""
    return lambda _handler, method, _path: operation + ("Head" if method == "HEAD" else "")
