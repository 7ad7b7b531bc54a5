"""The one seed tree: every random number of a run hangs off the run's seed by a named path."""

import hashlib


def derive_seed(*path: int | str) -> int:
    """A seed in [0, 2^63) for a path such as (run seed, "rollout", epoch, prompt, sample). Stable across machines."""
    digest = hashlib.blake2b("/".join(str(part) for part in path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
