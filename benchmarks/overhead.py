"""What the service costs over a bare loop: `python benchmarks/overhead.py [RUNS]` writes results/overhead.json.

Bare loop and service run in turn, RUNS times (5), on the same spec; of each run the median over its epochs counts,
the first three left out as warm-up. Targets: epoch <= 1.3 x bare; rollout tokens/s (grading and transport
included) >= 0.95 x raw `LLM.generate` alone; time
outside rollout, learning and publishing <= 5 %.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
WARM_UP, EPOCHS = 3, 20
CONFIGURATIONS = {
    # name: (threads of the bare loop, overrides of the service)
    "two cores": (2, []),
    "one core": (
        1,
        ["rollout.workers=1", "learner.ranks=1", "rollout.max_running_requests=512"],
    ),
}


def bare(threads: int) -> dict[str, float]:
    command = [sys.executable, str(HERE / "bare_loop.py"), str(HERE / "overhead.yaml"), str(EPOCHS), str(threads)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    return medians([json.loads(line) for line in output.splitlines() if line.startswith("{")])


def service(overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        sets = [arg for override in overrides for arg in ("--set", override)]
        command = [
            sys.executable,
            "-m",
            "cluster.cli",
            "train",
            str(HERE / "overhead.yaml"),
            "--run-dir",
            f"{scratch}/run",
        ]
        subprocess.run([*command, *sets], capture_output=True, check=True, env=environment())
        rows = [json.loads(line) for line in Path(scratch, "run", "metrics.jsonl").read_text().splitlines()]
    return medians([{**row["time"], "tokens": row["tokens"]} for row in rows])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent)}


def medians(epochs: list[dict]) -> dict[str, float]:
    kept = epochs[WARM_UP:]
    phases = ("rollout_s", "learn_s", "publish_s")
    whole = [sum(e[p] for p in phases) + e.get("decide_s", 0) + e.get("other_s", 0) for e in kept]
    result = {phase: statistics.median(e[phase] for e in kept) for phase in phases}
    result["epoch_s"] = statistics.median(whole)
    result["tokens_per_s"] = statistics.median(e["tokens"] / e.get("generate_s", e["rollout_s"]) for e in kept)
    outside = [1 - sum(e[p] for p in phases) / w for e, w in zip(kept, whole, strict=True)]
    result["outside_share"] = statistics.median(outside)
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results = {}
    for name, (threads, overrides) in CONFIGURATIONS.items():
        pairs = [(bare(threads), service(overrides)) for _ in range(runs)]
        results[name] = {
            "epoch_ratio": spread([s["epoch_s"] / b["epoch_s"] for b, s in pairs]),
            "tokens_per_s_ratio": spread([s["tokens_per_s"] / b["tokens_per_s"] for b, s in pairs]),
            "outside_share": spread([s["outside_share"] for _, s in pairs]),
            "bare": [b for b, _ in pairs],
            "service": [s for _, s in pairs],
        }
        machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        report = {"command": f"python benchmarks/overhead.py {runs}", "machine": machine, "results": results}
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "overhead.json").write_text(json.dumps(report, indent=1) + "\n")
        print(name, json.dumps({k: v for k, v in results[name].items() if k not in ("bare", "service")}, indent=1))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
