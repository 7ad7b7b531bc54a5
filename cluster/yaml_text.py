"""YAML as plain data, whoever wrote it: one BadInput for all that is wrong, and no more of it than a spec needs.

PyYAML's safe loader makes no objects, but a few lines of aliases to aliases stand for billions of values, which whoever
copies, checks or prints them would then meet.
"""

from pathlib import Path
from typing import Any

import yaml

from trainer.types import BadInput

MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""With every alias written out."""
DEEPEST = 64
LARGEST = 10**400
"""Python refuses to print integers of some thousand digits."""


def read_yaml(path: Path) -> Any:
    """Content of a regular file. Raises BadInput naming it."""
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except BadInput:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, a NUL in the path
        raise BadInput(f"{path}: cannot be read: {error}") from None
    if len(content) > MOST_BYTES:
        raise BadInput(f"{path}: is longer than {MOST_BYTES} bytes")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Any:
    """The text as plain data. Raises BadInput that begins with `place`."""
    try:
        data = yaml.safe_load(text)
        values, _ = _measured(data, {}, 0)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:  # TypeError: a list as a mapping's key
        raise BadInput(f"{place}: not valid YAML: {' '.join(str(error).split())[:500]}") from None
    if values > MOST_VALUES:
        raise BadInput(f"{place}: has more than {MOST_VALUES:,} values, aliases written out")
    return data


def _measured(node: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Values of nested data, each as often as it is referred to, and how deep they are nested; `known` holds both of
    nodes already seen."""
    if isinstance(node, int) and abs(node) > LARGEST:
        raise ValueError("a number of more than 400 digits")
    if not isinstance(node, dict | list | set | tuple):
        return 1, 0
    values, height = known.get(id(node), (0, 0))
    if depth + height > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep, or into itself")
    if not values:
        inner = [*node, *node.values()] if isinstance(node, dict) else node
        parts = [_measured(child, known, depth + 1) for child in inner]
        values = 1 + sum(part for part, _ in parts)
        known[id(node)] = values, height = values, 1 + max((part for _, part in parts), default=0)
    return values, height
