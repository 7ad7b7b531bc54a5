"""Waiting for Ray calls: every wait has a deadline, names what it waits for, and tells when half of it is over."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from cluster.errors import ActorLost, RunFailed

on_stall: ContextVar[Callable[[str, float, float], None]] = ContextVar("on_stall", default=lambda *_: None)
"""Told what is waited for, for how many seconds already, and the limit in seconds."""


def wait(refs: Sequence[Any], timeout_s: float, what: str) -> list[Any]:
    """Results of Ray calls. Raises ActorLost naming `what` on the deadline and where a process has died, RunFailed with
    the cause on an error inside an actor."""
    import ray

    try:
        try:
            return ray.get(list(refs), timeout=timeout_s / 2)
        except ray.exceptions.GetTimeoutError:
            on_stall.get()(what, timeout_s / 2, timeout_s)
            return ray.get(list(refs), timeout=timeout_s / 2)
    except ray.exceptions.GetTimeoutError as error:
        raise ActorLost(f"waited {timeout_s:g} s for {what}") from error
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        # An actor that called one which died, or was in a collective with it, has only failed with it.
        kind = ActorLost if isinstance(cause, ray.exceptions.RayError) or _lost_peer(cause) else RunFailed
        raise kind(f"{what}: {told(cause)}") from error


def cause_of(error: Any) -> BaseException:
    """What an actor raised, also one that an actor had called; any other error of Ray is its own cause."""
    import ray

    while isinstance(error, ray.exceptions.RayTaskError) and getattr(error, "cause", None) is not None:
        error = error.cause
    return error


def _lost_peer(cause: BaseException) -> bool:
    """Whether a collective of torch.distributed failed because another rank is gone: of gloo a RuntimeError that names
    the place in its source."""
    return type(cause).__name__ == "DistBackendError" or "gloo/transport" in str(cause)


def told(cause: BaseException) -> str:
    """Kind and message; what Ray says of a dead actor goes on for a page, and of one that could not begin the reason is
    its last line."""
    import ray

    message = str(cause)
    if isinstance(cause, ray.exceptions.RayError) and (lines := message.strip().splitlines()):
        message = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"{type(cause).__name__}: {message}"
