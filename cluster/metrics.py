"""The driver's Prometheus endpoint, fed with the rows of metrics.jsonl, and with the workers' figures as they come; the
state of the workers is looked up whenever somebody asks.
`python -m cluster.metrics` prints the table of docs/metrics.md.

Gauges state the newest epoch; counters start at zero in every process, a resumed run included, as Prometheus expects.
"""

import json
import os
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from allocator.spec import AllocatorSpec
from cluster.endpoint import LOOPBACK, Endpoint
from cluster.fleet import Fleet, State
from cluster.lines import write_atomically, writing
from cluster.metric_names import METRICS, Metric

_OF_FLEET = {m.name: m for m in METRICS if m.name in ("tailrace_workers", "tailrace_workers_lost_total")}


class Metrics:
    """An endpoint of its own, on the loopback interface where no other `host` is given, at `url`.

    `port` 0 picks a free one. Raises OSError when the port is taken, or `host` is none of this machine.
    """

    def __init__(self, port: int = 0, budget: AllocatorSpec | None = None, host: str = LOOPBACK) -> None:
        disable_created_metrics()  # a second series per counter that nobody reads
        self.registry = CollectorRegistry()
        self._of: dict[str, Any] = {
            m.name: m.kind(m.name, m.help, [m.label] if m.label else [], registry=self.registry)
            for m in METRICS
            if m.name not in _OF_FLEET
        }
        self._fleet = _FleetNow()
        self.registry.register(self._fleet)
        if budget:
            self._of[f"tailrace_budget_{budget.currency}"].set(budget.budget)
        self._workers: set[str] = set()  # that were heard of
        self._endpoint = Endpoint(make_wsgi_app(self.registry), port, host)
        self.port = self._endpoint.port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def observe_epoch(self, row: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl; keys that are missing or None leave their metric as it was."""
        for metric in METRICS:
            value = _part(row, metric.row) if metric.row else None
            if value is not None:
                self._observe(metric, value)
        if (speed := row.get("time", {}).get("tokens_per_s")) is not None:
            self._of["tailrace_tokens_per_second"].set(speed)

    def restarted(self) -> None:
        """The run goes back to its newest checkpoint with new actors."""
        self._of["tailrace_restarts_total"].inc()
        self._fleet.follow(None)

    def follow(self, fleet: Fleet) -> None:
        """These are the rollout workers from now on; every scrape looks at how they are."""
        self._fleet.follow(fleet)

    def stalled(self) -> None:
        """A wait has taken half of its limit."""
        self._of["tailrace_stalls_total"].inc()

    def stage(self, name: str) -> None:
        """The run is in this stage now."""
        self._observe(METRICS[0], name)

    def keep_workers(self, names: set[str]) -> None:
        """These are all workers that there are: what was said of others is said no more."""
        for name in self._workers - names:
            for metric in METRICS:
                if metric.label == "worker":
                    self._of[metric.name].remove(name)
        self._workers &= names

    def close(self) -> None:
        """Stop the endpoint and free its port; may be called twice."""
        self._endpoint.close()

    def _observe(self, metric: Metric, value: Any) -> None:
        family = self._of[metric.name]
        if metric.name == "tailrace_stage_info":
            family.clear()
            family.labels(value).set(1)
        elif metric.name == "tailrace_phase_seconds_total":
            for key, seconds in value.items():
                if key != "tokens_per_s":
                    family.labels(key.removesuffix("_s")).inc(seconds)
        elif metric.label:
            if metric.label == "worker":
                self._workers.update(value)
            for label, number in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
                child = family.labels(label)
                child.inc(number) if metric.kind is Counter else child.set(number)
        elif metric.kind is Counter:
            family.inc(value)
        else:
            family.set(value)


class _FleetNow(Collector):
    """How the rollout workers are at the moment of a scrape: in a long phase, or one that stalls, nobody tells."""

    def __init__(self) -> None:
        self._now: tuple[Fleet | None, int] = None, 0  # in one, for the endpoint's threads; losses of fleets before it

    def follow(self, fleet: Fleet | None) -> None:
        before, losses = self._now
        if fleet is not before:
            self._now = fleet, losses + (before.losses if before else 0)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        fleet, losses = self._now
        members = list(fleet.members.values()) if fleet else []  # at once: the driver goes on meanwhile
        found = Tally(member.state for member in members)
        workers, lost = (_OF_FLEET[name] for name in ("tailrace_workers", "tailrace_workers_lost_total"))
        by_state = GaugeMetricFamily(workers.name, workers.help, labels=["state"])
        for state in get_args(State):
            by_state.add_metric([state], found[state])
        yield by_state
        yield CounterMetricFamily(lost.name, lost.help, losses + (fleet.losses if fleet else 0))


@contextmanager
def announced(run: str, url: str) -> Iterator[None]:
    """Where the environment's TAILRACE_TARGETS names a directory, Prometheus finds this run in it (`file_sd_configs`)
    for as long as the block lasts; of a run that fails the entry stays, and an alert says so. Raises RunFailed when
    the directory cannot be written to."""
    directory = os.environ.get("TAILRACE_TARGETS")
    if not directory:
        yield
        return
    path = Path(directory) / f"{run}.json"
    with writing(path):
        write_atomically(path, json.dumps([{"targets": [urlsplit(url).netloc], "labels": {"run": run}}]))
    try:
        yield
    except KeyboardInterrupt:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _part(row: Mapping[str, Any], path: str) -> Any:
    """What the row has under a dotted key, None if there is nothing."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if value is not None else None
    return value


def table() -> str:
    """The metrics as a Markdown table."""
    rows = [(f"`{m.name}`", m.kind.__name__.lower(), f"`{m.label}`" if m.label else "", m.help) for m in METRICS]
    lines = ["| name | kind | label | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


if __name__ == "__main__":
    print(table())
