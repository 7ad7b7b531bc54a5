"""The yardstick: one process, plain vLLM and plain torch, no Ray, no DeepSpeed, no allocator, no checkpoints.

`python benchmarks/bare_loop.py SPEC EPOCHS THREADS` does the work of `tailrace train SPEC` under a uniform allocator
(same prompts, group size, reward, model, loss, optimizer) and prints one JSON line per epoch: seconds to generate,
learn and sync, and the tokens generated.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

spec_file, epochs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads))),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "OMP_NUM_THREADS": str(threads),
    "TORCHDYNAMO_DISABLE": "1",
}

import numpy as np
import torch
from vllm import LLM, SamplingParams
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from cluster.spec import load_spec
from trainer.models import load_policy, load_tokenizer, prepare_model
from trainer.tasks import build_pools
from trainer.verifiers import Grader

torch.set_num_threads(threads)
spec = load_spec(spec_file)
path = prepare_model(spec.model, Path(tempfile.mkdtemp()), 0, "float32")
tokenizer, grade = load_tokenizer(path), Grader(spec.task)
pool = build_pools(spec.task, tokenizer, spec.model.context_tokens).train
size, per_epoch = spec.allocator.max_group_rollouts, spec.allocator.max_rollouts_per_epoch
policy = load_policy(path, "float32")
optimizer = torch.optim.AdamW(policy.parameters(), lr=spec.learner.learning_rate, weight_decay=0.0)
llm = LLM(
    str(path),
    dtype="float32",
    enforce_eager=True,
    max_model_len=spec.model.context_tokens,
    max_num_seqs=spec.rollout.max_running_requests * spec.rollout.workers.min,
    kv_cache_memory_bytes=2**28,
    enable_chunked_prefill=False,
    max_num_batched_tokens=8192,
    async_scheduling=False,
    disable_log_stats=True,
)
runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


raw: dict[str, float] = {}


def generate(prompts: list, epoch: int) -> list[tuple[np.ndarray, float]]:
    """Token ids and reward of `size` responses per prompt."""
    params = [
        SamplingParams(
            max_tokens=spec.rollout.max_response_tokens, seed=epoch * 10**6 + i, logprobs=0, detokenize=False
        )
        for i in range(size * len(prompts))
    ]
    inputs = [{"prompt_token_ids": list(p.token_ids)} for p in prompts for _ in range(size)]
    began = time.perf_counter()
    outputs = [out.outputs[0].token_ids for out in llm.generate(inputs, params, use_tqdm=False)]
    raw["generate_s"] = time.perf_counter() - began
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    return [
        (np.array(o), grade(prompts[i // size], text)) for i, (o, text) in enumerate(zip(outputs, texts, strict=True))
    ]


def learn(prompts: list, responses: list) -> None:
    """One REINFORCE step, leave-one-out, prompt mean, all sequences in one padded batch."""
    rewards = torch.tensor([reward for _, reward in responses]).view(-1, size)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) * size / (size - 1)).flatten()
    lengths = torch.tensor([len(ids) for ids, _ in responses])
    weights = (advantages.view(-1, size) / lengths.view(-1, size).sum(1, keepdim=True) / len(prompts)).flatten()
    rows = [np.concatenate([prompts[i // size].token_ids, ids]) for i, (ids, _) in enumerate(responses)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    targets = torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        targets[i, len(row) - lengths[i] - 1 : len(row) - 1] = True
    hidden = policy.model(ids, use_cache=False).last_hidden_state[:, :-1][targets]
    logprobs = torch.log_softmax(policy.lm_head(hidden), -1).gather(-1, ids[:, 1:][targets][:, None])[:, 0]
    (-(torch.repeat_interleave(weights, lengths).float() * logprobs).sum()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), spec.learner.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def sync() -> None:
    """Trainer's weights into the engine; the tied head's packed copy too, which the reload forgets."""
    initialize_layerwise_reload(runner.model)
    runner.model.load_weights((name, p.detach()) for name, p in policy.named_parameters())
    finalize_layerwise_reload(runner.model, runner.model_config)
    for module in runner.model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
    llm.reset_prefix_cache()


for epoch in range(epochs):
    chosen = [pool[i % len(pool)] for i in range(epoch * (per_epoch // size), (epoch + 1) * (per_epoch // size))]
    clock = [time.perf_counter()]
    responses = generate(chosen, epoch)
    clock.append(time.perf_counter())
    learn(chosen, responses)
    clock.append(time.perf_counter())
    sync()
    clock.append(time.perf_counter())
    laps = dict(zip(("rollout_s", "learn_s", "publish_s"), np.diff(clock).tolist(), strict=True))
    print(json.dumps({**laps, **raw, "tokens": sum(len(ids) for ids, _ in responses)}), flush=True)
