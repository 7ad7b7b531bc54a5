"""The objectives and early-RL benchmarks' figures, on runs made up for the purpose."""

import json
from pathlib import Path

import pytest

from benchmarks import early_rl_figures, objectives_figures

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def run(arm: str, seed: int, after: float, reward: float = 0.6, tokens: float = 5.0) -> dict:
    scores = {"pass@k": after, "entropy": 0.3, "response_tokens_mean": tokens}
    return {
        "arm": arm, "mode": "on-policy", "seed": seed, "before": {"pass@1": 0.4, **scores},
        "after": {"pass@1": after, **scores}, "reward": [0.4, 0.4, *[reward] * 8],
        "response_tokens": [5.0, 5.0, *[tokens] * 8],
    }  # fmt: skip


def orderings(**gaps: float) -> dict:
    runs = [run("GRPO", seed, 0.6 + 0.001 * seed) for seed in range(4)]
    for arm, gap in gaps.items():
        runs += [run(arm.replace("_", "-"), seed, 0.6 + gap + 0.0012 * seed) for seed in range(4)]
    return objectives_figures.report(runs)["on-policy"]["orderings"]


@pytest.mark.parametrize(("gap", "verdict"), [(0.0, "reproduced"), (0.05, "reproduced"), (-0.05, "not reproduced")])
def test_rgra_is_as_good_as_grpo_unless_it_is_worse(gap, verdict):
    assert orderings(RGRA=gap)["RGRA is as good as GRPO"]["verdict"] == verdict


@pytest.mark.parametrize(("gap", "verdict"), [(-0.05, "reproduced"), (0.05, "not reproduced"), (-0.0003, "undecided")])
def test_an_ordering_is_judged_by_the_interval_over_seeds(gap, verdict):
    assert orderings(GRPO_pos=gap)["GRPO beats GRPO-pos"]["verdict"] == verdict


@pytest.mark.parametrize(("reward", "tokens", "fell"), [(0.6, 5.0, False), (0.1, 5.0, True), (0.6, 1.0, True)])
def test_a_collapse_is_of_reward_or_of_length(reward, tokens, fell):
    assert objectives_figures.collapsed(run("RAFT", 0, 0.5, reward, tokens)) == fell


def line_run(arm: str, mark: int, seed: int, p1: float, p32: float, loss: float) -> dict:
    return {
        "mixture": "general", "size": "small", "arm": arm, "mark": mark, "seed": seed, "pass@1": p1, "pass@8": p32,
        "pass@32": p32, "losses": {"add_three": loss, "add_two_digits": loss},
    }  # fmt: skip


def test_claims_are_judged_over_checkpoints_and_seeds():
    runs = []
    for seed in range(4):
        for mark in (1, 2):
            noise = 0.001 * seed
            runs += [line_run("base", mark, seed, 0.2, 0.5, 1.0), line_run("RL", mark, seed, 0.5 + noise, 0.6, 1.001)]
            runs += [
                line_run("SFT", mark, seed, 0.4 + noise, 0.8, 1.3),
                line_run("SFT then RL", mark, seed, 0.6, 0.7, 1.3),
            ]
    found = {claim: judged["verdict"] for claim, judged in early_rl_figures.claims(runs).items()}
    assert found["RL lifts pass@32 (expansion)"] == "reproduced"
    assert found["SFT then RL lowers pass@32 under SFT (sharpening)"] == "reproduced"
    assert found["RL keeps the general loss"] == found["SFT raises the general loss"] == "reproduced"
    assert "parallel beats RL at pass@32" not in found


@pytest.mark.parametrize(("gap", "verdict"), [(0.05, "better"), (-0.05, "worse"), (-0.0003, "undecided")])
def test_controls_are_no_claims_of_the_paper(gap, verdict):
    runs = [line_run("alternating", 1, seed, 0.5 + 0.001 * seed, 0.8, 1.0) for seed in range(4)]
    runs += [line_run("parallel", 1, seed, 0.5 + gap + 0.0012 * seed, 0.8, 1.0) for seed in range(4)]
    assert early_rl_figures.controls(runs)["alternating, pass@1"]["verdict"] == verdict
    assert not early_rl_figures.claims(runs)


def test_differences_are_paired_and_leave_out_seeds_without_all_checkpoints():
    ours = {(1, 0): 0.5, (2, 0): 0.6, (1, 1): 0.4, (2, 1): 0.7, (1, 2): 9.0}
    theirs = {(1, 0): 0.4, (2, 0): 0.4, (1, 1): 0.3, (2, 1): 0.5, (1, 2): 0.0, (2, 2): 0.0}
    found = early_rl_figures.difference(ours, theirs)
    assert found is not None
    assert found["mean"][0] == pytest.approx(0.15)
    assert found["by_checkpoint"] == {"1": 0.1, "2": 0.2}


@pytest.mark.parametrize("name", ["objectives", "early_rl"])
def test_committed_reports_are_those_of_their_runs(name):
    figures = {"objectives": objectives_figures, "early_rl": early_rl_figures}[name]
    written = json.loads((RESULTS / f"{name}.json").read_text())
    assert json.loads(json.dumps(figures.report(written["runs"]))) == written["report"]
    assert figures.table(written["report"])
