"""A page to read the API on: rendered here from the OpenAPI document, no script, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #06c }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem 1.5rem 6rem }
h1 { font-size: 1.8rem }
h2 { border-bottom: 1px solid var(--line); margin-top: 3rem }
h3 { margin: 0; font: 600 1rem ui-monospace, monospace }
a { color: var(--accent) }
code, pre { font: .85rem/1.45 ui-monospace, monospace }
pre { background: var(--soft); overflow: auto; padding: .8rem }
section.op { border: 1px solid var(--line); border-radius: 6px; margin: 1rem 0; padding: .8rem 1rem }
.m { display: inline-block; min-width: 4.5rem }
.p { float: right; font-weight: 400; opacity: .75 }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top }
nav ul { columns: 2; list-style: none; padding: 0 }
"""
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)

_METHODS = ("get", "post", "put", "patch", "delete")


def render(document: Mapping[str, Any]) -> bytes:
    """The whole document as one HTML page."""
    return "".join(_parts(document)).encode()


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    yield f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1>"
    yield from (f"<p>{_inline(part)}</p>" for part in info["description"].split("\n\n"))
    yield '<p>For programs: <a href="/api/openapi.json">openapi.json</a></p>'
    operations = list(_operations(document))
    yield "<nav><ul>"
    yield from (f'<li><a href="#{escape(one["operationId"])}">{escape(one["summary"])}</a>' for _, _, one in operations)
    yield "</ul></nav>"
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><p>{_inline(tag['description'])}</p>"
        for path, method, operation in operations:
            if tag["name"] in operation.get("tags", ()):
                yield from _operation(path, method, operation)
    yield "<h2>schemas</h2>"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from _schema(name, schema)
    yield "</html>"


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    permission = escape(operation.get("x-permission", "open to all"))
    yield f'<section class="op" id="{escape(operation["operationId"])}"><h3><span class="p">{permission}</span>'
    yield f'<span class="m">{method.upper()}</span>{escape(path)}</h3>'
    yield f"<p>{_inline(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", ())
    if parameters:
        yield "<table><tr><th>parameter<th>in<th>type<th>meaning</tr>"
        for one in parameters:
            name = one["name"] + (" *" if one.get("required") else "")
            yield _row(name, one["in"], _type(one["schema"]), _inline(one.get("description", "")))
        yield "</table>"
    body = operation.get("requestBody")
    if body:
        kinds = (f"{escape(kind)}: {_type(media.get('schema', {}))}" for kind, media in body["content"].items())
        yield f"<p>Body: {', '.join(kinds)}</p>"
    yield "<p>Answers: "
    yield " · ".join(f"{status} {_answer(answer)}" for status, answer in sorted(operation["responses"].items()))
    yield "</p></section>"


def _answer(answer: Mapping[str, Any]) -> str:
    shown = [_type(media["schema"]) for media in answer.get("content", {}).values() if media.get("schema")]
    return ", ".join(shown) or escape(answer["description"])


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<section class="op" id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
    yield f"<p>{_inline(schema.get('description', ''))}</p>"
    if "enum" in schema:
        yield f"<p>{_type(schema)}</p>"
    properties = schema.get("properties", {})
    if properties:
        yield "<table><tr><th>field<th>type<th>meaning</tr>"
        for field, one in properties.items():
            required = " *" if field in schema.get("required", ()) else ""
            yield _row(field + required, _type(one), _inline(one.get("description", "")))
        yield "</table>"
    for example in schema.get("examples", ()):
        yield f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
    yield "</section>"


def _row(name: str, *cells: str) -> str:
    return f"<tr><td><code>{escape(name)}</code>" + "".join(f"<td>{cell}" for cell in cells)


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#schema-{name}">{name}</a>'
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(_type(one) for one in schema[union])
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    words = [escape(str(schema.get("format") or schema.get("type") or "anything"))]
    for key, sign in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "length ≤")):
        if key in schema:
            words.append(f"{sign} {schema[key]}")
    if "default" in schema:
        words.append(f"(default <code>{escape(json.dumps(schema['default']))}</code>)")
    return " ".join(words)


def _inline(text: str) -> str:
    """Text with `code` and **strong** marked, everything else escaped."""
    strong = escape(text).split("**")
    marked = "".join(part if place % 2 == 0 else f"<strong>{part}</strong>" for place, part in enumerate(strong))
    code = marked.split("`")
    return "".join(part if place % 2 == 0 else f"<code>{part}</code>" for place, part in enumerate(code))
