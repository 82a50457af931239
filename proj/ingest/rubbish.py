"""Rubbish: a foreign message from which no task can be made."""

from proj.dead_letters.reasons import Reason


class Rubbish(Exception):
    """Raised for a message that becomes a dead letter."""

    def __init__(self, reason: Reason, problem: str) -> None:
        self.reason = reason
        #: What is wrong with it, for people.
        self.problem = problem
        super().__init__(problem)
