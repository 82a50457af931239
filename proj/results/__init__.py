"""The outcomes of tasks, and the store that keeps them."""

from proj.results.outcome import Outcome, failure, outcome, wait

__all__ = ["Outcome", "failure", "outcome", "wait"]
