"""The moments of a run, as a test that breaks something sees them: whenever the driver begins to wait for an actor.

`learner: METHOD`, `allocator: METHOD`, `weights of version N ...` (the messages of `cluster.waits.wait`), `workers:
METHOD` for a call to rollout workers, and `workers: collect` each time that finished groups are asked for.
"""

from collections.abc import Callable

import cluster.driver
import cluster.serving
import cluster.updates
import cluster.waits
from cluster.rollouts import Rollouts
from cluster.workers import Workers


def watch(seen: Callable[[str], None], patch: Callable[[object, str, Callable], None] = setattr) -> None:
    """Call `seen` at every moment, before the wait begins."""

    def wrapped(original: Callable, what: Callable[..., str]) -> Callable:
        def wrapper(*args):
            seen(what(*args))
            return original(*args)

        return wrapper

    for module in (cluster.driver, cluster.serving, cluster.updates):
        patch(module, "wait", wrapped(cluster.waits.wait, lambda refs, timeout_s, what: what))
    patch(
        Workers,
        "ask",
        wrapped(Workers.ask, lambda self, method, calls, *_: f"workers: {method}" if calls else "nobody"),
    )
    patch(Rollouts, "_collect", wrapped(Rollouts._collect, lambda self, awaited: "workers: collect"))
