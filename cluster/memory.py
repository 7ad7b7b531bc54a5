"""How much memory a run takes, with its arithmetic. Pure.

Left out: activations of the learner, and logits, which grow with learner.micro_batch_tokens and the vocabulary.
"""

from dataclasses import dataclass

from cluster.capacity import gib
from cluster.spec import Spec

GIB, MIB = 2**30, 2**20
ADAM_BYTES = 8
"""Two moments per parameter, float32."""
ENGINE_PROCESS_BYTES = 0.7 * GIB
"""Python, torch and vLLM of one engine before it loads a model (0.6 GiB measured on CPU)."""
LEARNER_PROCESS_BYTES = 0.4 * GIB
"""Python, torch and DeepSpeed of one learner rank (0.3 GiB measured on CPU)."""

DRAFTER_PROCESS_BYTES = 0.4 * GIB
"""Python, torch and a small head of one drafter."""


@dataclass(frozen=True)
class Share:
    """One kind of holder of memory: bytes of each of `count`, and how they come about."""

    holder: str
    count: int
    bytes_each: float
    where: str
    """`host` or `gpu`."""
    arithmetic: str
    processes: int = 1
    """Of each."""


def estimate(spec: Spec, parameters: int) -> list[Share]:
    """Engines, learner ranks and the object store of a run whose model has this many parameters."""
    bucket = spec.rollout.publish_bucket_mib * MIB
    store = Share("object store", 1, 2 * bucket, "host", f"2 publish buckets of {gib(bucket)}")
    if not spec.drafter.trains:
        return [_engine(spec, parameters), _rank(spec, parameters), store]
    buffer = spec.drafter.train.buffer_mib * MIB
    text = f"features of past rollouts, {gib(buffer)}, while the next ones come in"
    drafter = Share("drafter", spec.rollout.workers.max, 0, "host", "a process beside each engine")
    features = Share("features", 1, 2 * buffer, "host", text)
    return [_engine(spec, parameters), _rank(spec, parameters), store, drafter, features]


def host_bytes(shares: list[Share]) -> float:
    """What the nodes' main memory must hold together."""
    processes = {
        "engine": ENGINE_PROCESS_BYTES,
        "learner rank": LEARNER_PROCESS_BYTES,
        "drafter": DRAFTER_PROCESS_BYTES,
    }
    on_host = sum(share.count * share.bytes_each for share in shares if share.where == "host")
    return on_host + sum(share.count * share.processes * processes.get(share.holder, 0) for share in shares)


def _engine(spec: Spec, parameters: int) -> Share:
    dtype, width = _number_format(spec)
    weights = parameters * width
    split = spec.tensor_parallel
    processes = 1 + split if split > 1 else 1
    text = f"weights {parameters:,} x {width} B ({dtype}) = {gib(weights)}"
    if spec.cluster.gpus_per_rollout_worker:
        text += f", cache and activations in the rest of gpu_memory_fraction {spec.rollout.gpu_memory_fraction:g}"
        return Share("engine", spec.rollout.workers.max, weights, "gpu", text, processes)
    cache = spec.rollout.kv_cache_gib * GIB
    text += f" + kv cache {gib(cache)}"
    return Share("engine", spec.rollout.workers.max, weights + cache, "host", text, processes)


def _rank(spec: Spec, parameters: int) -> Share:
    """ZeRO: stage 1 shards the optimizer's part over the ranks, 2 the gradients too, 3 the weights too."""
    where = "gpu" if spec.cluster.gpus_per_learner_rank else "host"
    dtype, width = _number_format(spec)
    ranks, stage = spec.learner.ranks, spec.learner.zero_stage
    master = 4 if dtype == "bfloat16" else 0  # DeepSpeed steps a float32 copy of the weights
    sharded = [("weights", width, stage >= 3), ("gradients", width, stage >= 2), ("Adam moments", ADAM_BYTES, True)]
    if master:
        sharded.append(("float32 copy", master, True))
    if spec.learner.objective.kl != "none":
        sharded.append(("reference", width, False))
    per_parameter = sum(size / (ranks if shared else 1) for _, size, shared in sharded)
    terms = " + ".join(
        f"{name} {size} B{f' / {ranks} ranks' if shared and ranks > 1 else ''}" for name, size, shared in sharded
    )
    text = f"{parameters:,} x ({terms}), ZeRO-{stage}"
    return Share("learner rank", ranks, parameters * per_parameter, where, text)


def _number_format(spec: Spec) -> tuple[str, int]:
    """Name and bytes of the weights' number format; engines and learner use the same one."""
    gpus = spec.cluster.gpus_per_rollout_worker or spec.cluster.gpus_per_learner_rank
    dtype = spec.model.dtype if spec.model.dtype != "auto" else "bfloat16" if gpus else "float32"
    return dtype, 2 if dtype == "bfloat16" else 4
