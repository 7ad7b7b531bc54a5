"""The user's reward module, found and read but never run: what `plan` and `submit` may know of it. A run imports it."""

import ast
import os
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

from trainer.types import BadInput


def module_path(reward: str) -> Path | None:
    """File or package directory of the reward's top-level module, looked for as the run does; None for an installed
    one, which the cluster must have installed too."""
    module, _, function = reward.partition(":")
    if not (module and function):
        raise BadInput(f"task.reward: {reward!r} is not of the form module:function")
    top, *inner = module.split(".")
    spec = PathFinder.find_spec(top, [*sys.path, os.getcwd()])
    if spec is None:
        raise BadInput(f"task.reward: no module {top} here; run this where {top}.py is, or set PYTHONPATH")
    locations = spec.submodule_search_locations
    path = Path(next(iter(locations)) if locations else str(spec.origin)).absolute()
    if any(path.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")):
        return None
    file = path.joinpath(*inner)
    if inner and not (file.is_dir() or file.with_suffix(".py").is_file()):
        raise BadInput(f"task.reward: no module {module}: {file.with_suffix('.py')} does not exist")
    return path


def check_reward(reward: str) -> None:
    """Raises BadInput where an import of the module is sure to fail, or to give no such function."""
    path = module_path(reward)
    if path is None:
        return
    module, _, function = reward.partition(":")
    file = path.joinpath(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():
        return  # a namespace, or compiled
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        raise BadInput(f"task.reward: cannot import {module}: {type(error).__name__}: {error}") from None
    if not _may_define(tree, function):
        raise BadInput(f"task.reward: module {module} has no function {function}")


def _may_define(tree: ast.AST, name: str) -> bool:
    """Whether the module could have a global of that name: it stands there, or what stands there could be anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and {node.asname, node.name} & {name, "*"}:
            return True
        if isinstance(node, ast.Name) and node.id in (name, "globals", "exec", "setattr"):
            return True
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in (name, "__getattr__"):
            return True
    return False
