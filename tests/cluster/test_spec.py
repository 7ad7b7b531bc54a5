"""Whatever is wrong with a spec is said in one line that names the field, with the arithmetic where there is any."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_spec import jsonl_source, small

from cluster.spec import Spec, dump_spec, load_spec, parse_spec
from trainer.types import BadInput


def set_at(data: Any, path: str, value: Any) -> dict:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = data
    for part in parents:
        node = node[part]
    node[last] = value
    return data


def complaint(**changes: Any) -> str:
    """The message about the small spec with these fields changed; `__` in a name stands for a dot."""
    data = small()
    for path, value in changes.items():
        set_at(data, path.replace("__", "."), value)
    with pytest.raises(BadInput) as caught:
        parse_spec(data, "run.yaml")
    return str(caught.value)


def written(directory: Path, data: Any) -> Path:
    path = directory / "run.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_small_spec_is_valid_and_survives_a_round_trip():
    spec = parse_spec(small(), "run.yaml")
    assert spec.rl_epochs == 6
    assert spec.run_dir == Path("runs/small")
    assert parse_spec(yaml.safe_load(dump_spec(spec)), "again") == spec


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("run.sed", "run.sed: unknown key; did you mean seed?"),
        ("rolout", "rolout: unknown key; did you mean rollout?"),
        ("model.tiny.layer", "model.tiny.layer: unknown key; did you mean layers?"),
        ("learner.objective", "learner.objective.nam: unknown key; did you mean name?"),
        ("task.sources.0.train_prompt", "task.sources.0.train_prompt: unknown key; did you mean train_prompts?"),
        ("recipe.2.epoch", "recipe.2.epoch: unknown key; did you mean epochs?"),
        (
            "drafter",
            "drafter.nam: unknown key; known here: "
            "method, source, max_draft_tokens, draft_tokens, draft_vocabulary, train",
        ),
    ],
)
def test_unknown_key_names_the_nearest_known_one(path, nearest):
    value = {"nam": 1} if path in ("learner.objective", "drafter") else 1
    with pytest.raises(BadInput) as caught:
        parse_spec(set_at(small(), path, value), "run.yaml")
    assert str(caught.value) == f"run.yaml: {nearest}"


def test_every_violation_has_its_own_line():
    lines = complaint(run__seed="many", rollout__temperature=0, rollout__workers=0).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["run.seed", "rollout.workers.min", "rollout.temperature"]
    assert "(got 'many')" in lines[0]


def test_missing_field_and_wrong_section():
    assert "run.name: missing; it has no default" in complaint(run={})
    assert complaint(model="tiny").startswith("run.yaml: model: ")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1, 10**12, 10**40, "x", None, []])
def test_numbers_are_bounded(number):
    assert "rollout.max_response_tokens" in complaint(rollout__max_response_tokens=number)
    assert "learner.learning_rate" in complaint(learner__learning_rate=number)
    assert len(complaint(rollout__max_response_tokens=number)) < 300


@pytest.mark.parametrize(
    ("changes", "arithmetic"),
    [
        ({"allocator__budget_rollouts": 400}, "400 cannot be spent: 6 epochs x max_rollouts_per_epoch 64 = 384"),
        ({"allocator__budget_rollouts": 3}, "budget_rollouts = 3 is smaller than one group of unit_rollouts = 4"),
        ({"allocator__max_units_per_prompt": 20}, "4 x 20 = 80 > max_rollouts_per_epoch = 64"),
        ({"rollout__max_response_tokens": 64}, "max_response_tokens = 64 leaves no room for a prompt in"),
        (
            {"learner__micro_batch_tokens": 32},
            "micro_batch_tokens = 32 cannot hold one sequence of model.context_tokens = 64",
        ),
        ({"learner__ranks": 3}, "learner.ranks = 3 > rollout.workers = 2"),
        ({"rollout__workers": {"min": 3, "max": 2}}, "min = 3 is above max = 2"),
        (
            {"rollout__workers": {"min": 1, "max": 4}, "run__deterministic": True},
            "needs a fixed number of rollout.workers",
        ),
        ({"rollout__sleep": True}, "rollout.sleep frees GPU memory, and cluster.gpus_per_rollout_worker is 0"),
        (
            {"rollout__sleep": True, "cluster__gpus_per_rollout_worker": 1, "learner__stale_epochs": 1},
            "rollout.sleep excludes learner.stale_epochs",
        ),
        (
            {"rollout__tensor_parallel": 2, "cluster__cpus_per_rollout_worker": 3},
            "cpus_per_rollout_worker = 3 cannot be shared out evenly among rollout.tensor_parallel = 2 processes",
        ),
        (
            {
                "rollout__tensor_parallel": 2,
                "cluster__gpus_per_rollout_worker": 4,
                "cluster__placement": "disaggregated",
            },
            "rollout.tensor_parallel = 2: an engine has one process per GPU of its worker",
        ),
        (
            {"rollout__tensor_parallel": 2, "cluster__cpus_per_rollout_worker": 2, "drafter": {"method": "eagle3"}},
            "a drafter trains beside an engine of one process",
        ),
        (
            {"cluster__worker_labels": {"zone": "a"}, "cluster__learner_labels": {"zone": "b"}},
            "cluster.worker_labels and cluster.learner_labels differ in zone",
        ),
        ({"evaluation__k": 5}, "k = 5 needs at least that many samples_per_prompt, not 4"),
        ({"model__tiny__kv_heads": 3}, "kv_heads = 3 does not divide the 2 heads"),
        ({"task__template": "no place"}, "template 'no place' has no {question} in it"),
        ({"allocator": None}, "recipe has an rl stage, so the spec needs an allocator section"),
        ({"task__sources__0__heldout_prompts": 0}, "recipe has an evaluate stage, but no task source holds out any"),
        (
            {"task__sources": [{"kind": "jsonl", "path": "x.jsonl", "heldout_prompts": 1}]},
            "recipe has a pretrain stage, but only reasoning_gym sources",
        ),
    ],
)
def test_cross_field_checks_show_their_arithmetic(changes, arithmetic):
    assert arithmetic in complaint(**changes)


def test_one_k_is_a_list_of_one_and_several_are_in_order():
    assert parse_spec(set_at(small(), "evaluation.k", 2), "run.yaml").evaluation.k == [2]
    spec = parse_spec(set_at(small(), "evaluation.k", [4, 1, 4, 2]), "run.yaml")
    assert spec.evaluation.k == [1, 2, 4]
    assert parse_spec(yaml.safe_load(dump_spec(spec)), "again") == spec
    assert "evaluation.k.1: " in complaint(evaluation__k=[1, 0])
    assert "evaluation.k: " in complaint(evaluation__k=[])


def test_disaggregated_ranks_need_no_workers_beside_them():
    data = set_at(set_at(small(), "learner.ranks", 3), "cluster.placement", "disaggregated")
    assert parse_spec(data, "run.yaml").learner.ranks == 3


def test_set_reaches_sections_lists_and_sections_not_written(tmp_path):
    overrides = ["run.seed=7", "recipe.0.steps=50", "limits.learn_timeout_s=5", "learner.objective.name=grpo"]
    spec = load_spec(written(tmp_path, small()), overrides)
    assert (spec.run.seed, spec.recipe[0].steps, spec.limits.learn_timeout_s) == (7, 50, 5)
    assert spec.learner.objective.name == "grpo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "expected path=value"),
        ("=1", "expected path=value"),
        ("recipe.9.steps=1", "'9' is not an index into a list of 3"),
        ("recipe.²=1", "'²' is not an index into a list of 3"),
        ("recipe.first.steps=1", "'first' is not an index into a list of 3"),
        ("run.seed.low=1", "seed is a value, it has no fields"),
        ("run.seed=[1", "--set run.seed: not valid YAML"),
        ("run.speed=1", "run.speed: unknown key; did you mean seed?"),
    ],
)
def test_override_errors(tmp_path, override, message):
    with pytest.raises(BadInput) as caught:
        load_spec(written(tmp_path, small()), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [1", "not valid YAML"),
        ("- 1\n- 2\n", "the top level must be a mapping of sections, not list"),
        ("", "the top level must be a mapping of sections, not NoneType"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("x: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    with pytest.raises(BadInput) as caught:
        load_spec(written(tmp_path, text))
    assert message in str(caught.value)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, ""),
        (tmp_path / "binary.yaml", "cannot be read"),
    ):
        with pytest.raises(BadInput) as caught:
            load_spec(path)
        assert message in str(caught.value)


def test_relative_data_paths_start_at_the_spec(tmp_path):
    data = small()
    data["task"]["sources"].append({**jsonl_source(tmp_path / "mine.jsonl"), "path": "mine.jsonl"})
    spec = load_spec(written(tmp_path, data))
    assert spec.task.sources[1].path == str(tmp_path / "mine.jsonl")


def test_every_field_says_what_it_is():
    def undocumented(model: Any, path: str) -> list[str]:
        found = [f"{path}{name}" for name, field in model.model_fields.items() if path and not field.description]
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                found += undocumented(field.annotation, f"{path}{name}.")
        return found

    assert undocumented(Spec, "") == []


def test_importing_the_spec_imports_nothing_heavy():
    heavy = "{'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'reasoning_gym'}"
    code = f"import sys, cluster.spec; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
