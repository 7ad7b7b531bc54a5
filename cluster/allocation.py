"""What a run tells its allocator, and what its journal tells of the allocator's decisions."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from actors.seeds import derive_seed
from allocator.allocator import Allocation, Allocator
from allocator.journal import replay
from cluster.checkpoint import RunDirectory
from cluster.spec import Spec
from trainer.types import BadInput, Prompt


def allocator_arguments(spec: Spec, pool: Sequence[Prompt]) -> dict[str, Any]:
    """The arguments of `Allocator` for a run over the training `pool`."""
    ids = ",".join(prompt.id for prompt in pool)
    return {
        "spec": spec.allocator,
        "prompts": len(pool),
        "epochs": max(spec.rl_epochs, 1),
        "seed": derive_seed(spec.run.seed, "allocator"),
        "families": [prompt.family for prompt in pool],
        "prompt_set": hashlib.blake2b(ids.encode(), digest_size=16).hexdigest(),
        "max_response_tokens": spec.rollout.max_response_tokens,
    }


def opening(spec: Spec, pool: Sequence[Prompt]) -> dict[str, Any]:
    """The journal's `allocator` event: with it and what follows, every decision can be taken again."""
    arguments = allocator_arguments(spec, pool)
    return {**arguments, "spec": arguments["spec"].model_dump(), "prompt_ids": [prompt.id for prompt in pool]}


def replayed(run: RunDirectory) -> Iterator[tuple[Allocator, Allocation]]:
    """Take the decisions of a run again from its journal; after each, the allocator as it was once it was observed.

    Raises BadInput for a directory without a journal of an rl stage, AllocationError where a decision differs.
    """
    events = run.events()
    if not any(event["event"] == "rolled_out" for event in events):
        raise BadInput(f"{run.path}: no journal of an rl stage")
    return replay(events)
