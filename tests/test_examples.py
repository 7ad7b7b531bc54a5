"""Every example that we ship can be used as it is."""

from pathlib import Path

import pytest

from cluster.spec import load_spec
from trainer.models import character_tokenizer
from trainer.tasks import build_pools

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_loads(path):
    assert load_spec(path).run.name == path.stem


def test_the_quickstart_has_all_its_prompts_and_holds_some_out():
    spec = load_spec(EXAMPLES / "quickstart.yaml")
    tokenizer = character_tokenizer(spec.model.context_tokens)
    pools = build_pools(spec.task, tokenizer, spec.model.context_tokens - spec.rollout.max_response_tokens)
    assert len(pools.train) == sum(source.train_prompts for source in spec.task.sources)
    assert len(pools.heldout) == sum(source.heldout_prompts for source in spec.task.sources)
    train, heldout = ({(p.family, p.question) for p in pool} for pool in (pools.train, pools.heldout))
    assert len(train) == len(pools.train)
    assert not train & heldout
    assert not {p.token_ids for p in pools.train} & {p.token_ids for p in pools.heldout}
