"""The scheduler without a model: synthetic prompts answer the groups, exact optima and bounds judge the policies.

* `latents`, `worlds`, `recordings`: who answers, and how the chances of success move.
* `run`, `watchers`: one allocator through one world.
* `oracles`, `dynamic`, `bounds`: what could have been had, and what the paper promises.
* `paper`, `league`, `static`, `drift`, `tokens`, in `experiments`: what `tailrace simulate` runs.
* `report`, `plots`: how it is shown.
"""
