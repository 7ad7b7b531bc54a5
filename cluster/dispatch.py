"""Which worker samples which group. Pure: events in, assignments out.

Invariant: every group added comes back exactly once through `finish`; a group lost with its worker is assigned again
under the same id, and a second answer for an id is refused as a duplicate.

`deterministic` fixes everything before the first token: groups are spread over the workers by size alone and all sent,
because a batch of another composition rounds differently and may flip a token. For the same reason a worker that comes
back after a loss gets all that it was sent in this phase once more. Otherwise a worker gets the next group when it has
room, so that a slow worker does not hold up the rest, and the groups of a lost one go to whoever has room.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from actors.requests import GroupRequest
from cluster.errors import RunFailed


class Dispatcher:
    def __init__(self, workers: Sequence[str], room_rollouts: int, deterministic: bool, attempts: int = 3) -> None:
        """`room_rollouts`: responses that one worker may have outstanding (at least one group is always let in).
        `attempts`: how often a group may be lost with the worker that samples it, before it is taken as the cause."""
        self._room = room_rollouts
        self._deterministic = deterministic
        self._attempts = attempts
        self._waiting: deque[GroupRequest] = deque()
        self._out: dict[str, dict[str, GroupRequest]] = {worker: {} for worker in workers}
        self._load = dict.fromkeys(workers, 0)  # responses outstanding
        self._done: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._sent: dict[str, list[GroupRequest]] = {worker: [] for worker in workers}  # deterministic: all of a worker
        self._again: dict[str, list[GroupRequest]] = {}  # deterministic: for workers that are away

    @property
    def open_groups(self) -> int:
        """Groups that have not come back yet, those that are sampled once more included."""
        return sum(map(len, (self._waiting, *self._again.values(), *self._out.values())))

    @property
    def busy(self) -> set[str]:
        """The workers that have groups."""
        return {worker for worker, groups in self._out.items() if groups}

    def waits_for(self) -> dict[str, list[str]]:
        """Ids outstanding per worker, for messages and the journal."""
        return {worker: sorted(groups) for worker, groups in self._out.items() if groups}

    def request(self, worker: str, group_id: str) -> GroupRequest | None:
        """What was asked for, of a group that the worker has; None if it has none of this id."""
        return self._out.get(worker, {}).get(group_id)

    def add(self, requests: Sequence[GroupRequest]) -> None:
        """Queue groups, first come first served."""
        self._waiting.extend(requests)

    def join(self, worker: str) -> None:
        """A worker may be given groups from now on."""
        self._load[worker] = 0
        self._out.setdefault(worker, {})
        self._sent.setdefault(worker, [])

    def leave(self, worker: str) -> None:
        """A worker gets no more groups; those that it has it finishes."""
        self._load.pop(worker, None)

    def assign(self) -> dict[str, list[GroupRequest]]:
        """What to send now, by worker."""
        sends: dict[str, list[GroupRequest]] = {}
        for worker in self._again.keys() & self._load.keys():
            for request in self._again.pop(worker):
                self._give(worker, request, sends)
        while self._waiting and self._load:
            worker = min(self._load, key=self._load.__getitem__)
            load, size = self._load[worker], self._waiting[0].rollouts
            if not self._deterministic and load and load + size > self._room:
                break
            self._give(worker, self._waiting.popleft(), sends)
        return sends

    def _give(self, worker: str, request: GroupRequest, sends: dict[str, list[GroupRequest]]) -> None:
        self._out[worker][request.id] = request
        self._load[worker] += request.rollouts
        sends.setdefault(worker, []).append(request)
        if self._deterministic:
            self._sent[worker].append(request)

    def finish(self, worker: str, group_id: str) -> bool:
        """A group came back; False if it is a duplicate that must be dropped. Raises KeyError for one never sent."""
        known = group_id in self._done
        if not known or group_id in self._out.get(worker, {}):
            size = self._out[worker].pop(group_id).rollouts
            if worker in self._load:
                self._load[worker] -= size
        self._done.add(group_id)
        return not known

    def lose(self, worker: str) -> list[GroupRequest]:
        """A worker is gone: what it had has to be sampled again, in the old order, before what waits. Gives the groups.
        Raises RunFailed when one was lost too often."""
        lost = list(self._out.pop(worker, {}).values())
        self._load.pop(worker, None)
        sent = self._sent.pop(worker, [])
        if self._deterministic:
            sent += self._again.pop(worker, [])
            if sent:
                self._again[worker] = sent
        else:
            self._waiting.extendleft(reversed(lost))
        self._count(lost, worker)
        return lost

    def take_back(self, group_ids: Iterable[str]) -> None:
        """These were lost in part with another worker than the one that has them: they are sampled again, whole."""
        wanted = set(group_ids)
        for worker, groups in self._out.items():
            back = [groups.pop(group_id) for group_id in sorted(wanted & groups.keys())]
            if worker in self._load:
                self._load[worker] -= sum(request.rollouts for request in back)
            self._waiting.extendleft(reversed(back))
            self._count(back, worker)

    def _count(self, lost: Sequence[GroupRequest], worker: str) -> None:
        self._losses.update(request.id for request in lost)
        often = [request.id for request in lost if self._losses[request.id] >= self._attempts]
        if often:
            raise RunFailed(
                f"group {often[0]} was lost with its worker {self._attempts} times (limits.group_attempts), the last "
                f"time with {worker}: is it what takes them down?"
            )
