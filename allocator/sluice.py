"""Sluice, the service's own policy: one water level for the whole run, prompts let through in the order of their index.

Derived in docs/allocator.md. Three numbers decide:

* the **gain** of a prompt's next group, E[U(q, z + n) - U(q, z)] under its posterior (CERO's utility, eq. (3), at the
  exposure that was really executed, instead of a dual that creeps after it);
* what the group **reveals**: the share sqrt(n / (a + b + n)) of the belief's deviation that n responses resolve, times
  what knowing q would be worth; it counts by the share of the budget that is left to use it;
* the **price**: the level to which the remaining budget fills all utilities at the current beliefs, solved anew in
  every epoch. An epoch samples what is worth more than its price, up to its capacity, and never so little that the
  budget could not be spent any more.
"""

import numpy as np

from allocator.moments import logit_nodes
from allocator.order import Ranks, best_first, tie_order
from allocator.pool import Pool
from allocator.problem import Ints, Outcome, Proposal, State
from allocator.utility import blocks, saturation_rate

REFRESH_PARTS = 64
"""The index of a prompt that is not sampled ages (the price and its family's prior move): every epoch works a part of
the pool anew, at least `REFRESH_PROMPTS`."""
REFRESH_PROMPTS = 256


class Sluice:
    """State: by prompt [M] gain, reveal, and log slope and 1 / rate of the utility at the mean belief; log price."""

    holds_update = False

    def __init__(self, pool: Pool, seed: int):
        self._pool = pool
        self._tie_rank = tie_order(pool.problem.prompts, seed)
        self._rotation = np.argsort(self._tie_rank).astype(np.int32)
        prompts = pool.problem.prompts
        self._gain, self._reveal = np.zeros((2, prompts), np.float32)
        self._log_slope, self._depth = np.zeros((2, prompts))
        self._log_price = 0.0
        self._refresh_all()

    def propose(self) -> Proposal:
        """N_max units to each prompt whose index is above the price, best first, within what the epoch may and must."""
        pool, problem = self._pool, self._pool.problem
        index = self._gain + (pool.remaining_units / problem.budget_units) * self._reveal
        index /= pool.cost()
        worth = int(np.count_nonzero(index > np.exp(self._log_price) * problem.max_units_per_prompt))
        later = (problem.epochs - pool.epoch - 1) * problem.capacity_units
        units = max(worth * problem.max_units_per_prompt, pool.remaining_units - later)
        units = min(units, problem.capacity_units, pool.remaining_units)
        floor = pool.spec.coverage_share * units / problem.max_units_per_prompt
        # In groups; an epoch too small for one has one now and then.
        kept = int(floor) if floor >= 1 else int(floor > 0 and pool.epoch % max(1, round(1 / floor)) == 0)
        order = best_first(index, self._tie_rank, problem.groups(units))
        if kept:
            least_sampled = best_first(1 / (1.0 + pool.exposure), self._tie_rank, 2 * problem.groups(units))
            missed = least_sampled[~np.isin(least_sampled, order)][:kept]
            order = np.concatenate([missed, order])
        return Proposal.filled(order, units, problem)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        """Work the indexes of the sampled prompts and of the next part of the pool anew, then the price."""
        prompts = self._pool.problem.prompts
        part = max(REFRESH_PROMPTS, prompts // REFRESH_PARTS)
        if part >= prompts:
            self._refresh_all()
            return
        start = (self._pool.epoch * part) % prompts
        self._refresh(np.concatenate([outcome.prompts, self._rotation[start : start + part]]))
        self._solve_price()

    def _refresh_all(self) -> None:
        for _ in range(2):  # what a group reveals depends on the price, and the price on the slopes
            for block in blocks(self._pool.problem.prompts):
                self._refresh(self._rotation[block])
            self._solve_price()

    def _refresh(self, prompts: Ints | Ranks) -> None:
        pool, units = self._pool, self._pool.problem.max_units_per_prompt
        a, b = pool.posterior.parameters(prompts)
        exposure = pool.exposure[prompts]
        p, weight = logit_nodes(a, b)
        value = np.append(p * (1 - p), pool.posterior.value(prompts)[:, None], axis=1)  # nodes, then the mean belief
        rate = saturation_rate(value, pool.spec.utility_saturation, pool.problem.equal_share_units)
        log_slope = np.log(rate) - rate * exposure[:, None]
        self._log_slope[prompts], self._depth[prompts] = log_slope[:, -1], 1 / rate[:, -1]
        gain = np.exp(log_slope[:, :-1]) / rate[:, :-1] * -np.expm1(-rate[:, :-1] * units)
        self._gain[prompts] = (gain * weight).sum(axis=1)

        # Surplus of filling a utility from here down to the price: (slope - price - price log(slope / price)) / rate.
        above = np.maximum(log_slope - rate * units - self._log_price - np.log(pool.cost(prompts))[..., None], 0)
        surplus = np.exp(self._log_price) * (np.expm1(above) - above) / rate
        known = np.maximum((surplus[:, :-1] * weight).sum(axis=1) - surplus[:, -1], 0)
        responses = units * pool.problem.unit_rollouts
        self._reveal[prompts] = np.sqrt(responses / (a + b + responses)) * known

    def _solve_price(self) -> None:
        """The log price at which filling every utility down to it takes the remaining budget, by Newton's method.

        What is needed falls with the level, and its slope flattens: a step from above overshoots once, steps from below
        never do.
        """
        pool = self._pool
        cost = pool.cost()
        height, depth = self._log_slope - np.log(cost), self._depth * cost
        top = float(height.max())
        level = min(self._log_price, top)
        for _ in range(100):
            above = height - level
            wet = above >= 0
            # Sums and not dot products: those depend on how many threads a process has.
            step = (float((above * depth)[wet].sum()) - pool.remaining_units) / float(depth[wet].sum())
            level = min(level + step, top)
            if abs(step) < 1e-9:
                break
        self._log_price = level

    def state_dict(self) -> State:
        return {
            "tie_rank": self._tie_rank.copy(), "gain": self._gain.copy(), "reveal": self._reveal.copy(),
            "log_slope": self._log_slope.copy(), "depth": self._depth.copy(), "log_price": self._log_price,
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self._tie_rank = np.array(state["tie_rank"])
        self._rotation = np.argsort(self._tie_rank).astype(np.int32)
        self._gain, self._reveal = np.array(state["gain"]), np.array(state["reveal"])
        self._log_slope, self._depth = np.array(state["log_slope"]), np.array(state["depth"])
        self._log_price = float(state["log_price"])

    def metrics(self) -> dict[str, float]:
        """`price` is normalised like CERO's, by lambda / R, the steepest slope that a utility can have."""
        steepest = self._pool.spec.utility_saturation / self._pool.problem.equal_share_units
        return {"price": float(np.exp(self._log_price)) / steepest}
