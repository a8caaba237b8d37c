"""The API's description as one page to read: no scripts, no fonts, nothing from another machine.

Colours are the system's own (CSS Color 4, section 6.2), so the page is dark where the reader is.

Source: OpenAPI 3.1, of which the page shows what ``control_plane.api.documentation`` writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

import msgspec

Node = Mapping[str, Any]

STYLE: Final = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace }
pre { overflow: auto; max-height: 24rem }
pre, table { background: color-mix(in srgb, CanvasText 5%, Canvas); padding: .5rem .75rem }
summary { cursor: pointer; padding: .3rem 0 }
summary b { display: inline-block; min-width: 4.5rem }
details { border-top: 1px solid color-mix(in srgb, CanvasText 20%, Canvas) }
details > :not(summary) { margin-left: 1rem }
table { border-collapse: collapse; width: calc(100% - 1rem) }
td { vertical-align: top; padding: .15rem 1rem .15rem 0 }
td:last-child { width: 60% }
.text { white-space: pre-line }
"""
LIMITS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "like {}",
}


def page(document: Node) -> str:
    """The whole page."""
    info, tags = document["info"], _by_tag(document)
    contents = " · ".join(f'<a href="#{tag}">{tag}</a>' for tag in tags)
    routes = "".join(
        f'<h2 id="{tag}">{tag.capitalize()}</h2>{"".join(operations)}'
        for tag, operations in tags.items()
    )
    schemas = document["components"]["schemas"]
    types = "".join(_type(name, schemas[name]) for name in sorted(schemas))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(info["title"])}</title><style>{STYLE}</style>
<h1>{escape(info["title"])} API, version {escape(info["version"])}</h1>
<p>{escape(info["summary"])}. For tools: <a href="openapi.json">openapi.json</a>.</p>
<p>Unless said otherwise, a request needs <code>Authorization: Bearer TOKEN</code>, and an error
is a problem (RFC 9457) with a hint at what to do.</p>
<p>{contents} · <a href="#types">types</a></p>
{routes}<h2 id="types">Types</h2>{types}
</html>
"""


def _by_tag(document: Node) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            shown = _operation(method, path, operation)
            found.setdefault(operation["tags"][0], []).append(shown)
    return found


def _operation(method: str, path: str, operation: Node) -> str:
    first, _, rest = escape(inspect.cleandoc(operation["description"])).partition("\n")
    public = "<p>Needs no token.</p>" if operation.get("security") == [] else ""
    parameters = "".join(
        _row(p["name"], p["schema"], p.get("required", False), f"{p['in']}: ")
        for p in operation.get("parameters", ())
    )
    body = operation.get("requestBody", {}).get("content", {})
    answers = "".join(
        f"<p><b>{status}</b> {escape(answer['description'])}</p>{_contents(answer)}"
        for status, answer in sorted(operation["responses"].items())
    )
    return f"""<details id="{operation["operationId"]}">
<summary><b>{method.upper()}</b> <code>{escape(path)}</code> {first}</summary>
<p class="text">{rest.strip()}</p>{public}{f"<table>{parameters}</table>" if parameters else ""}
{"<h4>Send</h4>" + _contents({"content": body}) if body else ""}<h4>Answers</h4>{answers}</details>
"""


def _contents(part: Node) -> str:
    return "".join(
        f"<p><code>{escape(kind)}</code> {_shape(content['schema'])}</p>"
        + "".join(f"<pre>{_pretty(example)}</pre>" for example in _examples(content))
        for kind, content in part.get("content", {}).items()
    )


def _examples(content: Node) -> Iterator[Any]:
    if "example" in content:
        yield content["example"]
    for example in content.get("examples", {}).values():
        yield example["value"]


def _pretty(example: object) -> str:
    if isinstance(example, str):
        return escape(example)
    return escape(msgspec.json.format(msgspec.json.encode(example), indent=2).decode())


def _type(name: str, schema: Node) -> str:
    told = escape(inspect.cleandoc(schema.get("description", "")))
    required = schema.get("required", ())
    rows = "".join(
        _row(field, of, field in required) for field, of in schema.get("properties", {}).items()
    )
    shown = f"<table>{rows}</table>" if rows else f"<p>{_shape(schema)}</p>"
    return f"""<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>
<p class="text">{told}</p>{shown}</details>
"""


def _row(name: str, schema: Node, is_required: bool, where: str = "") -> str:
    told = f". {escape(schema['description'])}" if where and "description" in schema else ""
    need = "required" if is_required else "optional"
    default = f", default {_pretty(schema['default'])}" if "default" in schema else ""
    shape = f"{where}{_shape(schema)}{default}{told}"
    return f"<tr><td><code>{escape(name)}</code><td>{need}<td>{shape}"


def _shape(schema: Node) -> str:
    """A schema in a few words, with links to the types that it names."""
    limits = [words.format(_plain(schema[key])) for key, words in LIMITS.items() if key in schema]
    return ", ".join([_kind(schema), *limits])


def _kind(schema: Node) -> str:
    match schema:
        case {"$ref": ref}:
            name = escape(ref.rpartition("/")[2])
            return f'<a href="#{name}">{name}</a>'
        case {"anyOf": parts} | {"oneOf": parts}:
            return " or ".join(map(_shape, parts))
        case {"enum": values}:
            return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
        case {"type": "array", "items": items}:
            return f"list of {_shape(items)}"
        case {"type": "object", "additionalProperties": Mapping() as values}:
            return f"map to {_shape(values)}"
        case {"type": kind, "format": form}:
            return escape(f"{kind} ({form})")
        case {"type": kind}:
            return escape(str(kind))
        case _:
            return "anything"


def _plain(limit: float | str) -> str:
    return escape(limit) if isinstance(limit, str) else f"{limit:.15g}"
