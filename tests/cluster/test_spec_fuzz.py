"""Whatever stands in a spec file, `plan` answers with a plan or with BadInput, and soon.

Left alone: the values under a source's `config`, which are a generator's own business (some accept a size that takes
for ever), and `cluster.address`, which is asked over the network.
"""

import contextlib
import copy
import time
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_spec import jsonl_source, small

from cluster import plan as plan_module
from cluster.capacity import Node
from cluster.plan import make_plan
from cluster.spec import load_spec, parse_spec
from trainer.types import BadInput

SLOW_S = 10.0
"""A plan that takes longer hangs, for the person who waits; an ordinary one takes a tenth of a second here."""

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

numbers = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 7, 10**4, 10**6, 10**9, 10**12, 2**63, 10**400, 0.5, -0.0, 5e-324, 1e308]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(1, 300),
    st.integers(),
    st.floats(),
)
words = st.sampled_from(
    [
        "",
        "tiny",
        "jsonl",
        "reasoning_gym",
        "rl",
        "pretrain",
        "auto",
        "grpo",
        "{question}",
        "{",
        "\0",
        "../..",
        "gcd",
        "x:y",
    ]
)
scalars = st.one_of(numbers, words, st.text(max_size=12), st.none(), st.booleans(), st.binary(max_size=4), st.dates())
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(words, st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small spec with a file as second source and every section written out."""
    data = small()
    data["task"]["sources"].append(jsonl_source(tmp_path_factory.mktemp("fuzz") / "mine.jsonl"))
    full = parse_spec(data, "base").model_dump()
    del full["task"]["sources"][0]["config"]
    del full["cluster"]["address"]
    return full


@pytest.fixture(scope="module", autouse=True)
def _one_machine() -> Any:
    """Independent of what the tests run on; and the heavy imports are done before anything is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "nodes_of", lambda address: [Node(2, 0, 2**33)])
        make_plan(parse_spec(small(), "warm-up"))
        yield


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Every key and index of nested data, sections included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, child in items:
        found += [(*path, key), *places(child, (*path, key))]
    return found


def mutate(data: dict[str, Any], draw: Any) -> None:
    """Delete, replace or add at one place."""
    *parents, last = draw(st.sampled_from(places(data)))
    node: Any = data
    for part in parents:
        node = node[part]
    kind = draw(st.sampled_from(["delete", "number", "junk", "add", "repeat"]))
    if kind == "delete":
        del node[last]
    elif kind == "add" and isinstance(node, dict):
        node[draw(st.one_of(words, st.text(max_size=8), st.integers()))] = draw(junk)
    elif kind == "repeat" and isinstance(node, list):
        node.append(copy.deepcopy(node[last]))
    else:
        node[last] = draw(numbers if kind == "number" else junk)


def outcome(data: Any) -> str:
    """`plan` or `refused`; anything else fails the test."""
    began = time.monotonic()
    message = ""
    try:
        make_plan(parse_spec(data, "fuzz")).as_json()
    except BadInput as error:
        message = str(error) or "empty"
    assert time.monotonic() - began < SLOW_S
    assert message != "empty"
    assert len(message) < 20_000
    return "refused" if message else "plan"


@given(choice=st.data())
@settings(QUIET, max_examples=600)
def test_mutated_specs(base, choice):
    data = copy.deepcopy(base)
    for _ in range(choice.draw(st.integers(1, 3))):
        if places(data):
            mutate(data, choice.draw)
    outcome(data)


@given(data=junk)
@settings(QUIET, max_examples=100)
def test_junk_instead_of_a_spec(data):
    assert outcome(data) == "refused"


@given(section=st.sampled_from(sorted(small())), value=junk)
@settings(QUIET, max_examples=100)
def test_junk_instead_of_a_section(section, value):
    outcome({**small(), section: value})


@given(
    text=st.one_of(st.text(max_size=80), st.binary(max_size=80), st.text("{}[]:-&*!|>#'\"%@ \n\tab01.", max_size=60))
)
@settings(QUIET, max_examples=300)
def test_garbage_files(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(BadInput):
        load_spec(path)


@given(override=st.one_of(st.text(max_size=30), st.text("runsed.0129=-[]{}:~²", max_size=30)))
@settings(QUIET, max_examples=200)
def test_garbage_overrides(tmp_path_factory, override):
    path = tmp_path_factory.getbasetemp() / "good.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(small()))
    with contextlib.suppress(BadInput):
        load_spec(path, [override])


@pytest.mark.parametrize("field", ["train_prompts", "heldout_prompts"])
def test_a_trillion_prompts_are_refused_and_the_most_allowed_are_quick(field):
    data = small()
    data["task"]["sources"][0][field] = 10**12
    assert outcome(data) == "refused"
    data["task"]["sources"][0] |= {field: 10**6, "config": {}}
    assert outcome(data) == "plan"
