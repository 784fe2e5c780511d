"""Who answers a turn."""

# From the start: what this process did before a fork matters behind it.
from . import forks as forks
