"""When a drafter enters service and when it leaves it again."""

from drafter.publishing import Candidate, Publisher, Worth


def test_the_first_drafter_must_beat_what_n_grams_were_seen_to_give():
    publisher = Publisher(serving=False)
    assert not publisher.wants(Candidate((0.2, 0.05), ()), ngram_length=1.4)
    assert publisher.wants(Candidate((0.4, 0.2), ()), ngram_length=1.4)


def test_a_candidate_is_compared_with_the_one_in_service_on_the_same_slice():
    publisher = Publisher(serving=True)
    assert publisher.wants(Candidate((0.6, 0.4), (0.5, 0.3)), None)
    assert not publisher.wants(Candidate((0.5, 0.3), (0.5, 0.3)), None)


def test_versions_rise_with_every_publish():
    publisher = Publisher(serving=False)
    assert [publisher.version, publisher.published(), publisher.published()] == [0, 1, 2]


def test_a_drop_of_live_acceptance_rolls_back_only_right_after_a_publish():
    publisher = Publisher(serving=True)
    assert not publisher.drops(600, 1000)
    assert not publisher.drops(300, 1000)  # the target moved: nothing to go back to
    publisher.published()
    assert publisher.drops(200, 1000)


def test_a_drop_within_chance_is_none():
    publisher = Publisher(serving=True)
    publisher.drops(12, 20)
    publisher.published()
    assert not publisher.drops(9, 20)


def test_an_epoch_without_drafts_leaves_the_judgement_open():
    publisher = Publisher(serving=True)
    publisher.drops(600, 1000)
    publisher.published()
    assert not publisher.drops(0, 0)
    assert publisher.drops(200, 1000)


def test_a_run_whose_bubbles_are_too_small_is_told_so():
    worth = Worth()
    assert [worth.epoch(0) for _ in range(Worth.EPOCHS)] == [True] * (Worth.EPOCHS - 1) + [False]
    worth = Worth()
    assert all(worth.epoch(steps) for steps in [0, 0, 30] * 10)
