"""Speculative decoding as vLLM is asked for it: its arguments, the mend of its CPU sampler, and the proof at start that
what it samples is what plain decoding would sample.
"""

from dataclasses import dataclass
from typing import Any

PROOF_REQUESTS = 2048
PROOF_VOCABULARY = 8
PROOF_LEVEL = 1e-6
"""Chance that a faithful sampler fails the proof, by position."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine speculates; see DrafterSpec for the meaning."""

    method: str
    """`eagle3`, `eagle` or `ngram`."""
    head_dir: str | None
    """The drafter in the format that vLLM loads; None for `ngram`."""
    draft_tokens: str | int | list[tuple[int, int, int]]
    """`adaptive`, one K, or vLLM's own schedule [(from, to, K), ...] over running requests."""
    k_max: int
    ready: bool
    """Whether the learned drafter proposes from the first step; until then n-grams of the request itself do."""


def engine_arguments(speculation: Speculation, max_running_requests: int) -> dict[str, Any]:
    """What vLLM's EngineArgs need for it."""
    config: dict[str, Any] = {"method": speculation.method, "num_speculative_tokens": speculation.k_max}
    if speculation.head_dir is None:
        config |= {"prompt_lookup_min": NGRAM_MIN, "prompt_lookup_max": NGRAM_MAX}
    else:
        # One-hot drafts: what an acceptance then estimates is the target's own probability of the draft.
        config |= {"model": speculation.head_dir, "draft_sample_method": "greedy"}
    schedule = speculation.draft_tokens
    if not isinstance(schedule, list):
        schedule = [(1, max_running_requests, schedule if isinstance(schedule, int) else speculation.k_max)]
    config["num_speculative_tokens_per_batch_size"] = schedule
    return {"speculative_config": config, "scheduler_cls": "actors.scheduler.SpeculatingScheduler"}


NGRAM_MIN, NGRAM_MAX = 2, 4
"""Lengths of the n-grams that are looked up in the request's own tokens."""


def mend_cpu_sampler() -> None:
    """Replace the function that spreads a request's temperature over its drafts, on CPU.

    vLLM 0.32's CPU kernel for it writes into a converted copy of its output and never copies back, so that temperatures
    are whatever memory held: every method samples garbage at a temperature above 0.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.sample import rejection_sampler

        rejection_sampler.expand_batch_to_tokens = _expand_batch_to_tokens


def _expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Any:
    """x [requests], repeated as often as the cumulative counts say: [num_tokens]."""
    import torch

    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    x = torch.where(x == replace_from, x.new_tensor(replace_to), x)
    return torch.repeat_interleave(x, counts, output_size=num_tokens)


def distribution_fault(worker: Any) -> str | None:
    """What is wrong with the worker's speculative sampling, None if nothing is. A proof that cannot be carried out, in
    another version of vLLM for example, is none."""
    try:
        return _distribution_fault(worker)
    except Exception as error:
        return f"the proof failed: {type(error).__name__}: {error}"


def _distribution_fault(worker: Any) -> str | None:
    """The proof; takes some milliseconds.

    The engine's own rejection sampler verifies one draft at fixed logits for a few thousand requests, half of them at
    another temperature, a few greedy. The token that replaces or confirms the draft, and the one after an accepted
    draft, must be distributed as softmax(logits / temperature): chi-square at PROOF_LEVEL. Greedy requests must give
    the argmax.
    """
    import torch

    runner = worker.model_runner
    device = runner.device
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, PROOF_VOCABULARY, generator=generator) * 1.5
    drafts = torch.randint(PROOF_VOCABULARY, (PROOF_REQUESTS,), generator=generator).tolist()
    temperatures = torch.full((PROOF_REQUESTS,), 1.0)
    temperatures[::2] = 0.6
    temperatures[:: PROOF_REQUESTS // 16] = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sampled = _verified(runner.rejection_sampler, logits.to(device), drafts, temperatures.to(device)).cpu()
    greedy = temperatures == 0
    if (sampled[greedy, 0] != logits[0].argmax()).any():
        return "a greedy request did not sample the most likely token"
    accepted = sampled[:, 0] == torch.tensor(drafts)
    for temperature in (0.6, 1.0):
        chosen = temperatures == temperature
        for position, tokens in ((0, sampled[chosen, 0]), (1, sampled[chosen & accepted, 1])):
            p = _chi_square_p(tokens, torch.softmax(logits[position] / temperature, -1))
            if p < PROOF_LEVEL:
                return f"token {position} after a draft at temperature {temperature} is not the target's: p = {p:.1e}"
    return None


def _verified(sampler: Any, logits: Any, drafts: list[int], temperatures: Any) -> Any:
    """Tokens that the sampler makes of one draft per request, int [requests, 2], at the same two logits for all."""
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    n, device = len(drafts), logits.device
    metadata = SpecDecodeMetadata.make_dummy([[draft] for draft in drafts], device)
    metadata.target_logits_indices = torch.arange(0, 2 * n, 2, device=device)
    metadata.bonus_logits_indices = torch.arange(1, 2 * n, 2, device=device)
    nothing = torch.zeros(n, device=device)
    sampling = SamplingMetadata(
        temperature=temperatures, all_greedy=False, all_random=False, top_p=None, top_k=None, generators={},
        max_num_logprobs=None, no_penalties=True, prompt_token_ids=None, frequency_penalties=nothing,
        presence_penalties=nothing, repetition_penalties=nothing, output_token_ids=[[] for _ in drafts],
        allowed_token_ids_mask=None, bad_words_token_ids={}, logitsprocs=LogitsProcessors(),
    )  # fmt: skip
    return sampler(metadata, None, logits.repeat(n, 1), sampling).sampled_token_ids


def _chi_square_p(tokens: Any, expected: Any) -> float:
    """Chance of counts at least this far from `expected`; 0 for a token outside the vocabulary."""
    import torch

    if ((tokens < 0) | (tokens >= len(expected))).any():
        return 0.0
    counts = torch.bincount(tokens.long(), minlength=len(expected)).double()
    wanted = expected.double() * len(tokens)
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    half = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))
