"""The numbers of a plan, calculated by hand on the small spec; and every fault of the task shows up in it."""

import json
import socket
from pathlib import Path

import pytest
from rich.console import Console
from small_spec import jsonl_source, small

from cluster import plan as plan_module
from cluster.bundles import bundles
from cluster.capacity import Node, gib, lacks, nodes_of, this_machine
from cluster.memory import ENGINE_PROCESS_BYTES, LEARNER_PROCESS_BYTES, estimate, host_bytes
from cluster.plan import make_plan
from cluster.plan_view import show
from cluster.spec import Spec, parse_spec
from trainer.types import BadInput

MIB = 2**20


def spec_with(**sections: dict) -> Spec:
    """The small spec with fields of its sections replaced."""
    data = small()
    for name, fields in sections.items():
        data[name] = {**data.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return parse_spec(data, "run.yaml")


@pytest.fixture(autouse=True)
def _roomy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are judged against one made-up machine, whatever the tests run on."""
    monkeypatch.setattr(plan_module, "nodes_of", lambda address: [Node(cpus=2, gpus=0, memory_bytes=8 * 2**30)])


def test_a_drafter_that_does_not_fit_the_model_is_found_before_anything_starts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    data = {**small(), "drafter": {"method": "eagle3", "source": str(tmp_path)}}
    with pytest.raises(BadInput, match=r"config\.json: \w+ is missing"):
        make_plan(parse_spec(data, "run.yaml"))


def test_numbers_by_hand():
    plan = make_plan(spec_with())
    assert plan.prompts == {"gcd": {"train": 48, "heldout": 12}}
    budget = plan.budget
    assert budget is not None
    assert (budget.rollouts, budget.epochs, budget.rollouts_per_epoch_mean) == (240, 6, 40)
    assert budget.rollouts_per_epoch_max == 64  # capacity; 48 prompts x 8 would be 384
    assert (budget.group_rollouts_min, budget.group_rollouts_max) == (4, 8)
    assert (budget.groups_per_epoch_mean, budget.groups_per_epoch_max) == (10, 16)  # 40 / 4 and 64 / 4
    assert budget.visits_per_prompt == 240 / 4 / 48
    assert budget.tokens_max == 240 * 16
    assert plan.evaluation_rollouts == 1 * 12 * 4
    assert plan.optimizer_steps == 10 + 6 * 2
    assert plan.bundles == [{"CPU": 1.0, "GPU": 0.0}] * 2
    assert plan.lacks == []
    assert plan.remarks == []


def test_parameters_and_memory_by_hand():
    plan = make_plan(spec_with())
    attention = 64 * 64 + 2 * 64 * 64 + 64 * 64 + 2 * 32  # q, k and v of 2 heads each, o, two head norms
    layer = attention + 3 * 64 * 128 + 2 * 64
    parameters = 99 * 64 + 2 * layer + 64
    assert plan.parameters == parameters
    engine, rank, store = plan.memory
    assert (engine.count, engine.bytes_each, engine.where) == (2, parameters * 4 + 512 * MIB, "host")
    assert (rank.count, rank.bytes_each) == (1, parameters * 16)
    assert store.bytes_each == 2 * 16 * MIB
    total = 2 * (parameters * 4 + 512 * MIB + ENGINE_PROCESS_BYTES) + parameters * 16 + LEARNER_PROCESS_BYTES
    assert plan.memory_host_bytes == pytest.approx(total + 32 * MIB)


@pytest.mark.parametrize(("stage", "per_parameter"), [(1, 4 + 4 + 8 / 2), (2, 4 + 4 / 2 + 8 / 2), (3, (4 + 4 + 8) / 2)])
def test_zero_stages_shard_more_and_more(stage, per_parameter):
    spec = spec_with(learner={"ranks": 2, "zero_stage": stage})
    assert estimate(spec, 1000)[1].bytes_each == 1000 * per_parameter


def test_on_gpu_the_weights_are_halved_and_the_optimizer_keeps_a_copy():
    spec = spec_with(cluster={"gpus_per_rollout_worker": 1, "gpus_per_learner_rank": 1})
    engine, rank, store = shares = estimate(spec, 1000)
    assert (engine.bytes_each, engine.where) == (2000, "gpu")
    assert rank.bytes_each == 1000 * (2 + 2 + 8 + 4)
    assert host_bytes(shares) == store.bytes_each + 2 * ENGINE_PROCESS_BYTES + LEARNER_PROCESS_BYTES


def test_each_process_of_a_tensor_parallel_engine_takes_what_it_takes_to_run_vllm():
    plain = host_bytes(estimate(spec_with(), 1000))
    split = spec_with(rollout={"tensor_parallel": 2}, cluster={"cpus_per_rollout_worker": 2})
    assert host_bytes(estimate(split, 1000)) == pytest.approx(plain + 2 * 2 * ENGINE_PROCESS_BYTES)


def test_bundles_of_both_placements():
    cpus = {"cpus_per_rollout_worker": 2, "cpus_per_learner_rank": 3, "gpus_per_rollout_worker": 1}
    shared, alone = {"CPU": 3.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}
    assert bundles(spec_with(cluster=cpus)) == [shared, alone]
    apart = bundles(spec_with(cluster={**cpus, "placement": "disaggregated"}))
    assert apart == [alone, alone, {"CPU": 3.0, "GPU": 0.0}]


def test_lacks_names_what_is_asked_and_what_is_there():
    gib_8 = 8 * 2**30
    wanted = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 0.0}]
    assert lacks(wanted, gib_8, [Node(5, 1, gib_8)]) == []
    assert lacks(wanted, 2 * gib_8, [Node(4, 0, gib_8)]) == [
        "CPUs: the run asks for 5, there are 4",
        "GPUs: the run asks for 1, there are 0",
        "memory: the run needs about 16.00 GiB, there are 8.00 GiB",
    ]


def test_lacks_sees_that_a_bundle_is_never_split():
    halves = [Node(2, 0, 1), Node(2, 0, 1)]
    assert lacks([{"CPU": 2.0, "GPU": 0.0}] * 2, 0, halves) == []
    (sentence,) = lacks([{"CPU": 3.0, "GPU": 0.0}], 0, halves)
    assert "no node has room for a bundle of 3 CPU" in sentence


def test_a_lack_does_not_hide_the_plan():
    plan = make_plan(spec_with(rollout={"workers": 3}))
    assert plan.lacks == ["CPUs: the run asks for 3, there are 2"]
    assert plan.budget is not None


def test_this_machine_has_something():
    here = this_machine()
    assert here.cpus >= 1
    assert here.memory_bytes > 2**28


def test_a_cluster_that_is_not_there_is_a_lack_and_quick(monkeypatch):
    monkeypatch.setattr(plan_module, "nodes_of", nodes_of)
    with socket.socket() as taken:  # bound but not listening: nobody else can answer on this port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        plan = make_plan(spec_with(cluster={"address": address}))
    assert len(plan.lacks) == 1
    assert plan.lacks[0].startswith(f"cluster.address: the Ray cluster at {address} cannot be reached")


def test_remarks_on_a_budget_that_the_pool_cannot_take():
    source = {**small()["task"]["sources"][0], "train_prompts": 4}
    plan = make_plan(spec_with(task={"sources": [source]}, learner={"minibatches": 11}))
    assert plan.remarks == [
        "the budget of 240 rollouts cannot be spent: 6 epochs x 32, the largest group for every prompt, = 192",
        "learner.minibatches = 11 is more than the 10.0 groups of a mean epoch",
    ]


def test_large_pools_are_counted_not_generated():
    source = {**small()["task"]["sources"][0], "train_prompts": 10_000_000, "config": {}}
    plan = make_plan(spec_with(task={"sources": [source]}))
    assert plan.prompts == {"gcd": {"train": 10_000_000, "heldout": 12}}
    assert "only the first 5,000 prompts were generated" in plan.remarks[0]


def test_a_model_that_is_not_here_is_left_alone(tmp_path):
    data = {"sources": [jsonl_source(tmp_path / "mine.jsonl")], "template": None, "system_prompt": "Be brief."}
    recipe = [{"stage": "rl", "epochs": 6}]
    plan = make_plan(spec_with(model={"source": "someone/some-model"}, task=data, recipe=recipe))
    assert plan.prompts == {"mine": {"train": 15, "heldout": 5}}
    assert plan.parameters is None
    assert plan.memory == []
    assert [remark.split(":")[0] for remark in plan.remarks] == [
        "prompt lengths are not checked",
        "memory is not estimated",
    ]


def test_a_plan_without_rl_has_no_budget(tmp_path):
    plan = make_plan(spec_with(recipe=[{"stage": "evaluate"}], allocator=None))
    assert plan.budget is None
    assert plan.optimizer_steps == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "gdc"}, "task.sources.0.generator: reasoning-gym has no 'gdc'; the nearest is 'gcd'"),
        ({"config": {"max_valeu": 9}}, "task.sources.0.config: does not suit gcd"),
        ({"config": {"max_value": 3}}, "fewer than heldout_prompts 12 + train_prompts 48"),
        ({"question_pattern": "("}, "task.sources.0.question_pattern: '(' is not a regular expression"),
    ],
)
def test_faults_of_a_generated_source(change, message):
    source = {**small()["task"]["sources"][0], **change}
    with pytest.raises(BadInput) as caught:
        make_plan(spec_with(task={"sources": [source]}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "mine.jsonl:21: not JSON"),
        ('{"question": "1+1"}', "mine.jsonl:21: no field 'answer'"),
        ('{"question": "1+1", "answer": "two"}', "mine.jsonl:21: answer 'two' is not a number"),
        (json.dumps({"question": "7" * 60, "answer": "7"}), "more than the 48 that model.context_tokens leaves"),
    ],
)
def test_faults_of_a_file(tmp_path, line, message):
    source = jsonl_source(tmp_path / "mine.jsonl")
    with Path(source["path"]).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadInput) as caught:
        make_plan(spec_with(task={"sources": [source]}, recipe=[{"stage": "rl", "epochs": 6}]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("task", {"reward": "no_such_module:reward"}, "task.reward: no module no_such_module here"),
        ("task", {"template": None}, "task.template: the model's tokenizer has no chat template"),
        ("model", {"source": "./nowhere"}, "model.source: ./nowhere: no such directory"),
    ],
)
def test_faults_of_reward_template_and_model(section, fields, message):
    with pytest.raises(BadInput) as caught:
        make_plan(spec_with(**{section: fields}))
    assert message in str(caught.value)


def test_json_has_every_number():
    plan = json.loads(make_plan(spec_with()).as_json())
    assert plan["budget"]["rollouts"] == 240
    assert plan["prompts"] == {"gcd": {"train": 48, "heldout": 12}}
    assert plan["memory"][0]["holder"] == "engine"
    assert plan["lacks"] == []


def test_a_person_reads_the_same_numbers(capsys):
    console = Console(width=160)
    show(make_plan(spec_with()), console)
    show(make_plan(spec_with(rollout={"workers": 3})), console)
    text = capsys.readouterr().out
    for shown in (
        "pretrain → evaluate → rl",
        "240 rollouts / 6 epochs = 40.0 per epoch, at most 64",
        "at 4 each 10.0 per epoch, at most 16, and 1.25 visits per prompt",
        "240 x 16 = 3,840",
        "48 rollouts, outside the budget",
        "at most 22 optimizer steps",
        "2 x (1 CPU)",
        "✓ nothing is lacking",
        "✗ lacking CPUs: the run asks for 3, there are 2",
    ):
        assert shown in text


def test_gib():
    assert gib(3 * 2**29) == "1.50 GiB"
    assert gib(5 * MIB) == "5.0 MiB"


def test_a_recipes_stages_are_told_in_words_and_their_steps_counted():
    sft = {"batch_examples": 16, "learning_rate": 1e-3}
    recipe = [
        {"stage": "pretrain", "steps": 10, "checkpoint_tokens": [1000]},
        {"stage": "sft", "epochs": 2, "batch_examples": 16, "start": "models/tokens-1000"},
        {"stage": "parallel", "epochs": 6, "sft": sft},
        {"stage": "merge", "models": ["models/tokens-1000"] * 2, "weights": [0.5, 0.5]},
    ]
    plan = make_plan(spec_with(recipe=recipe))
    assert plan.optimizer_steps == 10 + 2 * 48 // 16 + 6 * (2 + 1)
    assert plan.recipe[0] == "pretrain: 10 steps of 256 examples, mixture of equal shares, exports at 1,000 tokens"
    assert plan.recipe[1].startswith("sft: 6 steps of 16 examples")
    assert plan.recipe[1].endswith("from models/tokens-1000")
    assert plan.recipe[3] == "merge: 0.5 x models/tokens-1000 + 0.5 x models/tokens-1000"


def test_a_start_that_is_not_there_is_found_before_anything_starts(tmp_path):
    stage = {"stage": "rl", "epochs": 6, "start": str(tmp_path / "gone")}
    with pytest.raises(BadInput, match=r"recipe\.0\.start: .*gone: no such directory"):
        make_plan(spec_with(recipe=[stage]))
