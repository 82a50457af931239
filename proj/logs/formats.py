"""The formats of log lines: text for people, or one JSON object a line, with the id and name of the task."""

import functools
import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, Final

import celery.app.log
from celery import current_task
from celery.utils.log import ColorFormatter, get_logger

from proj.config import Settings
from proj.logs import events
from proj.logs.printable import printable, shortened
from proj.logs.printed import Printed

log = get_logger(__name__)

#: Attributes that Python and Celery set on records; all others come from the caller's `extra`.
_NOT_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName", "at", "event", "task_id", "task_name", "data"),
}

#: Characters of a message, a traceback or any other text of a line; an exception may contain a whole file.
LONGEST_TEXT: Final = 10_000

#: For warnings before Celery has set up logging, such as that a worker runs as root.
_before_set_up: Final = logging.StreamHandler()


class Logging(celery.app.log.Logging):
    """Celery's set-up of logging, with the format of `PROJ_LOG_FORMAT`."""

    _worker: str | None = None

    def setup_logging_subsystem(self, *args: Any, hostname: str | None = None, **kwargs: Any) -> Any:
        self._worker = hostname
        logging.getLogger("py.warnings").removeHandler(_before_set_up)
        return super().setup_logging_subsystem(*args, hostname=hostname, **kwargs)

    def setup_handlers(self, *args: Any, formatter: Any = None, **kwargs: Any) -> Any:
        """Add Celery's handler with our format, unless the program has its own handler."""
        formatter = TextFormatter
        if self.app.settings.proj_log_format == "json":
            formatter = functools.partial(JsonFormatter, worker=self._worker)
        return super().setup_handlers(*args, formatter=formatter, **kwargs)

    def redirect_stdouts_to_logger(self, logger: logging.Logger, loglevel: Any = None, *_: Any) -> Any:
        """Log what tasks print to stdout and stderr."""
        sys.stdout = printed = Printed(logger, loglevel, sys.__stdout__)
        sys.stderr = Printed(logger, loglevel, sys.__stderr__)
        return printed


class TextFormatter(ColorFormatter):
    """Formats a record as one line of text; the traceback of `exc_info` follows on further lines."""

    def __init__(self, fmt: str | None = None, **options: Any) -> None:
        super().__init__(fmt, **options)
        self._names_task = "%(task_id)" in (fmt or "")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as Python names it
        record.message = _one_line(shortened(record.message, LONGEST_TEXT))
        task_id, name = _task_of(record)
        if self._names_task:
            record.task_id, record.task_name = task_id or "???", name or "???"
        elif task_id and not hasattr(record, "event"):
            record.message = f"{name or ''}[{task_id}]: {record.message}"
        return str(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  as Python names it
        # The exception's text may contain control characters from anywhere.
        return printable(shortened(str(super().formatException(ei)), LONGEST_TEXT), keep="\n\t")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object with the keys of `docs/logs.md` and those of `extra`."""

    def __init__(self, fmt: str | None = None, *, worker: str | None = None, **_: Any) -> None:
        """`fmt`, a text format, is ignored."""
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        given = vars(record)
        moment = datetime.fromtimestamp(given.get("at", record.created), UTC)
        task_id, name = _task_of(record)
        fields = {
            "time": f"{moment.isoformat(timespec='microseconds')[:-6]}Z",
            "level": record.levelname,
            "event": given.get("event", events.OTHER),
            "task_id": task_id,
            "task_name": name,
            "worker": self._worker,
            "process": record.processName,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("task_id", "task_name", "worker"):
            if fields[key] is None:
                del fields[key]
        for key, value in given.items():
            if key not in _NOT_FIELDS:
                fields.setdefault(key, value)
        if record.exc_info and record.exc_info[0]:
            error = record.exc_info[1]
            fields |= {"exception": repr(error), "traceback": "".join(traceback.format_exception(error))}
        fields = {key: _short(value) for key, value in fields.items()}
        try:
            return _dumps(fields)
        except (TypeError, ValueError):  # JSON cannot carry a value, such as NaN, or a list in itself
            return _dumps({str(key): _as_words(value) for key, value in fields.items()})


_dumps = json.JSONEncoder(allow_nan=False, default=str).encode


def _short(value: Any) -> Any:
    return shortened(value, LONGEST_TEXT) if isinstance(value, str) else value


def _as_words(value: Any) -> Any:
    try:
        _dumps(value)
    except (TypeError, ValueError):
        return _short(str(value))
    return value


def write_events(settings: Settings) -> None:
    """Let a command of `proj` write its events to stderr if the format is JSON."""
    if settings.proj_log_format == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger("proj")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def write_log(settings: Settings) -> None:
    """Let a program that runs until it is stopped write its log to stderr, in the format of the settings."""
    write_events(settings)
    if settings.proj_log_format == "text":
        handler = logging.StreamHandler()
        words = "[%(asctime)s: %(levelname)s] %(message)s"
        handler.setFormatter(TextFormatter(words, use_color=sys.stderr.isatty()))
        logger = logging.getLogger("proj")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def log_only_json(instance: Any) -> None:
    """Let a worker (`celery.apps.worker.Worker`) write nothing but JSON, if `PROJ_LOG_FORMAT` is `json`.

    Celery writes its lines on signals, such as "worker: Warm shutdown", past all logging, and has no setting
    for it.
    """
    if instance.app.settings.proj_log_format == "json":
        import celery.apps.worker

        instance.quiet = True  # no banner
        # upstream: celery#8101; remove when Celery logs what it prints on a signal
        celery.apps.worker.safe_say = _log_from_signal
        _before_set_up.setFormatter(JsonFormatter(worker=instance.hostname))
        logging.getLogger("py.warnings").addHandler(_before_set_up)
        logging.captureWarnings(True)


def _log_from_signal(line: str, *_: Any) -> None:
    # In a thread, since the signal may have interrupted a write to the same log.
    threading.Thread(target=log.warning, args=("%s", line.strip())).start()


def _task_of(record: logging.LogRecord) -> tuple[str | None, str | None]:
    """Id and task name of the record's message, or else of the task that is being executed."""
    if hasattr(record, "task_id"):
        return record.task_id, getattr(record, "task_name", None)
    if current_task and current_task.request:
        return current_task.request.id, current_task.name
    return None, None


def _one_line(text: str) -> str:
    """The text as one line, without control characters of terminals."""
    if text.isprintable():
        return text
    return printable(" ".join(part for part in map(str.strip, text.splitlines()) if part), keep="\t")
