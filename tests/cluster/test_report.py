"""The report of a run: complete for a finished one, honest about a partial one, and harmless whatever a run wrote."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_spec import small
from typer.testing import CliRunner

from allocator import Allocator
from cluster.allocation import allocator_arguments, opening
from cluster.checkpoint import RunDirectory
from cluster.cli import app
from cluster.lines import LineFile
from cluster.report import leave_report, write_report
from cluster.spec import dump_spec, parse_spec
from trainer.types import BadInput, Prompt

POOL = [Prompt(f"id{i}", ("easy", "<b>hard")[i % 2], f"{i}", "1", (1,), 0) for i in range(48)]
SECTIONS = {
    "learning", "budget", "bubbles", "speculation", "evaluations", "time", "stages", "failures", "spec", "versions",
}  # fmt: skip
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def evaluated(run: RunDirectory, stage: int, score: float) -> dict[str, Any]:
    scores = {"pass@1": score, "pass@4": score + 0.2, "pass@k": score + 0.2}
    result = {
        "stage": stage, "weight_version": stage, **scores, "k": 4, "prompts": 12, "response_tokens_mean": 3.0,
        "ci": {name: [value - 0.1, value + 0.1] for name, value in scores.items()}, "truncated_share": 0.0,
        "entropy": 0.3, "distinct_correct_mean": 1.5, "language_loss": None,
        "families": {"easy": scores, "<b>hard": scores}, "counts": {"prompts": "x", "samples": [4], "right": [1]},
    }  # fmt: skip
    run.journal("evaluated", **result)
    return result


def metrics_row(epoch: int, spent: int) -> dict[str, Any]:
    speculation = {
        "accept_length": 1.0 + epoch, "steps": 10, "enabled_steps_fraction": 1.0, "draft_tokens": 40,
        "accepted_tokens": 20, "verified": 10, "acceptance_by_position": [0.8, 0.5], "drafter_version": epoch // 3,
        "accept_length_by_response_tokens": {"8": 1.5, "16": 2.0}, "draft_tokens_by_running": {"1": 2.0}, "off": None,
    }  # fmt: skip
    bubbles = {"idle_s": 1.0, "harvested_s": 0.5, "stretches": [["rollout-0", 10.0 * epoch, 10.0 * epoch + 1, 0.5]]}
    time = {"decide_s": 0.1, "rollout_s": 1.0, "learn_s": 0.5, "publish_s": 0.1, "other_s": 0.0, "tokens_per_s": 9.0}
    return {
        "stage": "rl", "epoch": epoch, "rollouts": 40, "spent_rollouts": spent, "spent_tokens": 3 * spent,
        "reward_mean": 0.5, "time": time, "speculation": speculation, "bubbles": bubbles,
    }  # fmt: skip


def roll_out(run: RunDirectory, allocator: Allocator, epoch: int) -> None:
    """What the journal holds of an epoch in which every other prompt succeeds."""
    group = allocator.decide(epoch)
    won = group.rollouts * (group.prompts % 2 == 0).astype(float)
    ids = [POOL[p].id for p in group.prompts]
    run.journal("decided", epoch=epoch, prompts=ids, rollouts=group.rollouts.tolist())
    figures = {"rollouts": int(group.rollouts.sum()), "reward_sums": won.tolist()}
    run.journal("rolled_out", epoch=epoch, **figures, tokens=(group.rollouts * 3).tolist())
    allocator.observe(epoch, group.prompts, won, group.rollouts - won, group.rollouts * 3)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Six epochs between two evaluations, killed before the end."""
    spec = parse_spec(small(), "small")
    run = RunDirectory(tmp_path / "run")
    run.create()
    (run.path / "spec.yaml").write_text(dump_spec(spec))
    run.journal("run_started", name="small", seed=3)
    run.journal("allocator", **opening(spec, POOL))
    run.journal("stage_started", index=0, stage="pretrain", done=0)
    run.journal("stage_finished", index=0)
    evaluated(run, 1, 0.2)
    run.journal("stage_started", index=2, stage="rl", done=0)
    allocator = Allocator(**allocator_arguments(spec, POOL))
    for epoch in range(6):
        roll_out(run, allocator, epoch)
        run.add_metrics(metrics_row(epoch, 40 * epoch + 40))
    return run


def finish(run: RunDirectory) -> None:
    evaluated(run, 3, 0.4)
    summary = {
        "status": "finished", "restarts": 1, "versions": {"torch": "2.13.0"},
        "rollouts": {"budget": 240, "budget_tokens": 0, "spent": 240, "tokens": 720, "lost": 8},
        "speed": {"wall_s": 60.0, "rollout_s": 30.0, "learn_s": 10.0},
        "evaluation": {
            "verdict": {"verdict": "expansion", "difference": {"pass@1": 0.2, "pass@4": 0.2}, "paired": True, "ci": {}}
        },
    }  # fmt: skip
    (run.path / "summary.json").write_text(json.dumps(summary))


def page_of(run: RunDirectory) -> str:
    write_report(run.path)
    return (run.path / "report.html").read_text(encoding="utf-8")


def sections_of(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)">', page))


def test_the_report_of_a_finished_run_has_all_sections_and_its_head_figures(run):
    finish(run)
    page = page_of(run)
    assert sections_of(page) == SECTIONS
    for shown in ("20.0% → 40.0%", "expansion", "240 of 240 rollouts", "01:00", "2.13.0", "50.0%"):
        assert shown in page, shown
    assert page.count("<svg") == page.count('role="img" aria-label="') == 8


def test_the_command_prints_its_figures_as_json(run, tmp_path):
    finish(run)
    run.journal("worker_lost", worker="rollout-0")
    result = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "a.html"), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["status"], figures["trouble"], figures["path"]) == (
        "finished", {"worker_lost": 1}, str(tmp_path / "a.html")
    )  # fmt: skip
    assert [one["spent_rollouts"] for one in figures["evaluations"]] == [0, 240]


def test_a_killed_and_a_running_run_have_a_report_too(run):
    figures = write_report(run.path)
    assert figures["status"] == "stopped"
    assert figures["rollouts"] == {"budget": 240, "budget_tokens": 0, "spent": 240, "tokens": 720, "lost": None}
    assert [stage["state"] for stage in figures["stages"]] == ["finished", "not begun", "unfinished"]
    with (run.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert write_report(run.path)["status"] == "running"
    run.journal("interrupted", epoch=6)
    assert write_report(run.path)["status"] == "interrupted"


def test_a_run_without_rl_and_evaluations_has_the_other_sections(run):
    for name in ("journal.jsonl", "metrics.jsonl"):
        (run.path / name).unlink()
    assert sections_of(page_of(run)) == SECTIONS - {"learning", "budget", "bubbles", "speculation"}


def test_a_run_without_a_drafter_shows_its_bubbles(run):
    rows = [row | {"speculation": row["speculation"] | {"draft_tokens": 0}} for row in run.metrics()]
    for row in rows:
        idle = [[*stretch[:3], 0.0] for stretch in row["bubbles"]["stretches"]]
        row["bubbles"] |= {"harvested_s": 0.0, "stretches": idle}
    run.keep_metrics(lambda _: False)
    for row in rows:
        run.add_metrics(row)
    page = page_of(run)
    assert sections_of(page) == SECTIONS - {"speculation"}
    assert "idle for 6.0 s while others still generated; a drafter trained in 0.0 s" in page
    assert "Bubbles: idle seconds (grey)" in page


def test_nobody_was_idle_and_so_nothing_is_drawn_of_it(run):
    rows = [row | {"bubbles": row["bubbles"] | {"idle_s": 0.0, "stretches": []}} for row in run.metrics()]
    run.keep_metrics(lambda _: False)
    for row in rows:
        run.add_metrics(row)
    page = page_of(run)
    assert "idle for 0.0 s while others still generated" in page
    assert "Bubbles: idle seconds (grey)" not in page


def test_torn_lines_are_left_out_and_counted(run):
    for name in ("journal.jsonl", "metrics.jsonl"):
        with (run.path / name).open("a") as file:
            file.write('{"event": "dec\n[1]\n{"epo')
    assert write_report(run.path)["unreadable_lines"] == 6
    assert "6 lines of the journal" in page_of(run)


def test_a_journal_that_cannot_be_replayed_is_said_to_be_so(run):
    lines = (run.path / "journal.jsonl").read_text().splitlines(keepends=True)
    second = [number for number, line in enumerate(lines) if '"rolled_out"' in line][1]
    (run.path / "journal.jsonl").write_text("".join(lines[:second] + lines[second + 2 :]))
    page = page_of(run)
    assert "the journal cannot be replayed" in page
    assert sections_of(page) == SECTIONS


def test_what_a_run_wrote_is_escaped_and_without_secrets(run):
    run.journal("worker_lost", why="<script>alert(1)</script> at https://ada:s3cr3t@host", hf_token="s3cr3t")
    spec = (run.path / "spec.yaml").read_text()
    (run.path / "spec.yaml").write_text(spec.replace("source: tiny", "source: <i>tiny\n  api_key: s3cr3t", 1))
    page = page_of(run)
    assert "s3cr3t" not in page
    assert "<script" not in page
    assert "<b>hard" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    assert "s3cr3t" not in json.dumps(write_report(run.path))


def test_the_page_refers_to_nothing_outside_itself(run):
    finish(run)
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page_of(run))
    assert not re.search(r"https?://|//[a-z]|url\((?!#)|@import|<script|src=\"(?!data:)", page)


@pytest.mark.parametrize(
    ("name", "content"), [("spec.yaml", None), ("spec.yaml", "[1"), ("spec.yaml", "3"), ("summary.json", "{")]
)
def test_a_directory_that_is_no_run_is_refused(run, name, content):
    (run.path / name).unlink(missing_ok=True)
    if content is not None:
        (run.path / name).write_text(content)
    result = CliRunner().invoke(app, ["report", str(run.path)])
    assert result.exit_code == 2
    assert name in result.output


def test_a_journal_of_something_else_is_refused_in_one_line(run):
    LineFile(run.path / "journal.jsonl").append({"event": "rolled_out", "time_s": 1.0, "rollouts": "many", "tokens": 3})
    with pytest.raises(BadInput, match="not as tailrace writes it"):
        write_report(run.path)


def test_a_report_that_cannot_be_written_does_not_fail_the_run(run):
    (run.path / "report.html").mkdir()
    leave_report(run)
    assert run.events()[-1]["event"] == "report_failed"


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine, or the one that playwright brought."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, BROWSERS)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("no Chromium found; apt install chromium-headless-shell, or playwright install chromium")
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_section_and_asks_nobody(browser, run, width, scheme):
    finish(run)
    page_of(run)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (run.path / "report.html").as_uri()
    page.goto(address)
    assert (errors, [url for url in requests if not url.startswith("data:")]) == ([], [address])
    for name in SECTIONS:
        section = page.locator(f"#{name}")
        section.scroll_into_view_if_needed()
        assert section.is_visible(), name
        box = section.bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.eval_on_selector_all("svg", "all => all.map(svg => svg.getBoundingClientRect().width)")
    assert len(drawn) == 8
    assert min(drawn) > 0.8 * min(width, 480)
