"""Opens the result store: any backend of Celery, with bounded retries; databases when they are first used."""

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import celery.exceptions
from celery.app import backends
from celery.local import PromiseProxy

from proj.errors import ConfigError, ProjError, ResultStoreError
from proj.results.database import Database
from proj.results.patience import ATTEMPT_INTERVAL, Patient, reason_of


class _LazyDatabase(PromiseProxy):
    """A database backend that is made at its first use.

    A publish does not use it, so a program that only enqueues neither imports SQLAlchemy nor waits for a
    database that is down.
    """

    #: The values of Celery's database backend: Celery reads these before the first use.
    thread_safe = False
    persistent = True

    def __bool__(self) -> bool:
        return True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing, as `celery.backends.base.Backend` does."""

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing, as `celery.backends.base.SyncBackendMixin` does; every result calls this at its end."""
        return result


def open_store(app: Any, url: str) -> Any:
    """The result backend of `url`; Celery finds this function by its name in `App.backend_cls`.

    Raises `ConfigError` for a wrong URL; for a database, at its first use.
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
        store.max_retries = math.inf  # the deadline of `Patient` ends the retries
        store.max_sleep_between_retries_ms = ATTEMPT_INTERVAL * 1000
        return store

    is_database = url.startswith("db+")
    logging.getLogger("celery.backends.base").addFilter(_in_one_line)
    return _LazyDatabase(make) if is_database else make()


def _check_database(app: Any, url: str) -> None:
    """Raise `ConfigError` for a URL that cannot be used, and make the folder of an SQLite file."""
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
        # The error's own text may hold a password that was parsed as a port.
        raise _wrong_url(
            "it is not the URL of a database",
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
    """Log each of Celery's retries in one line, without a traceback of a hundred lines."""
    if record.exc_info and record.levelno == logging.WARNING:
        record.msg, record.args = "The result store failed, retrying: %s", (reason_of(record.exc_info[1]),)
        record.exc_info = None
    return True


def stored_at(meta: Mapping[str, Any]) -> datetime | None:
    """When this state was stored, in UTC; None when the store keeps no time. Some keep it without a zone."""
    done = meta.get("date_done")
    moment = datetime.fromisoformat(done) if isinstance(done, str) else done
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC) if moment else None


def store_error(app: Any, error: Exception, verb: str = "read") -> ProjError:
    """The error for people, with the URL of the application's store, without its password."""
    if isinstance(error, ProjError):
        return error
    return ResultStoreError(
        f"the result store cannot be {verb}: {reason_of(error)}",
        f"it is {app.settings.safe_result_backend}; check CELERY_RESULT_BACKEND",
    )
