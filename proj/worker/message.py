"""A message as a worker receives it: how it is decoded, and what if it can no longer be acknowledged."""

import json
import logging
from typing import Any, Final

from celery.utils.log import get_logger
from kombu.transport import pyamqp
from kombu.utils.json import object_hook

from proj.dead_letters.reasons import Reason
from proj.logs import events

log: Final = get_logger(__name__)

_JSON: Final = "application/json"
_decode_json: Final = json.JSONDecoder(object_hook=object_hook).decode


class Message(pyamqp.Message):
    """Kombu's message, which logs one line when its connection is lost, in place of a traceback.

    The broker delivers such a message again.
    """

    #: It is logged already that the message is given back.
    is_given_back = False

    def _decode(self) -> Any:
        """The body as kombu decodes it, which takes twice as long: it makes a decoder for each message."""
        if self.content_type == _JSON and isinstance(self.body, str) and _JSON in (self.accept or ()):
            try:
                return _decode_json(self.body)
            except Exception:  # of which kombu makes its own
                pass
        return super()._decode()

    def ack_log_error(self, logger: Any, errors: Any, multiple: bool = False) -> None:
        """Acknowledge. Raises `BrokenPipeError`, by which Celery notices that the connection is lost."""
        try:
            self.ack(multiple=multiple)
        except BrokenPipeError:
            self._say_given_back()
            raise
        except errors:
            self._say_given_back()

    def reject_log_error(self, logger: Any, errors: Any, requeue: bool = False) -> None:
        try:
            self.reject(requeue=requeue)
        except errors:
            self._say_given_back()

    def _say_given_back(self) -> None:
        if not self.is_given_back:
            self.is_given_back = True
            id_, name = (self.headers.get(header) for header in ("id", "task"))
            words = f"given back: {Reason.CONNECTION_LOST.words}"
            events.say(
                log, logging.WARNING, events.GIVEN_BACK, id_, name, words, reason=Reason.CONNECTION_LOST
            )
