"""The budget scheduler, numpy only."""
