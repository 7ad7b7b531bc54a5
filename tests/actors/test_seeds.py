"""One tree of seeds."""

from hypothesis import given
from hypothesis import strategies as st

from actors.seeds import derive_seed


def test_a_seed_is_the_same_on_every_machine_and_for_ever():
    """Changing these numbers changes every run; a resumed one would continue as another."""
    assert derive_seed(0, "rollout", 1, "a1b2", 3) == PINNED[0]
    assert derive_seed(2**63 - 1) == PINNED[1]


PINNED = (0, 0)


def test_distinct_paths_give_distinct_seeds():
    parts = ["train", "heldout"]
    paths = [(run, "rollout", pool, e, p, i) for run in range(3) for pool in parts for e in range(20) for p in range(20)
             for i in range(8)]  # fmt: skip
    paths += [(run, name) for run in range(3) for name in ("learner", "allocator", "model", "rollout")]
    assert len({derive_seed(*path) for path in paths}) == len(paths)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4), st.integers(0, 10**6))
def test_a_seed_fits_every_generator_and_a_longer_path_has_another(path, further):
    seed = derive_seed(*path)
    assert 0 <= seed < 2**63
    assert derive_seed(*path, further) != seed


def test_the_bits_of_neighbouring_seeds_are_unrelated():
    ones = sum((derive_seed(0, "x", i) ^ derive_seed(0, "x", i + 1)).bit_count() for i in range(1000))
    assert 31 < ones / 1000 < 32
