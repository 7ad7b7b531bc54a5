"""Which worker samples which group. Pure: events in, assignments out.

Invariant: every group added comes back exactly once through `finish`; a group lost with its worker is assigned again
under the same id, and a second answer for an id is refused as a duplicate.

`deterministic` fixes everything before the first token: groups are spread over the workers by size alone and all sent,
because a batch of another composition rounds differently and may flip a token. Otherwise a worker gets the next group
when it has room, so that a slow worker does not hold up the rest.
"""

from collections import deque
from collections.abc import Sequence

from actors.requests import GroupRequest
from cluster.errors import RunFailed


class Dispatcher:
    def __init__(self, workers: Sequence[str], room_rollouts: int, deterministic: bool) -> None:
        """`room_rollouts`: responses that one worker may have outstanding (at least one group is always let in)."""
        self._room = room_rollouts
        self._deterministic = deterministic
        self._waiting: deque[GroupRequest] = deque()
        self._out: dict[str, dict[str, GroupRequest]] = {worker: {} for worker in workers}
        self._load = dict.fromkeys(workers, 0)  # responses outstanding
        self._done: set[str] = set()

    @property
    def open_groups(self) -> int:
        """Groups that have not come back yet."""
        return len(self._waiting) + sum(len(groups) for groups in self._out.values())

    def waits_for(self) -> dict[str, list[str]]:
        """Ids outstanding per worker, for messages and the journal."""
        return {worker: sorted(groups) for worker, groups in self._out.items() if groups}

    def add(self, requests: Sequence[GroupRequest]) -> None:
        """Queue groups, first come first served."""
        self._waiting.extend(requests)

    def assign(self) -> dict[str, list[GroupRequest]]:
        """What to send now, by worker. Raises RunFailed when groups wait and no worker is left."""
        if self._waiting and not self._out:
            raise RunFailed(f"no rollout worker is left for the {len(self._waiting)} groups that wait")
        sends: dict[str, list[GroupRequest]] = {}
        while self._waiting:
            worker = min(self._load, key=self._load.__getitem__)
            load, size = self._load[worker], self._waiting[0].rollouts
            if not self._deterministic and load and load + size > self._room:
                break
            request = self._waiting.popleft()
            self._out[worker][request.id] = request
            self._load[worker] += size
            sends.setdefault(worker, []).append(request)
        return sends

    def finish(self, worker: str, group_id: str) -> bool:
        """A group came back; False if it is a duplicate that must be dropped. Raises KeyError for one never sent."""
        if group_id in self._done:
            return False
        self._load[worker] -= self._out[worker].pop(group_id).rollouts
        self._done.add(group_id)
        return True

    def lose(self, worker: str) -> list[GroupRequest]:
        """A worker is gone: its groups go back to the head of the queue, in their old order."""
        lost = list(self._out.pop(worker).values())
        del self._load[worker]
        self._waiting.extendleft(reversed(lost))
        return lost
