"""What load does to the service: `python benchmarks/load.py {metrics,first,twenty} [RUNS]`, parts of results/load.json.

`metrics`: what watching costs, as a share of the wall time of epochs. RUNS runs (5) of the quickstart's recipe, each of
20 epochs, on one set of actors (two engines, two learner ranks), while a process of its own scrapes the endpoint once a
second. Counted are the wall time inside the driver's calls of journal, metrics and watch, the processor time of the
threads that answer the scraper (they run beside the driver, which mostly waits), and the wall time of the counting on
the engines' threads, of which the slower worker's counts. Not counted: two readings of the clock around each call of
the learner, and what a checkpoint costs. Target: under 1 %.

`first`: RUNS times (5) a run of the tests' small model is submitted to a head that is up; seconds from the start of the
command to the first group. Target: under 30 s. `twenty`: RUNS jobs (20) of one CPU each, submitted at once to a head of
two; every look at each says that it runs, is finished, or waits and for what, none is lost, and all budgets are spent.
"""

import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import load_jobs
from benchmarks.bench import TIMEOUT_S, base_model, from_base, started
from benchmarks.overhead import cpu_name, spread
from cluster.checkpoint import RunDirectory, write_atomically
from cluster.metrics import Metrics
from cluster.placement import wait
from cluster.spec import parse_spec
from cluster.watch import Watch

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "load.json"
EPOCHS = 20
SCRAPER = """
import sys, time, urllib.request
while True:
    began = time.perf_counter()
    urllib.request.urlopen(sys.argv[1], timeout=10).read()
    took = time.perf_counter() - began
    print(took, flush=True)
    time.sleep(max(0, 1 - took))
"""
WATCHING: dict[str, list[tuple[type, str]]] = {
    "journal": [(RunDirectory, "journal")],
    "row and endpoint": [(RunDirectory, "add_metrics"), (Metrics, "observe_epoch"), (Metrics, "stage")],
    "questions to actors": [(Watch, name) for name in ("look", "ask", "workers", "row")],
}


class Stopwatch:
    """Seconds and calls by part of watching; a call within another belongs to the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inside = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Times the driver's calls."""
        with contextlib.ExitStack() as stack:
            for part, methods in WATCHING.items():
                for owner, name in methods:
                    plain = getattr(owner, name)
                    stack.callback(setattr, owner, name, plain)
                    setattr(owner, name, self._timed(part, plain))
            yield

    def _timed(self, part: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return plain(*args, **kwargs)
            self._inside, began = True, time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - began
                self.calls[part] += 1

        return call


@contextlib.contextmanager
def scraped(metrics: Metrics) -> Iterator[tuple[list[float], list[float]]]:
    """Seconds of each request: of the processor on the endpoint's side; of the clock on the scraper's, when the block
    is over."""
    answering: list[float] = []
    asking: list[float] = []
    server = metrics._endpoint._server
    plain = server._answer  # all that a connection's thread does

    def answer(*args: Any) -> None:
        began = time.thread_time()
        plain(*args)
        answering.append(time.thread_time() - began)

    server._answer = answer  # type: ignore[method-assign]
    command = [sys.executable, "-c", SCRAPER, f"http://127.0.0.1:{metrics.port}/metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scraper:
        try:
            yield answering, asking
        finally:
            scraper.terminate()
            asking += [float(line) for line in scraper.communicate()[0].splitlines()]
            server._answer = plain  # type: ignore[method-assign]


def time_counting(worker: Any) -> None:
    """Inside a rollout worker: its engine's counting is timed from now on."""
    plain = {"_count_step": worker._engine._count_step, "take_figures": worker._engine.take_figures}
    worker._counting_s = 0.0

    def timed(method: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = method(*args)
        worker._counting_s += time.perf_counter() - began
        return result

    for name, method in plain.items():
        setattr(worker._engine, name, functools.partial(timed, method))


def counting_s(worker: Any) -> float:
    """Inside a rollout worker: seconds of counting since this was last asked."""
    seconds, worker._counting_s = worker._counting_s, 0.0
    return seconds


def metrics(runs: int = 5) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the runs."""
    data = yaml.safe_load((HERE.parent / "examples" / "quickstart.yaml").read_text())
    data["recipe"] = [{**data["recipe"][0], "steps": 600}, {"stage": "rl", "epochs": EPOCHS}]
    data["allocator"]["budget_rollouts"] = 512 * EPOCHS
    data["run"]["name"] = "load"
    spec = parse_spec(data, "quickstart.yaml")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        spec = from_base(spec, base_model(spec, data) / "policy")
        with started(spec, Path(scratch)) as bench:
            workers = list(bench._actors.workers.values())
            wait([w.__ray_call__.remote(time_counting) for w in workers], TIMEOUT_S, "engines to be timed")
            for number in range(runs + 1):  # the first warms caches and does not count
                watch = Stopwatch()
                with scraped(bench._metrics) as scrapes, watch.watching(), bench.run(spec, str(number)) as done:
                    rows = done[0].metrics()
                counted = wait([w.__ray_call__.remote(counting_s) for w in workers], TIMEOUT_S, "the engines' counting")
                if number:
                    found.append(figures(rows, watch, *scrapes, max(counted)))
                    print(json.dumps(found[-1]), flush=True)
    shares = {part: spread([run["share"][part] for run in found]) for part in found[0]["share"]}
    epoch_s = spread([run["wall_s"] / run["epochs"] for run in found])
    return {"share_of_epochs": shares, "epoch_s": epoch_s, "target": "all < 0.01"}, found


def figures(
    rows: list[dict], watch: Stopwatch, answering: list[float], asking: list[float], counting: float
) -> dict[str, Any]:
    """Of one run. Epochs are all of it but start and final export, so that nothing of watching is left out."""
    wall_s = sum(seconds for row in rows for name, seconds in row["time"].items() if name != "tokens_per_s")
    seconds = {**watch.seconds, "scrapes": sum(answering), "counting in engines": counting}
    share = {part: s / wall_s for part, s in seconds.items()}
    return {
        "epochs": len(rows),
        "wall_s": wall_s,
        "share": {**share, "all": sum(share.values())},
        "calls": {**watch.calls, "scrapes": len(answering)},
        "scrape_s": {"answering": statistics.median(answering), "asking": statistics.median(asking)},
    }


COMMANDS: dict[str, Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "metrics": metrics,
    "first": load_jobs.first,
    "twenty": load_jobs.twenty,
}


def keep(name: str, report: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Put a command's results into the file; those of others stay."""
    whole = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    whole[name] = {
        "command": " ".join(["python", "benchmarks/load.py", *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "report": report,
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(whole, indent=1) + "\n")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"python benchmarks/load.py {{{','.join(COMMANDS)}}} [RUNS]")
    report, runs = COMMANDS[sys.argv[1]](*map(int, sys.argv[2:]))
    keep(sys.argv[1], report, runs)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
