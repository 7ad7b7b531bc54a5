"""One tree of seeds."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from actors.seeds import derive_seed


def test_a_seed_is_the_same_on_every_machine_and_for_ever():
    """Changing these numbers changes every run; a resumed one would continue as another."""
    assert derive_seed(0, "rollout", 1, "a1b2", 3) == 206_375_316_939_034_026
    assert derive_seed(2**63 - 1) == 7_020_109_263_315_816_604


def test_distinct_paths_give_distinct_seeds():
    parts = ["train", "heldout"]
    paths: list[tuple] = list(itertools.product(range(3), ["rollout"], parts, range(20), range(20), range(8)))
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
