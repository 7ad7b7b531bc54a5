"""What moves to an idle worker: only what ends the phase earlier."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.migration import EngineSpeed, Plan, StepTimes, Unfinished, finish_s, plan

SLOTS = 8
LATENCY = EngineSpeed((0.02,) * (SLOTS + 1), 1e-5)
"""A step takes 20 ms however many responses it serves."""
THROUGHPUT = EngineSpeed(tuple(0.01 * n for n in range(SLOTS + 1)), 1e-5)
"""A step takes 10 ms for each response."""


def running(*remaining: float, context: int = 100) -> list[Unfinished]:
    return [Unfinished(f"r{i}", context, tokens, False) for i, tokens in enumerate(remaining)]


def waiting(*remaining: float) -> list[Unfinished]:
    return [Unfinished(f"w{i}", 20, tokens, True) for i, tokens in enumerate(remaining)]


def moved(planned: Plan) -> list[str]:
    return sorted(id for ids in planned.moves.values() for id in ids)


def test_predicted_finish_of_a_worker():
    assert finish_s([], LATENCY) == 0
    assert finish_s(running(10, 30), LATENCY) == pytest.approx(30 * 0.02)
    assert finish_s(running(10, 30), THROUGHPUT) == pytest.approx(10 * 0.02 + 20 * 0.01)
    one_slot = EngineSpeed((0.0, 0.1), 0.01)
    assert finish_s(running(5) + waiting(7), one_slot, 1.0) == pytest.approx(1 + 5 * 0.1 + 20 * 0.01 + 7 * 0.1)


def test_running_responses_stay_on_an_engine_bound_by_latency():
    assert plan({"a": running(*[500] * 8), "b": []}, LATENCY, 0.1).moves == {}


def test_half_of_the_running_ones_move_on_an_engine_bound_by_throughput():
    planned = plan({"a": running(*[500] * 8), "b": []}, THROUGHPUT, 0.1)
    assert planned.moves.keys() == {("a", "b")}
    assert len(moved(planned)) == 4
    assert planned.before_s == pytest.approx(40)
    assert planned.after_s == pytest.approx(20 + 0.1 + 4 * 100 * 1e-5)


def test_what_waits_in_a_queue_moves_even_on_an_engine_bound_by_latency():
    planned = plan({"a": running(*[500] * 8) + waiting(*[500] * 8), "b": []}, LATENCY, 0.1)
    assert moved(planned) == [f"w{i}" for i in range(8)]
    assert planned.before_s == pytest.approx(20, rel=0.01)
    assert planned.after_s == pytest.approx(10.1, rel=0.01)


def test_nothing_moves_for_a_small_gain_or_when_prefill_costs_more_than_it_saves():
    short = running(*[10] * 4)
    assert plan({"a": short, "b": []}, THROUGHPUT, 0.0).moves  # 0.4 s against 0.2 s
    assert plan({"a": short, "b": []}, THROUGHPUT, 0.26).moves == {}  # 40 ms would be won
    assert plan({"a": running(*[500] * 8), "b": []}, THROUGHPUT, 34.0).moves == {}  # 39 s instead of 40 s
    slow = EngineSpeed(THROUGHPUT.step_s, 0.1)
    assert plan({"a": running(*[500] * 8, context=400), "b": []}, slow, 0.1).moves == {}


def test_without_an_idle_worker_nothing_moves():
    assert plan({"a": running(*[500] * 8), "b": running(1)}, THROUGHPUT, 0.1).moves == {}
    assert plan({"a": [], "b": []}, THROUGHPUT, 0.1) == Plan({}, 0.0, 0.0)


def test_several_idle_workers_share_and_several_stragglers_give():
    def named(name: str) -> list[Unfinished]:
        return [Unfinished(f"{name}{i}", 100, 500, False) for i in range(8)]

    one = plan({"a": named("a"), "b": [], "c": [], "d": []}, THROUGHPUT, 0.1)
    assert sorted(len(ids) for ids in one.moves.values()) == [2, 2, 2]
    two = plan({"a": named("a"), "b": named("b"), "c": [], "d": []}, THROUGHPUT, 0.1)
    assert sorted(two.moves) in ([("a", "c"), ("b", "d")], [("a", "d"), ("b", "c")])
    assert two.after_s < 21


loads = st.dictionaries(
    st.sampled_from("abcdef"),
    st.lists(st.tuples(st.integers(1, 2000), st.floats(1, 2000), st.booleans()), max_size=20),
    min_size=1,
)
step_times = st.lists(st.floats(0, 0.05), min_size=SLOTS, max_size=SLOTS)


@given(loads, step_times, st.floats(0, 1e-3), st.floats(0, 5))
def test_the_predicted_finish_never_gets_worse_and_is_the_one_of_the_moves(loads, increments, prefill_s, move_s):
    step_s = [0.001]
    for increment in increments:
        step_s.append(step_s[-1] + increment)
    speed = EngineSpeed(tuple(step_s), prefill_s)
    unfinished = {
        worker: [Unfinished(f"{worker}{i}", *r) for i, r in enumerate(sorted(rows, key=lambda r: r[2]))]
        for worker, rows in loads.items()
    }
    planned = plan(unfinished, speed, move_s)
    assert planned.before_s == pytest.approx(max(finish_s(rs, speed) for rs in unfinished.values()))
    assert planned.after_s <= planned.before_s
    gone = moved(planned)
    assert len(set(gone)) == len(gone)
    ends = [finish_s([r for r in rs if r.id not in gone], speed) for rs in unfinished.values()]
    by_id = {r.id: r for rs in unfinished.values() for r in rs}
    for taker in {taker for _, taker in planned.moves}:
        assert not unfinished[taker]
        ids = [id for (_, to), ids in planned.moves.items() if to == taker for id in ids]
        taken = sorted((by_id[id] for id in ids), key=lambda r: -r.remaining_steps)
        ends.append(
            finish_s([Unfinished(r.id, r.context_tokens, r.remaining_steps, True) for r in taken], speed, move_s)
        )
    if planned.moves:
        assert planned.before_s - planned.after_s >= max(0.05, 0.05 * planned.before_s)
        assert max(ends) == pytest.approx(planned.after_s)


def test_speed_is_learned_from_steps_and_what_is_unknown_speaks_for_no_move():
    times = StepTimes(SLOTS)
    assert times.speed() is None
    times.add([(4, 0, 0.04), (4, 0, 0.04), (4, 0, 9.0), (2, 0, 0.02)])  # one hiccup
    assert times.speed() is None
    times.add([(4, 100, 0.14), (0, 50, 0.07)])
    speed = times.speed()
    assert speed is not None
    assert speed.step_s == pytest.approx((0.02, 0.02, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08))
    assert speed.prefill_s == pytest.approx(0.001)


def test_a_phase_of_eight_times_five_hundred_responses_is_planned_within_seconds():
    speed = EngineSpeed(tuple(0.001 * (n + 10) for n in range(257)), 1e-5)
    unfinished = {
        f"w{w}": [Unfinished(f"{w}/{i}", 500, 100 + i, i >= 256) for i in range(500)] if w < 4 else [] for w in range(8)
    }
    began = time.process_time()
    assert plan(unfinished, speed, 0.1).moves
    print(f"{time.process_time() - began:.3f} s")
    assert time.process_time() - began < 3
