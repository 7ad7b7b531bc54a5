"""Whether a run's process lives, seen from outside: a process that is stopped, or hangs, cannot tell of it itself.

Two signs. A process that goes on takes processor time, be it for the threads of Ray in it that never rest. And a run
writes to its journal, at the latest when the deadlines of all that it may wait for in a row are over.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from cluster.sections import LimitsSpec
from cluster.spec import load_spec
from trainer.types import BadInput

FROZEN_S = 600.0
"""Longest time that a process which goes on takes no processor time. Storage that does not answer can be the cause."""
SLACK_S = 3600.0
"""Beside the limits of the spec: reading data and weights at the start has none."""
LONGEST_LOOK_S = 10.0
"""Longest time between two looks that counts: when nobody could look, the process could not go on either."""

PROCESSOR, JOURNAL = "took no processor time", "wrote nothing to its journal"


class Signs:
    """Decides from what is seen. `limits_s`: longest time without a change, by sign."""

    def __init__(self, limits_s: Mapping[str, float]) -> None:
        self.limits_s = dict(limits_s)
        self._seen: dict[str, float] = {}
        self._unchanged_s = dict.fromkeys(limits_s, 0.0)

    def look(self, elapsed_s: float, seen: Mapping[str, float]) -> str:
        """`elapsed_s` since the last look. Gives the sign that is missing for too long; empty while there is none."""
        for sign, value in seen.items():
            same = self._seen.get(sign) == value
            self._unchanged_s[sign] = self._unchanged_s[sign] + min(elapsed_s, LONGEST_LOOK_S) if same else 0.0
            self._seen[sign] = value
            if self._unchanged_s[sign] > self.limits_s[sign]:
                return f"the run's process {sign} for {self._unchanged_s[sign]:.0f} s"
        return ""


class Life:
    """Of the process `pid` that carries out the run in `run_dir`, which was submitted."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        self._run_dir, self._begun = run_dir, False
        self._signs = Signs({PROCESSOR: FROZEN_S, JOURNAL: silence_limit_s(run_dir)})
        self._process, self._looked = psutil.Process(pid), time.monotonic()

    def hung(self) -> str:
        """Why the process is taken to have hung; empty while it goes on, and when it has ended."""
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return ""
        if not self._begun and (self._run_dir / "spec.yaml").is_file():
            self._begun = True
            self._signs.limits_s[JOURNAL] = silence_limit_s(self._run_dir)  # no longer in the queue
        now = time.monotonic()
        elapsed_s, self._looked = now - self._looked, now
        return self._signs.look(elapsed_s, {PROCESSOR: times.user + times.system, JOURNAL: _written(self._run_dir)})


def silence_limit_s(run_dir: Path) -> float:
    """Longest time without a line in journal or metrics, by the run's spec."""
    begun = run_dir / "spec.yaml"
    try:
        if begun.is_file():
            return longest_silence_s(load_spec(begun).limits)
        limits = load_spec(run_dir / "inputs" / "spec.yaml").limits
        return longest_silence_s(limits) + (limits.queue_timeout_s or 0.0)
    except BadInput:
        return math.inf  # the process ends by it, and says so


def longest_silence_s(limits: LimitsSpec) -> float:
    """Of a run that has begun. A start waits for actors, an epoch for groups, then the learner, then the publish, and
    whatever goes beyond the half of one limit is journaled. The sum holds wherever these follow without a line between;
    a wait for room gives signs of life."""
    return SLACK_S + sum(
        [
            limits.placement_timeout_s, limits.start_timeout_s, limits.rollout_timeout_s, limits.learn_timeout_s,
            limits.publish_timeout_s, limits.worker_timeout_s,
        ]
    )  # fmt: skip


def _written(run_dir: Path) -> float:
    """When journal or metrics were written to last, on the clock of their file system; 0 before there is any."""
    paths = [run_dir / "journal.jsonl", run_dir / "metrics.jsonl"]
    return max((path.stat().st_mtime for path in paths if path.is_file()), default=0.0)
