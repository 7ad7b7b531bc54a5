"""The reduced vocabulary and the two tables by which vLLM knows it."""

import numpy as np
import pytest

from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput


def test_most_frequent_first_ties_by_smaller_id_and_ends_of_sequence_always():
    counts = np.array([0, 5, 9, 5, 0, 5, 1])
    assert DraftVocabulary.chosen(counts, 3).ids.tolist() == [1, 2, 3]
    assert DraftVocabulary.chosen(counts, 3, keep=[4]).ids.tolist() == [1, 2, 4]
    assert DraftVocabulary.chosen(counts, 3, keep=[2, 2]).ids.tolist() == [1, 2, 3]
    assert DraftVocabulary.chosen(counts, 7, keep=[0]).ids.tolist() == list(range(7))


def test_tables_lead_from_one_vocabulary_to_the_other():
    vocabulary = DraftVocabulary.chosen(np.array([0, 5, 9, 5, 0, 5, 1]), 4, keep=[6])
    assert (
        (np.arange(4) + vocabulary.d2t).tolist() == vocabulary.ids.tolist() == np.flatnonzero(vocabulary.t2d).tolist()
    )
    assert DraftVocabulary.from_d2t(vocabulary.d2t, 7).ids.tolist() == vocabulary.ids.tolist()
    assert vocabulary.reduced
    assert not DraftVocabulary.full(7).reduced


@pytest.mark.parametrize(("size", "keep"), [(0, []), (8, []), (1, [1, 2]), (3, [7]), (3, [-1])])
def test_impossible_choices_are_refused(size, keep):
    with pytest.raises(BadInput, match="draft"):
        DraftVocabulary.chosen(np.ones(7), size, keep)


def test_a_table_that_leads_nowhere_is_refused():
    with pytest.raises(BadInput, match="ascending"):
        DraftVocabulary.from_d2t(np.array([0, 0, 9]), 7)
