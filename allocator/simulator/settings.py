"""What a caller of the simulator chooses, and the processes that the seeds are spread over."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Self, TypeVar

from allocator.policies import POLICIES

Job = TypeVar("Job")
Result = TypeVar("Result")

ORACLE = "oracle"
"""Name of the row that knows the true values (`oracles.TrueGreedy`); it is in every league, as is `uniform`."""


class Workers:
    """Processes for independent runs, one BLAS thread each; with one core the work is done right here."""

    def __init__(self) -> None:
        count = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(count, get_context("spawn")) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
        """`work` of every job, in order; long jobs should come first."""
        if self._pool is None:
            return [work(job) for job in jobs]
        with _one_thread():
            return list(self._pool.map(work, jobs))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A BLAS counts its threads when it is loaded: what processes inherit decides, and they start with the work."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Settings:
    """`seeds`: runs of each setting, or None for each experiment's own number; `policies`: the ones chosen, or None;
    `quick`: small pools and few rounds, to see the tables in seconds."""

    workers: Workers
    seeds: int | None = None
    policies: tuple[str, ...] | None = None
    quick: bool = False

    def seed_range(self, usual: int) -> range:
        return range(self.seeds or (2 if self.quick else usual))

    def contenders(self, usual: Sequence[str] | None = None) -> tuple[str, ...]:
        """The policies to run: those chosen, else `usual`, else all; only such as exist."""
        return self.policies or tuple(name for name in (usual or POLICIES) if name in POLICIES)
