"""The outcomes of tasks, and the store that keeps them."""

from proj.results.outcome import Outcome, failure, failures, forget_failures, outcome, wait

__all__ = ["Outcome", "failure", "failures", "forget_failures", "outcome", "wait"]
