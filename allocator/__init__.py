"""The budget scheduler, numpy only: who gets how many rollouts in each epoch, under one budget for the whole run."""

from allocator.allocator import Allocation, Allocator
from allocator.ledger import AllocationError
from allocator.spec import AllocatorSpec

__all__ = ["Allocation", "AllocationError", "Allocator", "AllocatorSpec"]
