"""The trainer: what a step depends on, what it learns, and what it carries from one place to another."""

import dataclasses

import numpy as np
import pytest
import torch
from draft_cases import HIDDEN, VOCAB, config, sequences, target

from drafter.features import FeatureSequence
from drafter.packing import pack, plan_packs
from drafter.training import DrafterTrainer, Stopped, TrainingSettings, average
from drafter.unroll import unrolled
from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput

SIZES = [(3, 12), (1, 30), (5, 2), (2, 7), (4, 1)]


def trainer(form: str = "eagle3", seed: int = 0, **settings) -> DrafterTrainer:
    embedding, lm_head = target()
    vocabulary = DraftVocabulary(np.arange(2, 26), VOCAB) if form == "eagle3" else None
    shape = config(form, draft_vocab_size=24 if form == "eagle3" else None)
    return DrafterTrainer(shape, embedding, lm_head, TrainingSettings(**settings), vocabulary, seed)


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
@pytest.mark.parametrize("loss", ["soft_cross_entropy", "total_variation", "hybrid"])
def test_loss_and_gradients_are_the_same_packed_and_one_by_one(form, loss):
    learner = trainer(form, loss=loss)
    batch = sequences(learner.config, SIZES)
    learner.loss(pack(batch)).backward()
    packed = torch.cat([p.grad.flatten() for p in learner.head.parameters()])
    learner.head.zero_grad()
    for step in range(3):  # a step's mean is over all chains that reach it, so each sequence weighs by its own
        reached = [max(sequence.chains - step, 0) for sequence in batch]
        for sequence, chains in zip(batch, reached, strict=True):
            if chains:
                alone = learner.loss(pack([sequence])) - _without(learner, sequence, step)
                (alone * chains / sum(reached)).backward()
    unpacked = torch.cat([p.grad.flatten() for p in learner.head.parameters()])
    torch.testing.assert_close(packed, unpacked, rtol=1e-4, atol=1e-5)


def _without(learner: DrafterTrainer, sequence: FeatureSequence, step: int) -> torch.Tensor:
    """The loss of a sequence alone but for one step's term."""
    weight, settings = learner.settings.step_weight, learner.settings
    up_to = []
    for steps in (step, step + 1):
        learner.settings = settings.model_copy(update={"steps": steps})
        up_to.append(learner.loss(pack([sequence])))
    learner.settings = settings
    assert weight == 0.8
    return learner.loss(pack([sequence])) - (up_to[1] - up_to[0])


def test_neighbours_in_a_pack_do_not_see_each_other():
    """Gap 6: the released code packs under one causal mask, and samples attend to the ones before them."""
    learner = trainer()
    batch = sequences(learner.config, SIZES)
    packed = pack(batch)
    together = list(unrolled(learner.head, packed, target()[0], 3))
    alone = [list(unrolled(learner.head, pack([s]), target()[0], 3)) for s in batch if s.chains]
    for step in range(3):
        expected, valid = torch.cat([hidden[step] for hidden in alone]), packed.reach > step
        torch.testing.assert_close(together[step][valid], expected[valid], rtol=1e-4, atol=1e-5)


def test_only_predictions_of_response_tokens_count():
    learner = trainer()
    (sequence,) = sequences(learner.config, [(6, 9)])
    other = sequences(learner.config, [(6, 9)], seed=1)[0]
    before = learner.loss(pack([sequence])).item()
    last = sequence.last.copy()
    last[:6], last[-1] = other.last[:6], other.last[-1]  # what is said in the prompt, and what would follow the end
    changed = FeatureSequence("x", 0, sequence.token_ids, 6, sequence.features, last)
    assert learner.loss(pack([changed])).item() == before
    last[6] = other.last[6]  # the first drafted token is the second of the response
    assert learner.loss(pack([changed])).item() != before
    assert pack([sequence]).chains == sequence.chains == 8


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
def test_a_predictable_continuation_is_learned_and_drafted(form):
    """Tokens that count upwards, and a target that says so."""
    learner = trainer(form, learning_rate=3e-3, temperature=0.05)
    embedding, rng = target()[0], np.random.default_rng(0)
    directions = torch.nn.functional.normalize(target()[1], dim=1)
    learner.set_target(embedding, directions)

    def counting(start: int) -> FeatureSequence:
        ids = (2 + (start + np.arange(20)) % 24).astype(np.int32)
        last = directions[2 + (start + 1 + torch.arange(20)) % 24].numpy()
        noise = rng.normal(size=(20, HIDDEN)).astype(np.float32)
        wide = np.concatenate([last, noise, embedding[ids].numpy()], 1)
        return FeatureSequence(str(start), 0, ids, 3, last if form == "eagle" else wide, last)

    data = [counting(i) for i in range(24)]
    losses = [learner.micro_step(data[i % 3 :: 3])["loss"] for i in range(120)]
    right, drafts = learner.evaluate(data, 3)
    assert losses[-1] < 0.6 * losses[0]
    assert (right / drafts > 0.8).all()
    assert drafts < sum(sequence.chains for sequence in data) / 3, "accepted tokens are not drafted again"


def test_restored_from_its_state_it_goes_on_as_if_nothing_had_happened():
    one, other = trainer(seed=1), trainer(seed=2)
    batch = sequences(one.config, SIZES)
    for _ in range(3):
        one.micro_step(batch)
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    assert one.micro_step(batch) == other.micro_step(batch)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
    assert not any("embed" in name for name in one.state_dict())


def test_average_of_replicas():
    replicas = [trainer(), trainer()]
    for i, replica in enumerate(replicas):
        for _ in range(i + 2):
            replica.micro_step(sequences(replica.config, SIZES, seed=i))
    states = [replica.state_dict() for replica in replicas]
    mean = average(states, [1, 3])
    assert mean["step"] == 3
    torch.testing.assert_close(
        mean["head.fc.weight"], states[0]["head.fc.weight"] * 0.25 + states[1]["head.fc.weight"] * 0.75
    )
    replicas[0].load_state_dict(mean)
    replicas[0].micro_step(sequences(replicas[0].config, SIZES))
    with pytest.raises(BadInput, match="same tensors"):
        average([states[0], {}], [1, 1])
    with pytest.raises(ValueError, match="weights"):
        average(states, [0, 0])


def test_states_and_targets_of_another_shape_are_named():
    learner, state = trainer(), trainer().state_dict()
    with pytest.raises(BadInput, match=r"head\.fc\.weight"):
        learner.load_state_dict(state | {"head.fc.weight": torch.zeros(2, 2)})
    with pytest.raises(BadInput, match=r"exp_avg\.norm\.weight: missing"):
        learner.load_state_dict({name: t for name, t in state.items() if name != "exp_avg.norm.weight"})
    with pytest.raises(BadInput, match="embedding"):
        learner.set_target(torch.zeros(VOCAB, HIDDEN + 1), torch.zeros(VOCAB, HIDDEN))
    with pytest.raises(BadInput, match="steps"):
        trainer(steps=4)


def test_numbers_that_are_not_finite_leave_the_head_as_it_was():
    learner = trainer()
    batch = sequences(learner.config, SIZES)
    learner.micro_step(batch)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    batch[1].features[9, 3] = np.inf
    with pytest.raises(FloatingPointError, match="step 1"):
        learner.micro_step(batch)
    for name, tensor in learner.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_features_of_another_width_are_named():
    with pytest.raises(BadInput, match=r"s0: features and last are \(16, 16\)"):
        trainer("eagle3").micro_step(sequences(config("eagle"), [(3, 5)]))


def test_an_evaluation_in_several_packs_is_the_same(monkeypatch):
    learner = trainer()
    batch = [sequence for sequence in sequences(learner.config, SIZES) if sequence.chains]
    whole = learner.accepted(batch, 3)
    monkeypatch.setattr("drafter.training.EVALUATION_TOKENS", 20)
    np.testing.assert_array_equal(learner.accepted(batch, 3), whole)


def test_nothing_to_draft_is_said():
    learner = trainer()
    short = sequences(learner.config, [(4, 1), (3, 0)])
    assert learner.evaluate(short, 3)[1] == 0
    with pytest.raises(ValueError, match="nothing to draft"):
        learner.micro_step(short)


def test_packs_keep_order_and_budget_and_cut_nothing():
    assert plan_packs([3, 4, 9, 30, 1, 1, 8], 10) == [[0, 1], [2], [3], [4, 5, 6]]
    assert plan_packs([], 10) == []


def test_a_response_of_a_thousand_tokens_is_learned_from_end_to_end():
    """Gap 7: the released code trains on windows of 512 tokens, and the tail is where drafters decay."""
    shape = config("eagle3", trained_steps=2)
    long = sequences(dataclasses.replace(shape, max_positions=2048), [(4, 1000)])
    trainer = DrafterTrainer(shape, *target(), TrainingSettings(steps=2))
    assert len(trainer.accepted(long, 2)) == 999
    with torch.no_grad():
        whole = trainer.loss(trainer._packed(long))
        rows = {name: getattr(long[0], name)[492:] for name in ("token_ids", "features", "last")}
        cut = dataclasses.replace(long[0], **rows)
        assert not torch.isclose(whole, trainer.loss(trainer._packed([cut])), atol=1e-4)


def test_a_micro_step_counts_once_and_the_learning_rate_is_up_after_ten():
    """Gap 9: the released code counts successful steps twice and warms up over a thousand, more than a bubble has."""
    shape = config("eagle3", trained_steps=2)
    trainer = DrafterTrainer(shape, *target(), TrainingSettings(steps=2, learning_rate=1e-3))
    rates = [trainer.micro_step(sequences(shape, [(3, 9)], seed=i))["learning_rate"] for i in range(12)]
    assert trainer.step == 12
    assert rates[0] > 0
    assert rates[9:] == [1e-3] * 3


def test_a_micro_step_that_is_stopped_leaves_the_head_as_it_was():
    shape = config("eagle3", trained_steps=2)
    trainer = DrafterTrainer(shape, *target(), TrainingSettings(steps=2))
    before = {name: tensor.clone() for name, tensor in trainer.state_dict().items()}
    asked = iter([False, True])
    with pytest.raises(Stopped):
        trainer.micro_step(sequences(shape, [(3, 9)]), lambda: next(asked))
    after = trainer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in trainer.head.parameters())
