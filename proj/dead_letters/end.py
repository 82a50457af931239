"""The end that a worker stores for a message which no worker had when it became a dead letter."""

from typing import Final

from proj.dead_letters.letter import DeadLetter
from proj.dead_letters.reasons import Reason
from proj.errors import DeadLettered

#: Reasons of dead letters that the broker makes by itself. For all others a worker has stored the end, except
#: for those of `proj ingest`, which has no store.
_BY_THE_BROKER: Final = (Reason.DELIVERY_LIMIT, Reason.EXPIRED, Reason.MAXLEN)


def is_stored_later(letter: DeadLetter) -> bool:
    """Whether the broker or `proj ingest` made the dead letter: its end is stored seconds after its death."""
    return bool(letter.foreign) or letter.reason in _BY_THE_BROKER


class End:
    """The end of the message of a dead letter, without its body."""

    def __init__(self, letter: DeadLetter) -> None:
        self.reason = letter.reason
        known = letter.reason in list(Reason)
        #: How the text of its error begins.
        self.words = Reason(letter.reason).words if known else letter.reason

    def has(self, error: str | None) -> bool:
        """Whether the error that is stored, in words, is that of this end."""
        return (error or "").startswith(f"{DeadLettered.__name__}: {self.words}")
