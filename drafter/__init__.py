"""The speculative drafter, torch only."""
