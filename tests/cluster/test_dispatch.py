"""Groups come back exactly once, whatever happens to the workers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.requests import GroupRequest
from cluster.dispatch import Dispatcher
from cluster.errors import RunFailed

sizes_of_groups = st.lists(st.integers(1, 12), max_size=30)


def requests_of(sizes: list[int], epoch: int = 0) -> list[GroupRequest]:
    return [GroupRequest(f"{epoch}/{i}", epoch, i, size, 1) for i, size in enumerate(sizes)]


def ids(sends: dict[str, list[GroupRequest]]) -> dict[str, list[str]]:
    return {worker: [request.id for request in requests] for worker, requests in sends.items()}


def loads(sends: dict[str, list[GroupRequest]], workers: list[str]) -> list[int]:
    return [sum(request.rollouts for request in sends.get(worker, [])) for worker in workers]


@given(sizes_of_groups, st.integers(1, 4), st.integers(1, 20), st.booleans(), st.data())
def test_every_group_comes_back_exactly_once_in_any_order_of_events(sizes, n_workers, room, deterministic, data):
    workers = [f"w{i}" for i in range(n_workers)]
    losses = 8
    dispatcher = Dispatcher(workers, room, deterministic, attempts=losses + 1)
    requests = requests_of(sizes)
    dispatcher.add(requests)
    at: dict[str, dict[str, GroupRequest]] = {worker: {} for worker in workers}
    done: list[str] = []
    while dispatcher.open_groups:
        for worker, sent in dispatcher.assign().items():
            assert not at[worker].keys() & {request.id for request in sent}
            at[worker].update((request.id, request) for request in sent)
        assert {w: sorted(groups) for w, groups in at.items() if groups} == dispatcher.waits_for()
        held = [request for groups in at.values() for request in groups.values()]
        assert len({request.id for request in held}) == len(held)
        busy = [worker for worker in at if at[worker]]
        assert busy, "groups are open, but nobody works on one"
        worker = data.draw(st.sampled_from(busy))
        if losses and data.draw(st.integers(0, 4)) == 0:
            losses -= 1
            lost = dispatcher.lose(worker)
            assert sorted(request.id for request in lost) == sorted(at[worker])
            at[worker].clear()
            dispatcher.join(worker)
            continue
        group_id = data.draw(st.sampled_from(sorted(at[worker])))
        del at[worker][group_id]
        assert dispatcher.finish(worker, group_id) == (group_id not in done)
        if group_id not in done:
            done.append(group_id)
        if not deterministic:
            assert dispatcher.open_groups == len(sizes) - len(done)
    assert sorted(done) == sorted(request.id for request in requests)
    assert dispatcher.assign() == {}


@given(st.lists(st.integers(1, 12), max_size=60), st.integers(1, 5), st.integers(1, 20))
def test_no_worker_has_more_than_its_room_unless_it_is_one_group(sizes, n_workers, room):
    workers = [f"w{i}" for i in range(n_workers)]
    dispatcher = Dispatcher(workers, room, deterministic=False)
    dispatcher.add(requests_of(sizes))
    out: dict[str, list[GroupRequest]] = {worker: [] for worker in workers}
    for _ in range(len(sizes) + 1):
        for worker, sent in dispatcher.assign().items():
            out[worker] += sent
        assert all(sum(r.rollouts for r in groups) <= room or len(groups) == 1 for groups in out.values())
        oldest = next((worker for worker in workers if out[worker]), None)
        if oldest:
            assert dispatcher.finish(oldest, out[oldest].pop(0).id)
    assert dispatcher.open_groups == 0


def test_a_group_larger_than_the_room_is_let_in_alone():
    dispatcher = Dispatcher(["a"], 4, deterministic=False)
    dispatcher.add(requests_of([9, 1]))
    assert ids(dispatcher.assign()) == {"a": ["0/0"]}
    assert dispatcher.assign() == {}
    dispatcher.finish("a", "0/0")
    assert ids(dispatcher.assign()) == {"a": ["0/1"]}


def test_a_slow_worker_does_not_hold_up_the_rest():
    dispatcher = Dispatcher(["slow", "fast"], 4, deterministic=False)
    dispatcher.add(requests_of([4] * 5))
    dispatcher.assign()
    for _ in range(3):
        assert dispatcher.finish("fast", dispatcher.waits_for()["fast"][0])
        assert ids(dispatcher.assign()).keys() <= {"fast"}
    assert dispatcher.waits_for() == {"slow": ["0/0"], "fast": ["0/4"]}


@given(sizes_of_groups, st.integers(1, 4), st.integers(1, 20), st.data())
def test_deterministic_assignment_depends_on_sizes_alone_and_is_balanced(sizes, n_workers, room, data):
    workers = [f"w{i}" for i in range(n_workers)]
    one, other = (Dispatcher(workers, r, deterministic=True) for r in (room, 10**9))
    one.add(requests_of(sizes))
    for request in requests_of(sizes):  # in pieces
        other.add([request])
    sends = one.assign()
    assert sends == other.assign()
    assert sum(map(len, sends.values())) == len(sizes)
    spread = loads(sends, workers)
    assert max(spread) - min(spread) <= max(sizes, default=0)
    # The next epoch starts from empty workers again, whatever order the answers of this one came in.
    answers = [(worker, group_id) for worker, groups in ids(sends).items() for group_id in groups]
    for dispatcher in (one, other):
        for worker, group_id in data.draw(st.permutations(answers)):
            dispatcher.finish(worker, group_id)
        dispatcher.add(requests_of(sizes, epoch=1))
    assert one.assign() == other.assign()


def test_lost_groups_are_sent_again_first_under_the_same_ids():
    dispatcher = Dispatcher(["a", "b"], 4, deterministic=False)
    requests = requests_of([2] * 6)
    dispatcher.add(requests)
    assert ids(dispatcher.assign()) == {"a": ["0/0", "0/2"], "b": ["0/1", "0/3"]}
    assert dispatcher.lose("a") == [requests[0], requests[2]]
    assert dispatcher.assign() == {}
    dispatcher.finish("b", "0/1")
    dispatcher.finish("b", "0/3")
    assert dispatcher.assign() == {"b": [requests[0], requests[2]]}
    assert dispatcher.open_groups == 4


def test_a_second_answer_is_a_duplicate():
    dispatcher = Dispatcher(["a", "b"], 1, deterministic=True)
    dispatcher.add(requests_of([1, 1]))
    dispatcher.assign()
    assert dispatcher.finish("a", "0/0")
    assert not dispatcher.finish("a", "0/0")
    assert not dispatcher.finish("b", "0/0")
    assert dispatcher.open_groups == 1
    assert dispatcher.waits_for() == {"b": ["0/1"]}


def test_an_answer_to_what_was_never_sent_is_an_error():
    dispatcher = Dispatcher(["a"], 1, deterministic=False)
    dispatcher.add(requests_of([1, 1]))
    dispatcher.assign()
    with pytest.raises(KeyError, match="0/1"):
        dispatcher.finish("a", "0/1")
    assert dispatcher.open_groups == 2


def test_without_a_worker_groups_wait_for_one():
    dispatcher = Dispatcher(["a"], 1, deterministic=False)
    dispatcher.add(requests_of([1, 1, 1]))
    dispatcher.assign()
    dispatcher.lose("a")
    assert dispatcher.assign() == {}
    dispatcher.join("b")
    assert ids(dispatcher.assign()) == {"b": ["0/0"]}
    assert dispatcher.open_groups == 3


def test_a_worker_that_leaves_finishes_what_it_has_and_gets_no_more():
    dispatcher = Dispatcher(["a", "b"], 2, deterministic=False)
    dispatcher.add(requests_of([2, 2, 2, 2]))
    dispatcher.assign()
    dispatcher.leave("a")
    assert dispatcher.finish("a", "0/0")
    assert dispatcher.assign() == {}
    assert dispatcher.finish("b", "0/1")
    assert ids(dispatcher.assign()) == {"b": ["0/2"]}


def test_deterministic_a_worker_that_comes_back_gets_all_that_it_had_in_the_same_order():
    """A batch of another composition rounds differently: its tokens could be others."""
    dispatcher = Dispatcher(["a", "b"], 1, deterministic=True)
    dispatcher.add(requests_of([1] * 6))
    sent = dispatcher.assign()
    assert dispatcher.finish("a", sent["a"][0].id)
    assert dispatcher.lose("a") == sent["a"][1:]
    for group_id in dispatcher.waits_for()["b"]:
        assert dispatcher.finish("b", group_id)
    assert dispatcher.assign() == {}, "nobody else gets them"
    dispatcher.join("a")
    assert dispatcher.assign() == {"a": sent["a"]}
    assert [dispatcher.finish("a", request.id) for request in sent["a"]] == [False, True, True]
    assert dispatcher.open_groups == 0


def test_groups_of_which_a_part_is_lost_are_sampled_again_as_a_whole():
    dispatcher = Dispatcher(["a", "b"], 2, deterministic=False)
    requests = requests_of([1, 1, 1, 1])
    dispatcher.add(requests)
    dispatcher.assign()
    dispatcher.take_back(["0/0"])
    assert dispatcher.request("a", "0/0") is None
    assert dispatcher.request("a", "0/2") == requests[2]
    assert ids(dispatcher.assign()) == {"a": ["0/0"]}
    assert dispatcher.open_groups == 4


def test_a_group_that_takes_down_its_workers_fails_the_run_and_is_named():
    dispatcher = Dispatcher(["a", "b"], 1, deterministic=False, attempts=2)
    dispatcher.add(requests_of([1]))
    (first,) = dispatcher.assign()
    dispatcher.lose(first)
    (second,) = dispatcher.assign()
    with pytest.raises(RunFailed, match=f"group 0/0 was lost with its worker 2 times .* last time with {second}"):
        dispatcher.lose(second)


def test_twenty_thousand_groups_are_dispatched_in_linear_time():
    dispatcher = Dispatcher(["a", "b"], 10**9, deterministic=True)
    dispatcher.add(requests_of([4] * 20_000))
    began = time.process_time()
    sends = ids(dispatcher.assign())
    for worker, groups in sends.items():
        for group_id in groups:
            dispatcher.finish(worker, group_id)
    assert time.process_time() - began < 2  # summing loads anew for every group takes minutes
    assert dispatcher.open_groups == 0
