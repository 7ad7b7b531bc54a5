"""`python kill_at.py FIRST WHAT N ARGS...`: runs `tailrace ARGS...` and kills it with SIGKILL in the middle of a phase.

That is when the N-th moment comes whose name starts with WHAT, counted from the first one that starts with FIRST.
"""

import os
import signal
import sys

from moments import watch

first, what_to_kill, countdown = sys.argv[1], sys.argv[2], int(sys.argv[3])
armed = False


def seen(what: str) -> None:
    global armed, countdown
    armed = armed or what.startswith(first)
    if armed and what.startswith(what_to_kill):
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)


watch(seen)
sys.argv = ["tailrace", *sys.argv[4:]]
from cluster.cli import main  # noqa: E402

main()
