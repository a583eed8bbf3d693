"""Properties here verify signatures: how long that takes on a busy machine is no property."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
