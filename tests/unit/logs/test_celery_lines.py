"""Lines of Celery that say again, and worse, what is reported already."""

import logging

import pytest
from amqp.exceptions import ConnectionForced

from proj.logs import celery_lines


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [
        (OSError("Server unexpectedly closed connection"), False),
        (ConnectionForced("CONNECTION_FORCED"), False),
        (RuntimeError("dictionary changed size"), True),
    ],
)
def test_event_loop_that_ends(error: Exception, is_logged: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Celery logs the traceback of what is left to be done: not that of the connection that was lost."""
    celery_lines.install()
    try:
        raise error
    except Exception as raised:
        logging.getLogger("celery.worker.loops").exception("Error cleaning up after event loop: %r", raised)
    assert bool(caplog.records) is is_logged
