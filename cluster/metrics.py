"""The driver's Prometheus endpoint, fed with the rows of metrics.jsonl. The names are a contract: dashboards and alerts
use them. `METRICS` is the one list of them; `python -m cluster.metrics` prints the table of docs/metrics.md.

Gauges state the newest epoch; counters start at zero in every process, a resumed run included, as Prometheus expects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, make_wsgi_app

from allocator.spec import AllocatorSpec
from cluster.endpoint import Endpoint
from cluster.fleet import Fleet, State


@dataclass(frozen=True)
class Metric:
    """`row` is the key of the metrics row that feeds it, dots leading into its parts; None for what the driver reports
    otherwise."""

    name: str
    kind: type[Counter] | type[Gauge]
    help: str
    row: str | None = None
    label: str | None = None


METRICS = (
    Metric("tailrace_stage_info", Gauge, "1 for the stage that the run is in.", "stage", "stage"),
    Metric("tailrace_epoch", Gauge, "Newest epoch.", "epoch"),
    Metric("tailrace_groups_total", Counter, "Groups sampled.", "groups"),
    Metric("tailrace_rollouts_total", Counter, "Responses sampled.", "rollouts"),
    Metric("tailrace_tokens_total", Counter, "Response tokens sampled.", "tokens"),
    Metric("tailrace_budget_rollouts", Gauge, "Rollouts that the run may spend; 0 under a token budget."),
    Metric("tailrace_budget_tokens", Gauge, "Response tokens that the run may spend; 0 under a rollout budget."),
    Metric("tailrace_spent_rollouts", Gauge, "Rollouts spent, those before a resume included.", "spent_rollouts"),
    Metric("tailrace_spent_tokens", Gauge, "Response tokens spent, those before a resume included.", "spent_tokens"),
    Metric("tailrace_price", Gauge, "Price of the budget, relative to the most that a unit can be worth.", "price"),
    Metric("tailrace_sampled_prompts_ratio", Gauge, "Share of the prompts sampled at least once.", "sampled_share"),
    Metric("tailrace_posterior_mean_ratio", Gauge, "Believed success rate, mean over prompts.", "posterior_mean"),
    Metric(
        "tailrace_posterior_prompts",
        Gauge,
        "Prompts by believed success rate; the label is the upper edge of the bin.",
        "posterior_prompts",
        "success",
    ),
    Metric("tailrace_reward_mean", Gauge, "Mean reward of the epoch's rollouts.", "reward_mean"),
    Metric("tailrace_family_reward_mean", Gauge, "Mean reward of the family's rollouts.", "families", "family"),
    Metric("tailrace_effective_group_ratio", Gauge, "Share of groups whose rewards differ.", "effective_share"),
    Metric("tailrace_response_tokens_mean", Gauge, "Mean length of a response in tokens.", "response_tokens_mean"),
    Metric("tailrace_truncated_ratio", Gauge, "Share of responses cut at the length limit.", "truncated_share"),
    Metric("tailrace_updates_total", Counter, "Optimizer steps of reinforcement learning.", "updates"),
    Metric("tailrace_updates_dropped_total", Counter, "Steps whose loss or gradient was not finite.", "dropped"),
    Metric("tailrace_loss", Gauge, "Policy loss.", "loss"),
    Metric("tailrace_grad_norm", Gauge, "Global gradient norm before clipping.", "grad_norm"),
    Metric("tailrace_learning_rate", Gauge, "Learning rate of the newest update.", "learning_rate"),
    Metric("tailrace_entropy_nats", Gauge, "Mean entropy of the policy per token.", "entropy"),
    Metric(
        "tailrace_logprob_gap_mean_nats",
        Gauge,
        "Mean absolute difference between the learner's and the engine's log-probability of a token.",
        "logprob_gap_mean",
    ),
    Metric("tailrace_logprob_gap_max_nats", Gauge, "Largest such difference of the epoch.", "logprob_gap_max"),
    Metric(
        "tailrace_mismatch_kl_nats",
        Gauge,
        "Divergence of the policy that learns from the engine's per token (k3), over the update's steps.",
        "mismatch_kl",
    ),
    Metric(
        "tailrace_effective_sample_ratio",
        Gauge,
        "Effective sample size under the weights pi_learner / pi_engine, as a share of the tokens learned from.",
        "effective_sample_share",
    ),
    Metric(
        "tailrace_ratio_clipped_tokens_ratio",
        Gauge,
        "Share of tokens whose gradient the ratio's clip cuts off.",
        "ratio_clipped_share",
    ),
    Metric(
        "tailrace_mismatch_clipped_tokens_ratio",
        Gauge,
        "Share of tokens whose weight TIS truncates or MIS drops.",
        "mismatch_clipped_share",
    ),
    Metric("tailrace_weight_version", Gauge, "Version of the learner's weights.", "weight_version"),
    Metric(
        "tailrace_phase_seconds_total",
        Counter,
        "Wall time by phase: decide, rollout, learn, publish, other.",
        "time",
        "phase",
    ),
    Metric("tailrace_accept_length", Gauge, "Mean tokens per verified draft.", "speculation.accept_length"),
    Metric("tailrace_draft_tokens_total", Counter, "Tokens drafted and verified.", "speculation.draft_tokens"),
    Metric("tailrace_accepted_tokens_total", Counter, "Drafted tokens accepted.", "speculation.accepted_tokens"),
    Metric(
        "tailrace_draft_acceptance_ratio",
        Gauge,
        "Share of drafts accepted up to this position at least.",
        "speculation.acceptance_by_position",
        "position",
    ),
    Metric(
        "tailrace_draft_tokens_chosen_mean",
        Gauge,
        "Mean number of tokens drafted at once; the label is the lower edge of the number of running requests.",
        "speculation.draft_tokens_by_running",
        "running",
    ),
    Metric(
        "tailrace_speculating_steps_ratio",
        Gauge,
        "Share of engine steps that verified drafts.",
        "speculation.enabled_steps_fraction",
    ),
    Metric("tailrace_drafter_version", Gauge, "Drafter in service; 0: n-grams.", "speculation.drafter_version"),
    Metric("tailrace_speculation_off", Gauge, "1 if an engine had to switch speculation off.", "speculation.is_off"),
    Metric(
        "tailrace_idle_seconds_total",
        Counter,
        "Seconds in which a rollout worker had nothing to generate while others had.",
        "bubbles.idle_by_worker",
        "worker",
    ),
    Metric(
        "tailrace_harvested_seconds_total",
        Counter,
        "Of the idle seconds, those in which the drafter trained.",
        "bubbles.harvested_by_worker",
        "worker",
    ),
    Metric("tailrace_drafter_steps_total", Counter, "Micro-steps of drafter training.", "bubbles.drafter_steps"),
    Metric(
        "tailrace_drafter_critical_seconds_total",
        Counter,
        "Seconds of drafter training bought on the critical path.",
        "bubbles.critical_s",
    ),
    Metric("tailrace_drafter_loss", Gauge, "Loss of the newest micro-step.", "bubbles.drafter_loss"),
    Metric("tailrace_restarts_total", Counter, "Times that this process went back to a checkpoint with new actors."),
    Metric("tailrace_workers", Gauge, "Rollout workers by state, as fleet.py names them.", None, "state"),
    Metric(
        "tailrace_workers_lost_total", Counter, "Rollout workers given up: died, silent, hung, or not to be believed."
    ),
    Metric("tailrace_stalls_total", Counter, "Waits that took half of their limit; the journal says for whom."),
    Metric("tailrace_tokens_per_second", Gauge, "Response tokens per second of the epoch's rollout phase."),
)


class Metrics:
    """An endpoint of its own on the loopback interface; `port` is the one it listens on.

    `port` 0 picks a free one. Raises OSError when the port is taken.
    """

    def __init__(self, port: int = 0, budget: AllocatorSpec | None = None) -> None:
        disable_created_metrics()  # a second series per counter that nobody reads
        self.registry = CollectorRegistry()
        self._of: dict[str, Any] = {
            m.name: m.kind(m.name, m.help, [m.label] if m.label else [], registry=self.registry) for m in METRICS
        }
        if budget:
            self._of[f"tailrace_budget_{budget.currency}"].set(budget.budget)
        self._losses = 0
        self._endpoint = Endpoint(make_wsgi_app(self.registry), port)
        self.port = self._endpoint.port

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
        self._losses = 0  # of a new fleet

    def observe_fleet(self, fleet: Fleet) -> None:
        """How the rollout workers are."""
        for state in get_args(State):
            self._of["tailrace_workers"].labels(state).set(len(fleet.names(state)))
        self._of["tailrace_workers_lost_total"].inc(fleet.losses - self._losses)
        self._losses = fleet.losses

    def stalled(self) -> None:
        """A wait has taken half of its limit."""
        self._of["tailrace_stalls_total"].inc()

    def stage(self, name: str) -> None:
        """The run is in this stage now."""
        self._observe(METRICS[0], name)

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
            for label, number in value.items() if isinstance(value, Mapping) else enumerate(value, 1):
                child = family.labels(label)
                child.inc(number) if metric.kind is Counter else child.set(number)
        elif metric.kind is Counter:
            family.inc(value)
        else:
            family.set(value)


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
