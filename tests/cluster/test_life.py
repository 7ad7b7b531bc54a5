"""A run's process is taken to have hung when a sign of life is missing for longer than it may be, and only then."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from small_spec import small

from cluster.checkpoint import RunDirectory
from cluster.life import JOURNAL, PROCESSOR, SLACK_S, Life, Signs, longest_silence_s, silence_limit_s
from cluster.sections import LimitsSpec

LIMITS = {PROCESSOR: 100.0, JOURNAL: 1000.0}


def looked(signs: Signs, looks: int, processor: list[float], journal: list[float]) -> list[str]:
    """What each look says; the last value of a sign goes on."""

    def at(values: list[float], i: int) -> float:
        return values[min(i, len(values) - 1)]

    return [signs.look(1.0, {PROCESSOR: at(processor, i), JOURNAL: at(journal, i)}) for i in range(looks)]


def test_a_process_that_is_stopped_is_found_after_the_limit():
    said = looked(Signs(LIMITS), 103, [5.0], [7.0])
    assert not any(said[:101])
    assert said[101] == "the run's process took no processor time for 101 s"


def test_a_process_that_works_and_journals_nothing_is_found_after_its_own_limit():
    said = looked(Signs(LIMITS), 1003, [float(i) for i in range(1003)], [7.0])
    assert not any(said[:1001])
    assert said[1001] == "the run's process wrote nothing to its journal for 1001 s"


def test_every_change_begins_the_time_anew_and_one_that_goes_back_too():
    ticks = [float(i // 90 % 2) for i in range(5000)]
    assert not any(looked(Signs(LIMITS), 5000, ticks, [float(i // 900 % 2) for i in range(5000)]))


def test_time_in_which_nobody_looked_does_not_count():
    """The machine slept, or the job's processes were frozen together."""
    signs = Signs(LIMITS)
    assert not any(looked(signs, 2, [5.0], [7.0]))
    assert not signs.look(1e6, {PROCESSOR: 5.0, JOURNAL: 7.0})


def test_all_waits_of_a_run_in_a_row_are_not_silence():
    limits = LimitsSpec(placement_timeout_s=50, rollout_timeout_s=100, queue_timeout_s=86400)
    assert longest_silence_s(limits) == SLACK_S + 50 + 300 + 100 + 600 + 300 + 120


def test_the_limit_is_that_of_the_run_or_of_what_it_begins_with(tmp_path: Path):
    assert silence_limit_s(tmp_path) == float("inf")
    (tmp_path / "inputs").mkdir()
    for place, seconds in ((tmp_path / "inputs", 50.0), (tmp_path, 70.0)):
        spec = small() | {"limits": {"placement_timeout_s": seconds}}
        (place / "spec.yaml").write_text(yaml.safe_dump(spec))
        assert silence_limit_s(tmp_path) == longest_silence_s(LimitsSpec(placement_timeout_s=seconds))


def test_time_in_the_queue_is_no_silence_until_the_run_has_begun(tmp_path: Path):
    (tmp_path / "inputs").mkdir()
    text = yaml.safe_dump(small() | {"limits": {"queue_timeout_s": 86400}})
    (tmp_path / "inputs" / "spec.yaml").write_text(text)
    life = Life(os.getpid(), tmp_path)
    assert not life.hung()
    assert life._signs.limits_s[JOURNAL] == longest_silence_s(LimitsSpec()) + 86400
    (tmp_path / "spec.yaml").write_text(text)
    assert not life.hung()
    assert life._signs.limits_s[JOURNAL] == longest_silence_s(LimitsSpec())


def test_a_process_that_has_ended_has_not_hung(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    life = Life(process.pid, tmp_path)
    process.wait(60)
    assert life.hung() == ""


def test_going_on_is_a_sign_of_life_without_a_line(tmp_path):
    run = RunDirectory(tmp_path)
    run.create()
    run.go_on()
    assert not (tmp_path / "journal.jsonl").exists()
    run.journal("stage_started")
    before = (tmp_path / "journal.jsonl").read_bytes()
    os.utime(tmp_path / "journal.jsonl", (1.0, 1.0))
    run.go_on()
    assert (tmp_path / "journal.jsonl").stat().st_mtime > 1.0
    assert (tmp_path / "journal.jsonl").read_bytes() == before
