"""An engine in an actor of its own, for tests that look at what it samples."""

from typing import Any

import numpy as np

from actors.engine import Engine
from actors.engine_config import EngineConfig


class EngineHost:
    """Runs inside Ray as `ray.remote(EngineHost)`."""

    def __init__(self, config: EngineConfig, mended: bool = True) -> None:
        if not mended:
            import actors.plugin

            actors.plugin.mend_cpu_sampler = lambda: None
        self.engine = Engine(config)

    def off(self) -> str | None:
        return self.engine.speculation_off

    def proof(self) -> tuple[list[str | None], float]:
        """What the proof finds, and the seconds that it takes."""
        import time

        from actors.speculation import distribution_fault

        began = time.perf_counter()
        found = self.engine._llm.collective_rpc(distribution_fault)
        return found, time.perf_counter() - began

    def sample(
        self, prompts: list[list[int]], tokens: int, temperature: float, draft_by: Any = None, updates: Any = ()
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """int32 [prompts, tokens], -1 behind the end of a response; and what was speculated.

        `updates`: references of drafter weights that are loaded, one after another, while responses are under way.
        """
        engine = self.engine
        engine.take_speculation_stats()
        if draft_by is not None:
            engine.draft_by(draft_by)
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, max_tokens=tokens, temperature=temperature, seed=None, logprobs=False)
        result, steps, updates = np.full((len(prompts), tokens), -1, np.int32), 0, list(updates)
        while engine.busy:
            for request_id, response in engine.step():
                result[int(request_id), : len(response.token_ids)] = response.token_ids
            steps += 1
            if updates and steps % 5 == 0:
                engine.load_drafter(updates.pop(), [])
        assert not updates, "not every drafter was loaded while responses were under way"
        return result, engine.take_speculation_stats().row()
