"""The reference of the spec, from the spec's own classes: `python -m cluster.spec_docs > docs/spec.md`."""

import json
from collections.abc import Iterator
from typing import Any

from cluster.spec import Spec

HEAD = """# The spec

One YAML file says everything about a run. These are all its fields; a field without a default must be given, an
unknown one is an error. `tailrace train SPEC --set path=value` overrides a field; items of a list are addressed by
their number, as in `--set recipe.0.steps=100`. `tailrace plan SPEC` shows what a spec amounts to and starts nothing.

This page is made by `python -m cluster.spec_docs`.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "multipleOf": "multiple of"}
NAMES = {"string": "text", "object": "mapping", "boolean": "true or false"}


def reference() -> str:
    """The page."""
    schema = Spec.model_json_schema()
    parts = [HEAD]
    for name, field in schema["properties"].items():
        about = "" if name in schema["required"] else "May be left out. "
        parts += _sections(name, field, schema["$defs"], about + field.get("description", ""))
    return "\n".join(parts)


def _sections(path: str, field: dict, classes: dict, about: str = "") -> Iterator[str]:
    """The table of every class that the field can hold, and those of their fields after it."""
    for tag, section in _classes(field, classes):
        yield f"## {path}{tag}\n"
        if text := " ".join(f"{section.get('description', '')} {about if not tag else ''}".split()):
            yield f"{text}\n"
        if not section.get("properties"):
            yield "No fields.\n"
            continue
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        required = section.get("required", [])
        inner = {name: f for name, f in section["properties"].items() if any(_classes(f, classes))}
        for name, value in section["properties"].items():
            kind = f"see {path}.{name}" if name in inner else _kind(value)
            default = "" if name in required else f"`{json.dumps({} if name in inner else value['default'])}`"
            yield f"| `{name}` | {kind} | {default} | {' '.join(value.get('description', '').split())} |"
        yield ""
        for name, value in inner.items():
            yield from _sections(f"{path}.{name}", value, classes)


def _classes(field: dict, classes: dict) -> Iterator[tuple[str, dict]]:
    """Classes of a field, through optionals, lists and tagged unions, each with what selects it."""
    if "$ref" in field:
        yield "", classes[field["$ref"].rpartition("/")[2]]
    for option in field.get("anyOf", []):
        yield from _classes(option, classes)
    items = field.get("items", {})
    tagged = items.get("discriminator", {"mapping": {}})
    for value, ref in tagged["mapping"].items():
        yield f"[] with {tagged['propertyName']}: {value}", classes[ref.rpartition("/")[2]]


def _kind(field: dict[str, Any]) -> str:
    """The field's type and bounds in words."""
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"] if option != {"type": "null"})
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return ", ".join(f"`{value}`" for value in values)
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: {_kind(field['prefixItems'][0])}"
    if field["type"] == "array":
        return f"list of {_kind(field['items'])}"
    bounds = [f"{sign} {field[key]:.19g}" for key, sign in BOUNDS.items() if key in field]
    return ", ".join([NAMES.get(field["type"], field["type"]), *bounds])


if __name__ == "__main__":
    print(reference())
