"""The result store: any that Celery knows, opened when it is used, and patient when it is down."""

import logging
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import celery.exceptions
from celery.app import backends
from celery.local import PromiseProxy

from proj.errors import ConfigError, ProjError, ResultStoreError
from proj.results.database import Database
from proj.results.patience import ATTEMPT_INTERVAL, Patient, reason_of


class _WhenNeeded(PromiseProxy):
    """A database backend that is made when it is first asked for something.

    To publish asks it for nothing, so a program that only enqueues pays neither for the import of
    SQLAlchemy nor for a database that is down.
    """

    #: As they are for Celery's database backend; asked for before anything is.
    thread_safe = False
    persistent = True

    def __bool__(self) -> bool:
        return True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing, as `celery.backends.base.Backend` does."""

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing, as `celery.backends.base.SyncBackendMixin` does; every result calls it at its end."""
        return result


def open_store(app: Any, url: str) -> Any:
    """The result backend of `url`, which is any that Celery knows; Celery calls this by its name.

    Raises `ConfigError` for a URL that names none; for a database, when that is first used.
    """

    def make() -> Any:
        try:
            kind, rest = backends.by_url(url, app.loader)
            if is_database:
                _check_database(app, rest)
            patient = type(kind.__name__, (Database if is_database else Patient, kind), {})
            store = patient(app=app, url=rest)
        except (ImportError, AttributeError, celery.exceptions.ImproperlyConfigured) as error:
            raise _wrong_url(reason_of(error), "the URL of a database begins with db+") from None
        store.max_retries = math.inf  # what ends it is the deadline
        store.max_sleep_between_retries_ms = ATTEMPT_INTERVAL * 1000
        return store

    is_database = url.startswith("db+")
    logging.getLogger("celery.backends.base").addFilter(_in_one_line)
    return _WhenNeeded(make) if is_database else make()


def _check_database(app: Any, url: str) -> None:
    """Raise `ConfigError` for a URL that no database can be opened with, and make SQLite's folder."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
        urlsplit(url).port  # noqa: B018  as Celery reads it, for its banner
    except NoSuchModuleError:
        raise _wrong_url(
            f"SQLAlchemy has no database {url.partition(':')[0]!r}", "such as postgresql"
        ) from None
    except ImportError as error:
        raise _wrong_url(
            reason_of(error), "install the driver; for PostgreSQL: pip install 'psycopg[binary]'"
        ) from None
    except (ArgumentError, ValueError):
        # Their words may hold what was taken for a port, and is a password.
        raise _wrong_url(
            "it is no URL of a database",
            "such as db+postgresql://user:password@host:5432/database, with / in a password as %2F",
        ) from None
    path = parsed.database or ":memory:"
    if parsed.drivername.startswith("sqlite") and not path.startswith((":", "file:")):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(app, error) from error


def _wrong_url(reason: str, hint: str) -> ConfigError:
    return ConfigError(f"CELERY_RESULT_BACKEND cannot be used: {reason}", hint)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Say what Celery says of each attempt, without a traceback of a hundred lines."""
    if record.exc_info and str(record.msg).startswith("Failed operation"):
        record.msg, record.args = "The result store fails, trying again: %s", (reason_of(record.exc_info[1]),)
        record.exc_info = None
    return True


def store_error(app: Any, error: Exception, verb: str = "read") -> ProjError:
    """The error in words, with the store of the application (`proj.enqueue.app.App`), and no password."""
    if isinstance(error, ProjError):
        return error
    return ResultStoreError(
        f"the result store cannot be {verb}: {reason_of(error)}",
        f"it is {app.settings.safe_result_backend}; check CELERY_RESULT_BACKEND",
    )
