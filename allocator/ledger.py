"""The run's account. Invariant: 0 <= spent + reserved <= budget, and spent only grows by what an epoch reserved."""

from typing import Literal

Currency = Literal["rollouts", "tokens"]


class AllocationError(ValueError):
    """A call that the allocator refuses; its state is as before the call.

    `reason` is a short fixed name (such as `observed_twice`) for code; the message starts with it and is for people.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{reason}: {message}")
        self.reason, self._message = reason, message

    def __reduce__(self) -> tuple:
        """How it travels between processes: an exception is made anew from its arguments."""
        return type(self), (self.reason, self._message)


class Ledger:
    """Double-entry account in rollouts or tokens: an epoch first reserves, then settles.

    Rollouts are settled exactly as reserved: one that was paid for but never came back is a fault and not a refund.
    Tokens are reserved at the most that the responses may have, and settled as sampled.

    Raises:
        AllocationError: `bad_ledger` if the opening balance is not within 0..budget.
    """

    def __init__(self, budget: int, currency: Currency = "rollouts", spent: int = 0):
        if not 0 <= spent <= budget:
            raise AllocationError("bad_ledger", f"{spent} {currency} spent of a budget of {budget}")
        self.budget = budget
        self.currency = currency
        self.spent = spent
        self._reservation: tuple[int, int] | None = None

    @property
    def remaining(self) -> int:
        """What can still be reserved."""
        reserved = self._reservation[1] if self._reservation else 0
        return self.budget - self.spent - reserved

    def reserve(self, epoch: int, amount: int) -> None:
        """Set `amount` (0 is allowed) aside for `epoch`.

        Raises:
            AllocationError: `negative`; `overspent` if more than the remaining budget is asked for; `unsettled` while
                another reservation is open.
        """
        if amount < 0:
            raise AllocationError("negative", f"epoch {epoch} reserves {amount} {self.currency}")
        if self._reservation:
            raise AllocationError("unsettled", f"epoch {self._reservation[0]} holds a reservation: settle it first")
        if amount > self.remaining:
            raise AllocationError(
                "overspent", f"epoch {epoch} asks for {amount} {self.currency}, {self.remaining} remain"
            )
        self._reservation = (epoch, amount)

    def settle(self, epoch: int, amount: int) -> None:
        """Book `amount` of the reservation of `epoch` as spent and free the rest.

        Raises:
            AllocationError: `not_reserved` if that epoch holds no reservation; `mismatch` if it reserved another number
                of rollouts, or fewer tokens.
        """
        self.check(epoch, amount)
        self._reservation = None
        self.spent += amount

    def check(self, epoch: int, amount: int) -> None:
        """Raise what `settle` would raise."""
        if self._reservation is None or self._reservation[0] != epoch:
            raise AllocationError("not_reserved", f"epoch {epoch} holds no reservation")
        reserved = self._reservation[1]
        if amount > reserved or (self.currency == "rollouts" and amount < reserved):
            raise AllocationError("mismatch", f"epoch {epoch} reserved {reserved} {self.currency}, not {amount}")
