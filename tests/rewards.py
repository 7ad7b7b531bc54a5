"""Reward functions of an imaginary user."""

import os

if "TAILRACE_LOG" in os.environ:  # inside an actor, whose output goes there
    print("a careless line:", os.environ.get("CANARY_API_KEY"), flush=True)


def digit_share(question: str, answer: str, response: str) -> float:
    """Share of the response's characters that are digits: even a random policy differs in it, and can improve it."""
    return sum(c.isdigit() for c in response) / max(len(response), 1)


def broken(question: str, answer: str, response: str) -> float:
    raise KeyError("no such thing")


def not_a_number(question: str, answer: str, response: str) -> float:
    return float("nan")
