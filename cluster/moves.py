"""Carries out what `cluster.migration` plans: responses from a straggler to idle workers, and back when finished.

Invariant: a response that moved has one holder at any time, and comes back through `settle` to the worker that owns its
group; the dispatcher waits for the group as if nothing had moved. When an owner or a holder is lost, the groups that
were split between it and others are dropped everywhere, and sampled again as a whole.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from actors.handover import Delivery, Progress
from actors.requests import Sampling
from cluster.lengths import Lengths, remaining_tokens
from cluster.migration import Plan, StepTimes, Unfinished, plan
from cluster.workers import Workers
from trainer.types import Group

CHECK_S = 1.0
"""While the same workers stay idle, moves are considered this often."""

SHARE = 0.25
"""Of the time that may go into considering moves when idle workers come one after another: each of a thousand would
have all the others asked."""

PATIENCE_S = 1.0
"""Longest wait for what workers say of their progress; who is silent for longer takes no part."""

FIRST_MOVE_S = 0.1
"""What a move is thought to cost beside its prefill before the first one was measured."""


class Mover:
    def __init__(self, workers: Workers, lengths: Lengths, slots: int) -> None:
        self._workers, self._lengths = workers, lengths
        self._times = StepTimes(slots)
        self._move_s = FIRST_MOVE_S
        self._away: dict[str, tuple[str, str]] = {}  # response id: owner and holder
        self._considered: tuple[frozenset[str], float] = frozenset(), 0.0
        self._took_s = 0.0

    def holders(self) -> dict[str, list[str]]:
        """Ids of the responses that went to each worker and have not come back."""
        held: dict[str, list[str]] = {}
        for request_id, (_, holder) in self._away.items():
            held.setdefault(holder, []).append(request_id)
        return held

    def consider(
        self, busy: Collection[str], sampling: Sampling, step_tokens: float, journal: Callable[..., None]
    ) -> None:
        """Move what is worth it. `busy`: the workers with groups of their own; nothing waits for a worker.
        `step_tokens`: tokens that a response gets per step, more than 1 where drafts are accepted."""
        serving = self._workers.serving
        idle = frozenset(serving).difference(busy, self.holders())
        before, asked = self._considered
        began = time.monotonic()
        pause_s = CHECK_S if idle == before else self._took_s / SHARE
        if not idle or began - asked < pause_s:
            return
        reports = self._workers.ask("progress", dict.fromkeys(serving, ()), PATIENCE_S)
        for progress in reports.values():
            self._times.add(progress.steps)
        speed = self._times.speed()
        if speed is None:
            return
        means = self._lengths.expected(sampling.pool)[:, 0].tolist()
        unfinished = {name: _unfinished(progress, means, sampling, step_tokens) for name, progress in reports.items()}
        self._carry_out(plan(unfinished, speed, self._move_s), journal)
        now = time.monotonic()
        self._considered, self._took_s = (idle.difference(self.holders()), now), now - began

    def settle(self, holder: str, finished: Iterable[Group | Delivery]) -> list[Group]:
        """Send home what `holder` has finished for others; the groups among what it has finished."""
        home: dict[str, list[Delivery]] = {}
        groups = []
        for item in finished:
            if isinstance(item, Group):
                groups.append(item)
                continue
            request_id = f"{item.group_id}:{item.sample}"
            owner, held_by = self._away.get(request_id, (None, None))
            if owner is not None and held_by == holder:  # otherwise its group was dropped meanwhile
                del self._away[request_id]
                home.setdefault(owner, []).append(item)
        self._workers.ask("deliver", {owner: (deliveries,) for owner, deliveries in home.items()})
        return groups

    def lose(self, worker: str) -> set[str]:
        """A worker is gone. Drops the groups that were split between it and others, wherever parts of them are, and
        gives the ids of those whose owner is still there."""
        split = {
            request_id.rpartition(":")[0]: owner for request_id, pair in self._away.items() for owner in pair[:1]
            if worker in pair
        }  # fmt: skip
        parts: dict[str, set[str]] = {}
        for request_id, pair in list(self._away.items()):
            if (group_id := request_id.rpartition(":")[0]) in split:
                del self._away[request_id]
                for part_of in pair:
                    parts.setdefault(part_of, set()).add(group_id)
        parts.pop(worker, None)
        self._workers.ask("abandon", {name: (sorted(group_ids),) for name, group_ids in parts.items()})
        return {group_id for group_id, owner in split.items() if owner != worker}

    def _carry_out(self, planned: Plan, journal: Callable[..., None]) -> None:
        for (giver, taker), request_ids in planned.moves.items():
            began = time.monotonic()
            given = self._workers.ask("release", {giver: (request_ids,)}).get(giver)
            if not given:
                continue
            for c in given:
                self._away[c.id] = self._away.get(c.id, (giver,))[0], taker
            self._workers.ask("adopt", {taker: (given,)})  # if it is lost by this, so is what is away with it
            self._move_s += (time.monotonic() - began - self._move_s) / 2
            fields = {
                "from": giver, "to": taker, "groups": sorted({c.request.id for c in given}), "responses": len(given),
                "tokens": sum(len(c.token_ids) for c in given),
                "predicted_s": [round(planned.before_s, 3), round(planned.after_s, 3)],
            }  # fmt: skip
            journal("moved", **fields)


def _unfinished(progress: Progress, means: Sequence[float], sampling: Sampling, step_tokens: float) -> list[Unfinished]:
    """`means`: expected tokens of a response, by prompt."""
    return [
        Unfinished(
            r.id, r.prompt_tokens + r.tokens,
            remaining_tokens(means[r.prompt], r.tokens, sampling.max_tokens) / step_tokens, r.waiting,
        )
        for r in progress.responses
    ]  # fmt: skip
