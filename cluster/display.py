"""What a person sees of a run: a live panel in a terminal, plain lines anywhere else, and the closing table.

`Display` itself keeps the state and shows nothing; `PlainDisplay` and `LiveDisplay` show it. The driver reports stages
and figures, it never formats them.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster import redact

if TYPE_CHECKING:
    from cluster.spec import Spec

FIGURES: dict[str, Callable[[float], str]] = {
    "reward": lambda v: f"reward {v:.3f}",
    "effective_share": lambda v: f"effective groups {v:.0%}",
    "loss": lambda v: f"loss {v:.4g}",
    "tokens_per_s": lambda v: f"{v:,.0f} tokens/s",
}
"""Figures that are shown, in this order; `spent` (of the budget) becomes the budget bar, others are for the metrics
only."""


class Display:
    """State of the run as a person follows it; shows nothing.

    `budget`: what the run's rl stages may spend, 0 without any, in `currency`. `clock`: seconds, monotonic.
    """

    def __init__(
        self, name: str, budget: int = 0, currency: str = "rollouts", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.budget, self.currency = budget, currency
        self.finished: list[str] = []
        self.figures: dict[str, float] = {}
        self.stage_name = ""
        self._clock = clock
        self._began = self._stage_began = clock()
        self._total, self._done, self._done_before, self._unit = 0, 0, 0, ""

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """A stage of `total` units begins; `done` of them were carried out before the run was resumed."""
        self._finish_stage()
        self.stage_name, self._total, self._unit = name, total, unit
        self._done = self._done_before = done
        self._stage_began = self._clock()
        self.figures = {}

    def advance(self, done: int, **figures: float) -> None:
        """`done` units of the stage are finished. Figures keep their value until they are given again."""
        self._done = done
        self.figures.update({key: value for key, value in figures.items() if value is not None})

    def note(self, text: str) -> None:
        """Something worth a line of its own: a restart, a checkpoint, where the metrics are served."""

    def close(self) -> None:
        """No more progress comes; may be called twice."""

    def summary(self, table: dict[str, Any]) -> None:
        """The closing table, from summary.json's content and `run_dir`."""

    @property
    def share(self) -> float:
        """Finished share of the stage, by units or by budget, whichever is further: either of the two ends it."""
        by_units = self._done / self._total if self._total else 0.0
        by_budget = self.figures.get("spent", 0) / self.budget if self.budget else 0.0
        return min(1.0, max(by_units, by_budget))

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end of the stage; None before its first unit."""
        done_now = self._done - self._done_before
        if done_now <= 0:
            return None
        return (self._clock() - self._stage_began) / done_now * self._total * (1 - self.share)

    def _finish_stage(self) -> None:
        """Turn the current stage, if any, into a line of `finished`."""
        if self.stage_name:
            took = duration(self._clock() - self._stage_began)
            parts = [f"{self._done:,} {self._unit}", took, *self._shown_figures()]
            self.finished.append(f"{self.stage_name}: {', '.join(parts)}")
        self.stage_name = ""

    def _shown_figures(self) -> list[str]:
        return [show(self.figures[key]) for key, show in FIGURES.items() if key in self.figures]

    def _spent(self) -> str:
        return f"{self.figures['spent']:,.0f}/{self.budget:,} {self.currency}"


class PlainDisplay(Display):
    """Lines for logs: one per stage, note and twentieth of a stage."""

    def __init__(self, console: Console, name: str, budget: int = 0, **options: Any) -> None:
        super().__init__(name, budget, **options)
        self._console = console
        self._shown_twentieth = 0

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        super().stage(name, total, unit, done)
        self._shown_twentieth = int(self.share * 20)
        self._print(f"{name}: {total:,} {unit}" + (f", {done:,} of them done before" if done else ""))

    def advance(self, done: int, **figures: float) -> None:
        super().advance(done, **figures)
        twentieth = int(self.share * 20)
        if twentieth <= self._shown_twentieth:
            return
        self._shown_twentieth = twentieth
        parts = [f"{done:,}/{self._total:,} {self._unit} ({self.share:.0%})", *self._shown_figures()]
        if "spent" in self.figures:
            parts.append(self._spent())
        if self.left_s and self.share < 1:
            parts.append(f"{duration(self.left_s)} left")
        self._print(f"{self.stage_name}: {', '.join(parts)}")

    def note(self, text: str) -> None:
        self._print(redact.text(text))

    def summary(self, table: dict[str, Any]) -> None:
        self._console.print(closing_table(self.name, table))

    def _print(self, text: str) -> None:
        line = f"{duration(self._clock() - self._began)} {text}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class LiveDisplay(Display):
    """A panel that redraws itself; notes scroll by above it."""

    def __init__(self, console: Console, name: str, budget: int = 0, **options: Any) -> None:
        super().__init__(name, budget, **options)
        self._console = console
        self._rewards: list[float] = []
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4)
        self._live.start()

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None:
        super().stage(name, total, unit, done)
        self._rewards = []

    def advance(self, done: int, **figures: float) -> None:
        super().advance(done, **figures)
        if figures.get("reward") is not None:
            self._rewards.append(figures["reward"])

    def note(self, text: str) -> None:
        self._console.print(Text.assemble(("• ", "cyan"), redact.text(text)))

    def close(self) -> None:
        self._finish_stage()
        self._live.stop()

    def summary(self, table: dict[str, Any]) -> None:
        self._console.print(closing_table(self.name, table))

    def _panel(self) -> Panel:
        lines: list[RenderableType] = [
            Text.assemble(("✓ ", "green"), (line, "dim"), no_wrap=True, overflow="ellipsis") for line in self.finished
        ]
        if self.stage_name:
            lines.append(self._bars())
            lines.append(self._figures_line())
        clock = duration(self._clock() - self._began)
        return Panel(
            Group(*lines),
            title=Text.assemble(("tailrace ", "bold cyan"), (self.name, "bold")),
            title_align="left",
            subtitle=Text(clock, "dim"),
            subtitle_align="right",
            border_style="cyan",
            padding=(0, 1),
        )

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=10)
        grid.add_column(ratio=1)
        for _ in range(2):
            grid.add_column(justify="right", no_wrap=True)
        grid.expand = True
        left = f"{duration(self.left_s)} left" if self.left_s is not None else ""
        grid.add_row(
            Text(self.stage_name, "bold cyan"),
            ProgressBar(total=max(self._total, 1), completed=self._done, complete_style="cyan", finished_style="cyan"),
            Text(f"{self._done:,}/{self._total:,} {self._unit}"),
            Text(left, "dim"),
        )
        if "spent" in self.figures and self.budget:
            spent = ProgressBar(
                total=self.budget,
                completed=self.figures["spent"],
                complete_style="magenta",
                finished_style="magenta",
            )
            share = self.figures["spent"] / self.budget
            grid.add_row(Text("budget", "magenta"), spent, Text(self._spent()), Text(f"{share:.0%}", "dim"))
        return grid

    def _figures_line(self) -> Text:
        """The figures, then the recent course of the reward, the first thing to go where the terminal is narrow."""
        line = Text(no_wrap=True, overflow="ellipsis")
        for number, shown in enumerate(self._shown_figures()):
            line.append("  ·  " if number else "", "dim").append(shown)
        if len(self._rewards) > 1:
            line.append("  ").append(sparkline(self._rewards), "green")
        return line


def make_display(spec: "Spec") -> Display:
    """A live panel where standard output is a terminal, plain lines where it is not."""
    console = Console()
    kind = LiveDisplay if console.is_terminal and not console.is_dumb_terminal else PlainDisplay
    if spec.allocator is None:
        return kind(console, spec.run.name)
    return kind(console, spec.run.name, spec.allocator.budget, currency=spec.allocator.currency)


def closing_table(name: str, summary: dict[str, Any]) -> RenderableType:
    """Before and after, overall and per family, and what it took. Reads summary.json's content and `run_dir`."""
    evaluation = summary.get("evaluation") or {}
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    if len(evaluation.get("all") or ()) == 1:  # the only one is both; it shows no change
        before = {}
    parts: list[RenderableType] = []
    if before or after:
        parts += [_scores_table(before, after), ""]
    rollouts, speed = summary.get("rollouts") or {}, summary.get("speed") or {}
    facts = Table.grid(padding=(0, 2))
    if rollouts.get("budget"):
        facts.add_row("rollouts", f"{rollouts.get('spent', 0):,} of {rollouts['budget']:,}")
    if rollouts.get("budget_tokens"):
        facts.add_row("tokens", f"{rollouts.get('tokens', 0):,} of {rollouts['budget_tokens']:,}")
    if "updates" in summary:
        facts.add_row("updates", f"{summary['updates']:,}")
    if "wall_s" in speed:
        facts.add_row("time", duration(speed["wall_s"]))
    if summary.get("restarts"):
        facts.add_row("restarts", f"{summary['restarts']:,}")
    facts.add_row("run", Text(str(summary.get("run_dir", "")), "cyan", overflow="fold"))
    parts.append(facts)
    status = str(summary.get("status", "finished"))
    return Panel.fit(
        Group(*parts),
        title=Text.assemble(("tailrace ", "bold cyan"), (name, "bold"), f" {status}"),
        title_align="left",
        border_style="cyan",
        padding=(0, 1),
    )


def _scores_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Rows: all held-out prompts, then families; columns: before, after and change of pass@1 and pass@k."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("held out")
    metrics = [key for key in ("pass@1", "pass@k") if key in before or key in after]
    for metric in metrics:
        name = metric.replace("k", str((after or before).get("k", "k")))
        for header in (f"{name} before", "after", "change"):
            table.add_column(header, justify="right")
    families = sorted({*before.get("families", {}), *after.get("families", {})})
    rows = [("all", before, after)]
    if len(families) > 1:
        rows += [(f, before.get("families", {}).get(f, {}), after.get("families", {}).get(f, {})) for f in families]
    for label, old, new in rows:
        cells = [cell for metric in metrics for cell in _score_cells(old.get(metric), new.get(metric))]
        table.add_row(Text(label), *cells, style="bold" if label == "all" else "")
    return table


def _score_cells(before: float | None, after: float | None) -> list[Text]:
    cells = [Text("–" if value is None else f"{value:.1%}") for value in (before, after)]
    if before is None or after is None:
        return [*cells, Text("")]
    change = after - before
    return [*cells, Text(f"{change:+.1%}", "green" if change > 0 else "red" if change < 0 else "dim")]


def duration(seconds: float) -> str:
    """`mm:ss`, or `h:mm:ss` from an hour on."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m:02}:{s:02}"


def sparkline(values: list[float], width: int = 20) -> str:
    """The newest `width` values as bars, the lowest and the highest of them full scale."""
    newest = values[-width:]
    low, high = min(newest), max(newest)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int((value - low) / span * 7)] for value in newest)
