"""Tells Ray that this machine is about to go, so that runs give it no more work and take theirs away in time.

    python deploy/leave.py --seconds 110     # now, and wait until no run has an actor here: for a preStop hook
    python deploy/leave.py --aws             # when EC2 gives notice to a spot instance, two minutes before

Ray itself hears of neither. Needs one Ray node on the machine, and Ray's token where `ray` itself finds it.
"""

import argparse
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

import psutil

POLL_S = 5.0
ANSWER_S = 5.0
DRAIN_S = 30.0
"""Longest wait for Ray to take the notice."""
METADATA = "http://169.254.169.254"


def main() -> None:
    parser = argparse.ArgumentParser()
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--seconds", type=int, help="the machine goes in so many seconds")
    when.add_argument("--aws", action="store_true", help="wait for EC2's notice")
    given = parser.parse_args()
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA)
    while (seconds := given.seconds if given.seconds is not None else notice(endpoint)) is None:
        time.sleep(POLL_S)
    deadline = time.monotonic() + seconds
    for raylet in raylets():
        subprocess.run(drain(raylet.cmdline(), seconds), timeout=DRAIN_S, check=True)
        while time.monotonic() < deadline and has_actors(raylet):
            time.sleep(1)


def notice(endpoint: str) -> int | None:
    """Seconds until EC2 takes this instance; None while it has not said so."""
    asked = urllib.request.Request(f"{endpoint}/latest/api/token", method="PUT")
    asked.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_S) as answer:
            token = answer.read().decode()
        asked = urllib.request.Request(f"{endpoint}/latest/meta-data/spot/instance-action")
        asked.add_header("X-aws-ec2-metadata-token", token)
        with urllib.request.urlopen(asked, timeout=ANSWER_S) as answer:
            when = datetime.fromisoformat(json.load(answer)["time"])
    except (OSError, ValueError):  # 404 until there is a notice
        return None
    return max(0, int((when - datetime.now(UTC)).total_seconds()))


def raylets() -> list[psutil.Process]:
    """Ray's node on this machine."""
    found = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]]
    return [process for process in found if process.info["cmdline"][0].endswith("/raylet/raylet")]


def drain(raylet: list[str], seconds: int) -> list[str]:
    """The command that gives notice of the node whose raylet has these arguments."""
    of = dict(word.removeprefix("--").split("=", 1) for word in raylet[1:] if "=" in word)
    return [
        "ray", "drain-node", f"--address={of['gcs-address']}", f"--node-id={of['node_id']}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine goes",
        f"--deadline-remaining-seconds={seconds}",
    ]  # fmt: skip


def has_actors(raylet: psutil.Process) -> bool:
    """Whether there are processes of jobs on the node; idle ones of Ray's do not count."""
    try:
        names = [" ".join(process.cmdline()) for process in raylet.children(recursive=True)]
    except psutil.Error:
        return False
    return any(name.startswith("ray::") and not name.startswith("ray::IDLE") for name in names)


if __name__ == "__main__":
    main()
