"""The experiments of `tailrace simulate` by name, and the one call that runs them."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from allocator.policies import POLICIES
from allocator.simulator.drift import drift
from allocator.simulator.league import COLUMNS, Replay, compete, league, standings
from allocator.simulator.paper import paper
from allocator.simulator.recordings import BadRecording, Recording
from allocator.simulator.report import Report, Table
from allocator.simulator.settings import Settings, Workers
from allocator.simulator.static import static
from allocator.simulator.tokens import tokens

Experiment = Callable[[Settings], Report]
EXPERIMENTS: dict[str, Experiment] = {
    "paper": paper, "league": league, "static": static, "drift": drift, "tokens": tokens,
}  # fmt: skip


class BadSettings(ValueError):
    """A name that does not exist, or a file that cannot be used; the message says which."""


def replay(settings: Settings, recording: Recording) -> Report:
    """The policies on recorded success rates."""
    problem, seeds = recording.problem(), len(settings.seed_range(10))
    (scores,) = compete(settings, [(Replay(recording), problem, seeds)])
    note = (
        f"{problem.prompts:,} prompts, {problem.epochs} rounds, {problem.budget_units * problem.unit_rollouts:,} "
        f"rollouts; 95 % intervals over {seeds} seeds"
    )
    return Report("replay", [Table("replay of recorded success rates", COLUMNS, standings(scores), note)])


def simulate(
    names: Sequence[str], seeds: int | None = None, policies: Sequence[str] | None = None, quick: bool = False,
    recorded: Path | None = None,
) -> Iterator[Report]:  # fmt: skip
    """Reports one by one as they are finished; all experiments if none is named and nothing recorded is given.

    Raises:
        BadSettings: before anything runs.
    """
    _check("experiment", names, EXPERIMENTS)
    _check("policy", policies or (), POLICIES)
    work = [EXPERIMENTS[name] for name in names or (() if recorded else EXPERIMENTS)]
    if recorded is not None:
        try:
            work.append(partial(replay, recording=Recording.load(recorded)))
        except BadRecording as error:
            raise BadSettings(str(error)) from None
    return _reports(work, seeds, tuple(dict.fromkeys(policies)) if policies else None, quick)


def _reports(
    work: Sequence[Experiment], seeds: int | None, policies: tuple[str, ...] | None, quick: bool
) -> Iterator[Report]:
    with Workers() as workers:
        settings = Settings(workers, seeds, policies, quick)
        for experiment in work:
            began = time.perf_counter()
            report = experiment(settings)
            report.seconds = round(time.perf_counter() - began, 1)
            yield report


def _check(kind: str, names: Sequence[str], known: dict) -> None:
    for name in names:
        if name not in known:
            raise BadSettings(f"unknown {kind} {name!r}: one of {', '.join(known)}")
