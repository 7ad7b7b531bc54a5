"""Flat states for checkpoints: prefixes for the parts, and the check that a state fits before any of it is used."""

from collections.abc import Mapping

import numpy as np

from allocator.ledger import AllocationError
from allocator.problem import State


def with_prefix(prefix: str, part: Mapping) -> State:
    return {f"{prefix}.{name}": value for name, value in part.items()}


def without_prefix(prefix: str, state: State) -> State:
    """The part that `with_prefix` put into `state`."""
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def checked_state(state: State, template: State, fixed: set[str]) -> State:
    """`state` without its `fixed` entries, scalars made plain (.npz files return 0-d arrays), if it fits `template`.

    Raises:
        AllocationError: `other_run` if a `fixed` entry differs from the template's; `bad_state` if entries are missing
            or unknown, or one has another shape or type, or a number is not finite.
    """
    for key in sorted(fixed & state.keys()):
        found = np.asarray(state[key]).tolist()
        if found != template[key]:
            raise AllocationError("other_run", f"the state has {key} = {found!r}, this allocator {template[key]!r}")
    if state.keys() != template.keys():
        raise AllocationError("bad_state", f"entries missing or unknown: {sorted(state.keys() ^ template.keys())}")
    checked: State = {}
    for key in template.keys() - fixed:
        found, wanted = np.asarray(state[key]), np.asarray(template[key])
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            message = f"{key} is {found.dtype}{found.shape}, expected {wanted.dtype}{wanted.shape}"
            raise AllocationError("bad_state", message)
        if not np.isfinite(found).all():
            raise AllocationError("bad_state", f"{key} holds NaN or infinity")
        checked[key] = found if wanted.ndim else found.item()
    return checked
