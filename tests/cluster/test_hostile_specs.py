"""Mutated specs through the real command line: a plan, a run up to where actors would start, or one message."""

import os
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hostile import ODD, STARTS, answered, assert_names, damaged, dumped, mutated, places, starts, untouched
from small_spec import jsonl_source, small

from cluster import plan as plan_module
from cluster.capacity import Node
from cluster.packing import node_run_dir, pack
from cluster.spec import load_spec, parse_spec
from trainer.types import BadInput

SECTIONS = "run|model|task|recipe|allocator|rollout|learner|drafter|cluster|evaluation|limits|spec"
NAMES = re.compile(rf"^/|--\w+|\b({SECTIONS})\b[.: ]|\.(yaml|jsonl)\b")


@pytest.fixture
def base(tmp_path, monkeypatch) -> dict[str, Any]:
    """The small spec with a file as second source and every section written out, in a directory of its own; beside it
    `outside`, which stands for the rest of the machine."""
    for name in ("work", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "precious").write_text("keep")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path.parent))  # where libraries keep caches
    monkeypatch.setattr(plan_module, "nodes_of", lambda address: [Node(2, 0, 2**33)])
    data = small()
    data["run"]["directory"] = str(tmp_path / "runs")
    data["task"]["sources"].append(jsonl_source(tmp_path / "mine.jsonl"))
    plan_module.make_plan(parse_spec(small(), "warm-up"))  # the heavy imports are done before anything is timed
    full = parse_spec(data, "base").model_dump(mode="json")
    del full["cluster"]["address"]  # would be asked over the network
    return full


def spec_file(text: str | bytes) -> Path:
    path = Path("spec.yaml")
    path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    return path


def assert_named(result: Any, *others: str) -> None:
    """A refusal says which file, field or option it is about."""
    assert NAMES.search(result.stderr) or any(other in result.stderr for other in others), result.stderr


def test_mutated_texts(base, tmp_path):
    rng, codes = Random(1), []
    text = yaml.safe_dump(base).encode()
    with untouched(tmp_path / "outside"):
        for _ in range(200):
            result = answered("plan", spec_file(damaged(text, rng)))
            codes.append(result.exit_code)
            if result.exit_code:
                assert_named(result)
    assert len(codes) == 200
    assert {0, 2} == set(codes)


def test_mutated_data(base, tmp_path):
    rng, codes = Random(2), []
    with untouched(tmp_path / "outside"):
        for _ in range(200):
            result = answered("plan", spec_file(dumped(mutated(base, rng))), "--json")
            codes.append(result.exit_code)
            if result.exit_code:
                assert_named(result)
    assert len(codes) == 200
    assert {0, 2} == set(codes)


BOMB = "b0: &b0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
DEEP = (
    "d0: &d0 "
    + "[" * 60
    + "]" * 60
    + "\n"
    + "".join(f"d{i}: &d{i} {'[' * 60}*d{i - 1}{']' * 60}\n" for i in range(1, 40))
)
"""Every value is nested 60 deep, and all of them together 2,400."""
TEXTS = {
    "aliases of aliases": BOMB, "aliases under aliases": DEEP, "an alias of itself": "run: &a [*a]",
    "a merge of itself": "run: &a\n  <<: *a", "nested lists": "[" * 5000, "nested mappings": "{a: " * 900,
    "an object": "run: !!python/object/apply:os.system [touch x]", "a module": "run: !!python/module:antigravity",
    "an unknown tag": "run: !x y", "a huge number": "run: {seed: " + "9" * 5000 + "}",
    "a huge hexadecimal": "task: {sources: [{config: {a: 0x" + "f" * 5000 + "}}]}", "a date": "run: 2001-99-99",
    "two documents": "a: 1\n---\nb: 2", "nothing": "", "a text": "hello", "a list": "[1, 2]", "a number": "7",
    "Latin-1": "run: {name: \xe9}".encode("latin-1"), "UTF-16": "run: {}".encode("utf-16"), "NUL": b"run: \0",
    "half a character": 'run: {name: "\\ud800"}', "random bytes": Random(0).randbytes(3000), "long": "# " + "x" * 2**21,
    "a list for a key": "? [a]\n: b", "a mapping for a key": "? {a: b}\n: c", "a set": "run: !!set {a, b}",
    "bytes": "run: !!binary aGVsbG8=", "tabs": "run:\n\tname: x", "JSON": "{}", "a variable": "run: ${HOME}",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_that_are_no_specs(base, tmp_path, text):
    with untouched(tmp_path / "outside"):
        result = answered("plan", spec_file(text))
    assert result.exit_code == 2
    assert "spec.yaml: " in result.stderr
    assert not Path("x").exists()


def test_a_bomb_inside_a_config_is_refused_and_a_plain_alias_is_not(base):
    text = yaml.safe_dump(small())
    assert answered("plan", spec_file(f"{BOMB}{text}")).exit_code == 2
    shared = text.replace("max_value: 90", "max_value: &most 90") + "evaluation: {k: 4, samples_per_prompt: 4}\n"
    assert answered("plan", spec_file(shared.replace("steps: 10", "steps: *most"))).exit_code == 2  # before its anchor
    twice = text.replace("budget_rollouts: 240", "budget_rollouts: &many 240").replace("seed: 3", "seed: *many")
    assert answered("plan", spec_file(twice)).exit_code == 0


def test_mutated_overrides(base, tmp_path):
    rng, codes = Random(3), []
    path = spec_file(dumped(small()))
    fields = [".".join(map(str, place)) for place in places(base)]
    texts = [
        "",
        "=",
        "a",
        "[",
        "*x",
        "!!python/name:os.system",
        "null",
        "{}",
        "[]",
        "0x" + "f" * 5000,
        "&a [*a]",
        "{a: " * 400,
    ]
    with untouched(tmp_path / "outside"):
        for _ in range(200):
            field = rng.choice(fields)
            if rng.random() < 0.3:
                field = damaged(field.encode(), rng).decode(errors="surrogateescape")[:300]
            value = rng.choice(texts) if rng.random() < 0.5 else str(rng.choice(ODD))[:300]
            result = answered("plan", path, "--set", f"{field}={value}")
            codes.append(result.exit_code)
            if result.exit_code:
                assert_named(result)
    assert len(codes) == 200
    assert {0, 2} == set(codes)


def test_other_things_than_files(base, tmp_path):
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    names = [
        "pipe",
        "loop",
        "dangling",
        ".",
        "/dev/zero",
        "/dev/null",
        "no/such",
        "\0",
        "a\0b",
        "x" * 5000,
        "/proc/self/mem",
        "",
    ]
    for name in names:
        for command in ("plan", "train", "evaluate", "submit"):
            given = ["--address", "http://127.0.0.1:1"] if command == "submit" else []
            result = answered(command, name, *given)
            assert result.exit_code == 2, (command, name)
    for name in names:
        data = small()
        data["task"]["sources"] = [{"kind": "jsonl", "path": name, "verifier": "exact"}]
        data["recipe"] = data["recipe"][2:]
        result = answered("plan", spec_file(yaml.safe_dump(data)))
        assert result.exit_code == 2, name
        assert_named(result)


def test_training_refuses_before_any_actor_starts(base, tmp_path, monkeypatch):
    """Mutated specs through `train`, which makes model and prompts for real; nothing is written but the run."""
    import cluster.launch

    monkeypatch.setattr(cluster.launch, "Cluster", starts)
    rng, codes = Random(4), []
    base["drafter"]["method"] = "ngram"
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        for number in range(25):
            text = dumped(mutated(base, rng, most=1))
            path = tmp_path / "specs" / f"{number}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            result = answered("train", path, "--run-dir", tmp_path / "runs" / str(number % 5))
            codes.append(result.exit_code)
            if result.exit_code == 2:
                assert_named(result)
            else:
                assert STARTS in result.stderr
    assert len(codes) == 25
    assert {1, 2} == set(codes)


def test_packing_a_mutated_spec(base, tmp_path):
    rng, count, packed = Random(5), 0, 0
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        for number in range(150):
            count += 1
            try:
                spec = parse_spec(mutated(base, rng, most=2), "fuzz")
                into = tmp_path / "packages" / str(number)
                into.mkdir(parents=True)
                assert node_run_dir(spec).endswith(spec.run.name)
                pack(spec, 60.0, [], into)
            except BadInput as error:
                assert_names(str(error), "")
                continue
            packed += 1
            assert load_spec(into / "tailrace_job" / "spec.yaml").run.name == spec.run.name
    assert count == 150
    assert packed > 10


@pytest.mark.parametrize(
    "code", ["..", "../..", "/", ".", "pipe", "dangling", "loop", "no/such", "\0", "~", "tailrace_job"]
)
def test_code_from_odd_places_is_packed_inside_the_package_or_refused(base, tmp_path, code):
    """`..` once had its files laid beside the package."""
    Path("mine").mkdir()
    for name in ("mine/pipe", "pipe"):
        os.mkfifo(name)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    Path("mine/module.py").write_text("x = 1")
    Path("mine/inner").mkdir()
    into = tmp_path / "packages" / "package"
    into.mkdir(parents=True)
    os.chdir("mine/inner")
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        try:
            pack(parse_spec(small(), "small"), 60.0, [Path(code)], into)
        except BadInput as error:
            assert_names(str(error), "--code")
    assert [path.name for path in into.parent.iterdir()] == ["package"]
    os.chdir(tmp_path)
