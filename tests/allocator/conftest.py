"""Property tests run on shared machines: time limits are pytest-timeout's business, not each example's."""

from hypothesis import settings

settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")
