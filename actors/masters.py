"""What DeepSpeed's ZeRO optimizers step: this rank's part of the fp32 master weights, and Adam's state for them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def masters(optimizer: Any) -> "list[torch.Tensor]":
    """Flat fp32 master weights of this rank, under ZeRO 1, 2 or 3."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return optimizer.single_partition_of_fp32_groups
    return optimizer.fp32_partitioned_groups_flat


def copies(optimizer: Any) -> "list[torch.Tensor]":
    """The master weights as they are now."""
    return [flat.detach().clone() for flat in masters(optimizer)]


def put_masters(optimizer: Any, values: "list[torch.Tensor]") -> None:
    """Set the master weights, and the model's parameters after them. All ranks together."""
    for flat, value in zip(masters(optimizer), values, strict=True):
        flat.data.copy_(value)
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
        return
    # Under ZeRO 3 as DeepSpeed does at the end of a step: parameters are partitioned, written, small ones gathered.
    optimizer.checkpoint_event_prologue()
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    optimizer.checkpoint_event_epilogue()


def swap_adam(optimizer: Any, other: list[dict[str, Any]]) -> None:
    """Exchange Adam's state with `other`, one dictionary per master weight; an empty one is a fresh state."""
    state = optimizer.optimizer.state
    for i, flat in enumerate(masters(optimizer)):
        state[flat], other[i] = other[i], state[flat]


def reset_adam(optimizer: Any) -> None:
    """Forget the moments, as a new stage with another loss should."""
    import torch

    base = getattr(optimizer, "optimizer", optimizer)
    for state in base.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif key == "step":  # a plain number in the fused Adam of GPUs
                state[key] = 0
