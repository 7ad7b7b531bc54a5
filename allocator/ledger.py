"""The run's rollout account. Invariant: 0 <= spent + reserved <= budget, and spent only grows by what was reserved."""


class AllocationError(ValueError):
    """A call that the allocator refuses; its state is as before the call.

    `reason` is a short fixed name (such as `observed_twice`) for code; the message starts with it and is for people.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Ledger:
    """Double-entry account in rollouts: an epoch first reserves, then settles exactly what it reserved.

    Raises:
        AllocationError: `bad_ledger` if the opening balance is not within 0..budget.
    """

    def __init__(self, budget_rollouts: int, spent_rollouts: int = 0):
        if not 0 <= spent_rollouts <= budget_rollouts:
            raise AllocationError("bad_ledger", f"{spent_rollouts} rollouts spent of a budget of {budget_rollouts}")
        self.budget_rollouts = budget_rollouts
        self.spent_rollouts = spent_rollouts
        self._reservation: tuple[int, int] | None = None

    @property
    def remaining_rollouts(self) -> int:
        """What can still be reserved."""
        reserved = self._reservation[1] if self._reservation else 0
        return self.budget_rollouts - self.spent_rollouts - reserved

    def reserve(self, epoch: int, rollouts: int) -> None:
        """Set `rollouts` (0 is allowed) aside for `epoch`.

        Raises:
            AllocationError: `negative`; `overspent` if more than the remaining budget is asked for; `unsettled` while
                another reservation is open.
        """
        if rollouts < 0:
            raise AllocationError("negative", f"epoch {epoch} reserves {rollouts} rollouts")
        if self._reservation:
            raise AllocationError("unsettled", f"epoch {self._reservation[0]} holds a reservation: settle it first")
        if rollouts > self.remaining_rollouts:
            raise AllocationError(
                "overspent", f"epoch {epoch} asks for {rollouts} rollouts, {self.remaining_rollouts} remain"
            )
        self._reservation = (epoch, rollouts)

    def settle(self, epoch: int, rollouts: int) -> None:
        """Book the reservation of `epoch` as spent.

        Raises:
            AllocationError: `not_reserved` if that epoch holds no reservation; `mismatch` if it reserved another amount
                (a rollout that was paid for but never came back, or the reverse, is a fault and not a refund).
        """
        if self._reservation is None or self._reservation[0] != epoch:
            raise AllocationError("not_reserved", f"epoch {epoch} holds no reservation")
        if rollouts != self._reservation[1]:
            raise AllocationError("mismatch", f"epoch {epoch} reserved {self._reservation[1]} rollouts, not {rollouts}")
        self._reservation = None
        self.spent_rollouts += rollouts
