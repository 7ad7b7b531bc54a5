"""The placement groups of a run: one for what it cannot start without, one more for each rollout worker beyond that.

Each further group is a demand in Ray's own terms: the autoscaler sees it while it is pending, and the node that it was
on becomes idle when it is removed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.bundles import bundles, extra_bundle, labels, listed
from cluster.errors import NoRoom
from cluster.spec import Spec
from cluster.waits import on_stall

ALIVE_S = 10.0
"""Between two signs of life while the cluster has no room."""


class Places:
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._base: Any = None
        self._extra: dict[str, Any] = {}  # by rollout worker

    def reserve(self, alive: Callable[[], None]) -> None:
        """The bundles that the run cannot start without; `alive` is called now and then while it waits for them. Raises
        NoRoom with what is asked and what is there."""
        wanted, limits = bundles(self._spec), self._spec.limits
        field = "queue_timeout_s" if limits.queue_timeout_s else "placement_timeout_s"
        began, timeout_s, waited_s, told = time.monotonic(), getattr(limits, field), 0.0, False
        self._base = _placement_group(wanted, labels(self._spec))
        while not self._base.wait(min(ALIVE_S, timeout_s - waited_s)):
            alive()
            waited_s = time.monotonic() - began
            if waited_s >= timeout_s:
                self.leave()
                raise NoRoom(_no_room(wanted, labels(self._spec), f"limits.{field} = {timeout_s:g}"))
            if waited_s >= timeout_s / 2 and not told:
                told = True
                on_stall.get()("room for the run's bundles", waited_s, timeout_s)

    def ask(self, worker: str) -> None:
        """A bundle for a further rollout worker; nobody waits for it."""
        spec = self._spec
        self._extra[worker] = _placement_group([extra_bundle(spec)], [spec.cluster.worker_labels])

    def give_back(self, worker: str) -> None:
        """The bundle of a further rollout worker is not needed any more."""
        import ray

        ray.util.remove_placement_group(self._extra.pop(worker))

    def leave(self) -> None:
        """Give all of them back."""
        import ray

        for group in filter(None, (self._base, *self._extra.values())):
            ray.util.remove_placement_group(group)
        self._base, self._extra = None, {}

    def bundle_of(self, worker: str) -> tuple[Any, int]:
        """Placement group and index of a rollout worker's bundle; one of the others' is found by its index."""
        if worker in self._extra:
            return self._extra[worker], 0
        return self._base, int(worker.rpartition("-")[2])

    def nodes_of_ranks(self) -> set[str]:
        """The nodes that learner ranks are on."""
        import ray

        spec, nodes = self._spec, ray.util.placement_group_table(self._base)["bundles_to_node_id"]
        first = 0 if spec.cluster.placement == "colocated" else spec.rollout.workers.min
        return {nodes[first + i] for i in range(spec.learner.ranks) if first + i in nodes}

    def base(self, index: int) -> tuple[Any, int]:
        return self._base, index

    def node_of(self, worker: str) -> str | None:
        """The node that a worker's bundle is on, as a hexadecimal id; None while it is on none."""
        import ray

        group, index = self.bundle_of(worker)
        table = ray.util.placement_group_table(group)
        node = table["bundles_to_node_id"].get(index) if table.get("state") == "CREATED" else None
        # The table goes on naming a node that has died until the bundle is placed anew.
        return node if node and any(n["NodeID"] == node and n["Alive"] for n in ray.nodes()) else None


def leaving_nodes() -> dict[str, float]:
    """Nodes that have been told to go, a spot instance for example: until when, in seconds since 1970, 0 if it was not
    said, by hexadecimal id."""
    import ray

    # Ray has no public call for it; Ray Train asks in the same way.
    return {node: deadline_ms / 1e3 for node, deadline_ms in ray._private.state.state.get_draining_nodes().items()}


def _placement_group(wanted: Sequence[dict[str, float]], selectors: Sequence[dict[str, str]]) -> Any:
    import ray

    held = [{key: amount for key, amount in bundle.items() if amount} for bundle in wanted]
    chosen = {"bundle_label_selector": list(selectors)} if any(selectors) else {}
    return ray.util.placement_group(held, strategy="PACK", **chosen)


def _no_room(wanted: Sequence[dict[str, float]], selectors: Sequence[dict[str, str]], limit: str) -> str:
    import ray

    wanted = [{key: amount for key, amount in bundle.items() if amount} for bundle in wanted]
    asked = {key: sum(bundle.get(key, 0) for bundle in wanted) for key in {k for b in wanted for k in b}}
    there = {key: ray.cluster_resources().get(key, 0) for key in asked}
    free = {key: ray.available_resources().get(key, 0) for key in asked}
    text = (
        f"the cluster cannot hold the {len(wanted)} bundles within {limit}: "
        f"asked {listed(asked)} in bundles of {'; '.join(listed(b) for b in wanted[:4])}; "
        f"the cluster has {listed(there)}, free {listed(free)}"
    )
    for selector in {tuple(sorted(s.items())): s for s in selectors if s}.values():
        nodes = [n for n in ray.nodes() if n["Alive"] and selector.items() <= n.get("Labels", {}).items()]
        told = ", ".join(f"{key}={value}" for key, value in selector.items())
        text += f"; nodes with the labels {told}: {len(nodes)}"
    return text
