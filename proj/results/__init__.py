"""How tasks ended, and where that is stored."""

from proj.results.outcome import Outcome, failure, outcome, wait

__all__ = ["Outcome", "failure", "outcome", "wait"]
