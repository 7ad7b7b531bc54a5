"""The learning mathematics, torch only."""
