"""`python kill_at.py FIRST WHAT N ARGS...`: runs `tailrace ARGS...` and kills it with SIGKILL in the middle of a phase.

That is when it waits for the N-th time for something that starts with WHAT, counted from when it first waited for
something that starts with FIRST (the messages of `cluster.placement.wait`).
"""

import os
import signal
import sys

import cluster.driver
import cluster.placement
import cluster.rollouts
import cluster.updates

first, what_to_kill, countdown = sys.argv[1], sys.argv[2], int(sys.argv[3])
armed = False
original = cluster.placement.wait


def wait(refs, timeout_s, what):
    global armed, countdown
    armed = armed or what.startswith(first)
    if armed and what.startswith(what_to_kill):
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return original(refs, timeout_s, what)


cluster.driver.wait = cluster.rollouts.wait = cluster.updates.wait = wait
sys.argv = ["tailrace", *sys.argv[4:]]
from cluster.cli import main  # noqa: E402

main()
