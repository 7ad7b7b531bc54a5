"""Decisions again from a journal: the same allocations, bit by bit."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from allocator.allocator import Allocation, Allocator
from allocator.ledger import AllocationError
from allocator.spec import AllocatorSpec


def replay(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Allocator, Allocation]]:
    """Take every decision of a journal again; yields the allocator once it has observed each, and the decision.

    Events, others are passed over: `allocator` (the arguments of `Allocator`, `spec` as a dict, and `prompt_ids` [M]);
    `decided` (`epoch`, `prompts` as ids, `rollouts`); `rolled_out` (`epoch`, `reward_sums`, `tokens`, by group in the
    decision's order). A decision that was journalled twice, before and after a kill, counts once.

    Raises:
        AllocationError: `not_a_journal` without an `allocator` event before the first decision, or a decision before
            its rollouts; `wrong_epoch` where an epoch is missing; `other_decision` where the journal holds another
            allocation than the allocator decides.
    """
    allocator: Allocator | None = None
    places: dict[str, int] = {}
    compared = -1  # newest epoch whose decision was found to be the same
    for event in events:
        if event["event"] == "allocator" and allocator is None:
            arguments = {key: event[key] for key in _ARGUMENTS}
            allocator = Allocator(AllocatorSpec(**event["spec"]), **arguments)
            places = {prompt: place for place, prompt in enumerate(event["prompt_ids"])}
        elif event["event"] in ("decided", "rolled_out"):
            if allocator is None:
                raise AllocationError("not_a_journal", "no `allocator` event before the first decision")
            if event["epoch"] < allocator.epoch:
                continue
            allocation = allocator.decide(event["epoch"])
            if event["event"] == "decided":
                _compare(allocation, [places.get(p, -1) for p in event["prompts"]], event["rollouts"])
                compared = allocation.epoch
            elif compared != allocation.epoch:
                raise AllocationError("not_a_journal", f"epoch {allocation.epoch} was sampled without a decision")
            else:
                won = [float(total) for total in event["reward_sums"]]
                lost = allocation.rollouts - won
                allocator.observe(allocation.epoch, allocation.prompts, won, lost, event["tokens"])
                yield allocator, allocation


_ARGUMENTS = ("prompts", "epochs", "seed", "families", "prompt_set", "max_response_tokens")


def _compare(allocation: Allocation, prompts: list[int], rollouts: list[int]) -> None:
    if allocation.prompts.tolist() != prompts or allocation.rollouts.tolist() != rollouts:
        raise AllocationError(
            "other_decision",
            f"epoch {allocation.epoch}: the journal holds {len(prompts)} groups of {sum(rollouts)} rollouts, but "
            f"{len(allocation.prompts)} groups of {int(allocation.rollouts.sum())}, or other prompts, are decided now",
        )
