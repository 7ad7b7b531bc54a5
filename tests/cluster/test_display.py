"""What a person sees: few plain lines in a log, a panel in a terminal, before and after at the end."""

import io

import pytest
from rich.console import Console
from small_spec import small

from cluster.display import Display, LiveDisplay, PlainDisplay, closing_table, duration, make_display, sparkline
from cluster.spec import parse_spec

SCORES = {"pass@1": 0.25, "pass@k": 0.5, "k": 4}
SUMMARY = {
    "status": "finished",
    "updates": 60,
    "rollouts": {"budget": 4800, "spent": 4796},
    "speed": {"wall_s": 3725.0},
    "restarts": 2,
    "run_dir": "runs/small",
    "evaluation": {
        "before": {**SCORES, "families": {"gcd": SCORES, "chain_sum": SCORES}},
        "after": {**SCORES, "pass@1": 0.75, "families": {"gcd": {"pass@1": 0.125, "pass@k": 0.5}, "chain_sum": SCORES}},
    },
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run_rl(display: Display, clock: Clock, epochs: int, total: int, done: int = 0) -> None:
    display.stage("rl", total, "epochs", done)
    for epoch in range(done + 1, epochs + 1):
        clock.now += 3
        display.advance(epoch, spent=epoch * 8, reward=epoch / 1000, effective_share=0.5, tokens_per_s=1234.5)


def test_plain_lines_are_few(clock):
    out = console()
    display = PlainDisplay(out, "small", 8000, clock=clock)
    run_rl(display, clock, 1000, 1000)
    lines = written(out).splitlines()
    assert lines[0] == "00:00 rl: 1,000 epochs"
    assert len(lines) == 1 + 20
    assert lines[10] == (
        "25:00 rl: 500/1,000 epochs (50%), reward 0.500, effective groups 50%, 1,234 tokens/s, 4,000/8,000 rollouts, "
        "25:00 left"
    )


def test_plain_lines_keep_markup_as_it_is(clock):
    out = console()
    PlainDisplay(out, "small", clock=clock).note("worker [1] restarted")
    assert written(out) == "00:00 worker [1] restarted\n"


def test_time_left_counts_from_where_the_stage_was_resumed(clock):
    display = Display("small", clock=clock)
    display.stage("rl", 100, "epochs", done=90)
    assert display.left_s is None
    clock.now = 10
    display.advance(95)
    assert display.left_s == pytest.approx(10)


def test_a_spent_budget_ends_a_stage_early(clock):
    display = Display("small", 800, clock=clock)
    display.stage("rl", 100, "epochs")
    clock.now = 10
    display.advance(10, spent=800)
    assert (display.share, display.left_s) == (1, 0)


def test_figures_stay_until_given_again(clock):
    display = Display("small", clock=clock)
    display.stage("rl", 10, "epochs")
    display.advance(1, reward=0.5)
    display.advance(2, loss=0.1, reward=None)
    assert display.figures == {"reward": 0.5, "loss": 0.1}


def test_live_panel_shows_stages_bars_and_figures(clock):
    out = console(terminal=True)
    display = LiveDisplay(out, "small", 8000, clock=clock)
    display.stage("pretrain", 300, "steps")
    clock.now = 41
    display.advance(300, loss=0.912)
    run_rl(display, clock, 24, 60)
    display.note("worker [1] restarted")
    panel = console()
    panel.print(display._panel())
    display.close()
    text = written(panel)
    for shown in (
        "✓ pretrain: 300 steps, 00:41, loss 0.912",
        "24/60 epochs",
        "192/8,000 rollouts",
        "reward 0.024",
        "█",
    ):
        assert shown in text
    assert "01:48 left" in text
    assert "• worker [1] restarted" in written(out)
    display.close()


def test_live_panel_survives_empty_stages(clock):
    display = LiveDisplay(console(terminal=True), "small", clock=clock)
    display.stage("evaluate", 0, "prompts")
    display.advance(0)
    panel = console()
    panel.print(display._panel())
    display.close()
    assert "0/0 prompts" in written(panel)


def test_closing_table_has_before_after_and_change():
    out = console()
    out.print(closing_table("small", SUMMARY))
    rows = {
        line.strip("│ ").split()[0]: line.strip("│ ").split()
        for line in written(out).splitlines()[1:-1]
        if line.strip("│ ")
    }
    assert rows["all"] == ["all", "25.0%", "75.0%", "+50.0%", "50.0%", "50.0%", "+0.0%"]
    assert rows["gcd"][1:4] == ["25.0%", "12.5%", "-12.5%"]
    assert "pass@4" in written(out)
    for shown in ("4,796 of 4,800", "1:02:05", "runs/small", "tailrace small finished"):
        assert shown in written(out)


def test_closing_table_without_comparison():
    out = console()
    out.print(closing_table("small", {**SUMMARY, "evaluation": {"before": SCORES, "after": SCORES, "all": [SCORES]}}))
    out.print(closing_table("small", {"evaluation": {"before": None, "after": None}}))
    assert "+0.0%" not in written(out)
    assert "25.0%" in written(out)


def test_outside_a_terminal_the_display_is_plain():
    display = make_display(parse_spec(small(), "run.yaml"))
    assert isinstance(display, PlainDisplay)
    assert (display.name, display.budget, display.currency) == ("small", 240, "rollouts")


def test_duration_and_sparkline():
    assert [duration(seconds) for seconds in (0, 59.9, 61, 3600)] == ["00:00", "00:59", "01:01", "1:00:00"]
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([3, 3]) == "▁▁"
    assert len(sparkline(list(range(100)))) == 20
