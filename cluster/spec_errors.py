"""What pydantic says of a spec, in the words of whoever wrote it."""

import difflib
import re
import reprlib
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line per violation: the field as `--set` names it, what is wrong, what was given, what was perhaps meant."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        field = ".".join(_path(item["loc"])) or "spec"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key" + _nearest(item["loc"], root)
        elif item["type"] == "missing":
            message = "missing; it has no default"
        elif "input" in item and not isinstance(item["input"], dict | list | BaseModel):
            message += f" (got {_shown(item['input'])}{_nearest_of(message, item['input'])})"
        lines.append(f"{field}: {message}")
    return lines


def _nearest_of(message: str, value: Any) -> str:
    """`; did you mean X?` for the choice nearest to a misspelled one, of those that pydantic's message lists."""
    near = difflib.get_close_matches(str(value)[:100], re.findall(r"'([^']*)'", message), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near and message.startswith("Input should be") else ""


def _path(loc: tuple) -> list[str]:
    """The location as the user would write it for `--set`: without the tag that pydantic puts after a list's index."""
    steps = zip((None, *loc), loc, strict=False)
    return [str(part) for before, part in steps if isinstance(part, int) or not isinstance(before, int)]


def _shown(value: Any) -> str:
    """The value as the user wrote it, if it is short; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    return reprlib.repr(value)


def _nearest(loc: tuple, root: type[BaseModel]) -> str:
    """`; did you mean X?` for the known key of that section that is closest to the unknown one."""
    model: Any = root
    for part in loc[:-1]:
        model = _field_model(model, part)
        if model is None:
            return ""
    match = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; known here: {', '.join(model.model_fields)}"


def _field_model(model: Any, part: Any) -> Any:
    """The pydantic class behind one step of an error's location, through optionals, lists and tagged unions."""
    if isinstance(part, int):
        return model
    candidates = model if isinstance(model, list) else [model]
    for candidate in candidates:
        for field, info in candidate.model_fields.items():
            if info.annotation is not None and field == part:
                return _models_in(info.annotation)
        if part in [v for f in candidate.model_fields.values() for v in getattr(f.annotation, "__args__", ())]:
            return candidate
    return None


def _models_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [m for arg in getattr(annotation, "__args__", ()) if (m := _models_in(arg)) is not None]
    flat = [m for item in found for m in (item if isinstance(item, list) else [item])]
    return None if not flat else flat[0] if len(flat) == 1 else flat
