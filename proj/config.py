"""Reads and checks the settings of the environment. No other module reads it.

`load` reads the process's environment, which takes precedence, and a `.env` file in the working folder.
"""

import io
import ipaddress
import keyword
import os
import re
import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import SplitResult, quote, unquote, urlsplit

from kombu.utils.url import sanitize_url
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proj import queues, state_dir, tls
from proj.errors import ConfigError, did_you_mean

#: Seconds after which RabbitMQ closes the channel of an unacknowledged delivery: its default
#: `consumer_timeout`. With late acknowledgement a task must end before that.
CONSUMER_TIMEOUT: Final = 30 * 60

#: Seconds for which results are kept: a week, and a century at most.
RESULT_EXPIRES: Final = 7 * 24 * 3600
LONGEST_EXPIRES: Final = 100 * 365 * 24 * 3600

#: Seconds to connect to a node of the broker before the next node is tried.
CONNECT_TIMEOUT: Final = 4

#: A name that a line of the `.env` file sets.
_WRITTEN_NAME: Final = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=", re.MULTILINE)

#: Celery itself reads these, and they would override the broker of our settings.
_BYPASSES: Final = ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")

#: Characters of a wrong value that an error shows.
_SHOWN_LENGTH: Final = 80

#: How to write a URL whose user name or password has special characters.
_ENCODING: Final = "without spaces, with [ ] @ : / ; ? # % in a password percent-encoded, such as %40 for @"

#: What no URL has: a percent sign of no encoded character, and white space, of which `urlsplit` removes some.
_UNENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|\s")


def _absolute(path: Path) -> Path:
    return Path(state_dir.absolute(str(path)))


def _check_ca(path: Path) -> Path:
    path = _absolute(path)
    try:
        tls.context(path)
    except ssl.SSLError:
        raise ValueError("expected a file of certificates in PEM") from None
    except OSError as error:
        raise ValueError(f"expected a file of certificates in PEM: {error.strerror}") from None
    return path


def _check_amqp_host(host: str) -> str:
    """Check `AMQP_HOST`. Raises `ValueError`."""
    if re.search(r"[\s/@?#\[\]]", host) or (":" in host and not _is_ipv6(host)):
        raise ValueError("expected a host name or an address alone; the port is set with AMQP_PORT")
    return _check_host(host)


def _check_host(host: str) -> str:
    """Check that the host can be looked up. Raises `ValueError`."""
    try:
        host.encode("idna")  # as Python does for the look-up
    except UnicodeError:
        raise ValueError("expected a host name of parts between dots, each of 1 to 63 characters") from None
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _split(url: str, schemes: set[str]) -> SplitResult:
    """The parts of the URL. Raises `ValueError`, whose text may contain a password."""
    split = urlsplit(url)
    # An unencoded / in a password ends the host early: u:1/2@host would be host u, port 1.
    early = "@" not in split.netloc and "@" in url
    nowhere = not (split.hostname if split.scheme.startswith("http") else split.netloc)
    if split.scheme not in schemes or nowhere or early or _UNENCODED.search(url):
        raise ValueError
    split.port  # noqa: B018  this checks it
    return split


def _split_all(url: str, schemes: set[str], example: str) -> list[SplitResult]:
    """The parts of one URL, or of several separated by `;`. Raises `ValueError`, without a password."""
    try:
        parts = [_split(part, schemes) for part in url.split(";")]
    except ValueError:
        raise ValueError(f"expected URLs such as {example}, separated by ';', {_ENCODING}") from None
    for part in parts:
        _check_host(unquote(part.hostname or ""))
    return parts


def _check_broker_url(url: str) -> str:
    parts = _split_all(url, {"amqp", "amqps", "pyamqp"}, "amqp://user:password@host:5672/vhost")
    if query := "".join(part.query for part in parts):  # kombu would take it for arguments of its own
        name = "" if "@" in query else query.partition("=")[0]  # with an @, it may be the end of a password
        raise ValueError(f"leave out ?{name}: TLS is set with amqps://, timeouts with PROJ_PUBLISH_TIMEOUT")
    if len({part.scheme == "amqps" for part in parts}) > 1:
        raise ValueError("expected amqps:// for all nodes or for none: a failover must not switch TLS off")
    return url


def _check_management_url(url: str) -> str:
    _split_all(url, {"http", "https"}, "http://user:password@host:15672")
    return url


def _check_backend(url: str) -> str:
    """Check the URL of a result backend, of any kind that Celery knows. Raises `ValueError`."""
    with suppress(ValueError):  # of `urlsplit`, which may hold the password
        if "://" in url and url == url.strip() and urlsplit(url):
            return url
    raise ValueError(f"expected a URL such as db+postgresql://user:password@host/database, {_ENCODING}")


def _names_of(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _check_queues(text: str) -> str:
    """The names of further work queues. Raises `ValueError`."""
    names = _names_of(text)
    known = [queues.DEFAULT_QUEUE]
    for name in names:
        if problem := queues.problem_with(name, known):
            raise ValueError(f"{name!r} {problem}")
        known.append(name)
    return text


def _check_modules(text: str) -> str:
    """The names of further modules with tasks. Raises `ValueError`."""
    names = _names_of(text)
    for place, name in enumerate(names):
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
            raise ValueError(f"{name!r} is not the name of a module, such as photos.tasks")
        if name in names[:place]:
            raise ValueError(f"{name!r} is named twice")
    return text


#: Settings that are names of files.
_PATHS: Final = frozenset({"proj_broker_ca", "proj_state_dir", "proj_rabbitmq_dir", "proj_ingest_routes"})


class Settings(BaseModel):
    """The settings of the environment; each has the attribute's name in capitals.

    Raises `pydantic.ValidationError` for a wrong value, which `load` turns into one line.
    """

    model_config = ConfigDict(extra="forbid")

    #: Overrides the five `AMQP_…` settings. With several URLs, separated by `;`, connections fail over.
    celery_broker_url: Annotated[str, AfterValidator(_check_broker_url)] | None = Field(None, repr=False)
    amqp_host: Annotated[str, AfterValidator(_check_amqp_host)] = "localhost"
    amqp_port: int = Field(5672, ge=1, le=65535)
    amqp_user: str = "guest"
    amqp_password: SecretStr = SecretStr("guest")
    amqp_vhost: str = "/"

    #: File (PEM) of the certificate authorities that are trusted for the broker and its management API; by
    #: default those of the system.
    proj_broker_ca: Annotated[Path, AfterValidator(_check_ca)] | None = None

    #: URL of the broker's management API, or several separated by `;`, of which one that answers is asked; by
    #: default on the brokers' hosts, at port 15672 (TLS: 15671).
    proj_management_url: Annotated[str, AfterValidator(_check_management_url)] | None = Field(
        None, repr=False
    )

    #: Any result backend of Celery; by default SQLite in the state folder.
    celery_result_backend: Annotated[str, AfterValidator(_check_backend)] | None = Field(None, repr=False)

    #: Names of further work queues, besides `proj.tasks`, separated by commas.
    proj_queues: Annotated[str, AfterValidator(_check_queues)] = ""

    #: Names of further modules with tasks, besides `proj.tasks`, separated by commas.
    proj_tasks: Annotated[str, AfterValidator(_check_modules)] = ""

    #: File of the routes from foreign queues to tasks, TOML, or JSON if its name ends with `.json`.
    proj_ingest_routes: Annotated[Path, AfterValidator(_absolute)] | None = None

    #: Folder of results, heartbeats of workers and the data of the private node.
    proj_state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=lambda: Path(state_dir.default())
    )

    #: Folder of the `rabbitmq-server` script for the private node; by default it is searched for.
    proj_rabbitmq_dir: Annotated[Path, AfterValidator(_absolute)] | None = None

    #: Seconds within which a publish ends, whatever its outcome.
    proj_publish_timeout: float = Field(10.0, gt=0, le=600)

    #: Seconds after which `SoftTimeLimitExceeded` is raised in a running task.
    proj_task_soft_time_limit: int = Field(24 * 60, gt=0)
    #: Seconds after which the process of a running task is killed.
    proj_task_time_limit: int = Field(25 * 60, gt=0)
    #: Seconds that the broker waits for an acknowledgement: its `consumer_timeout`.
    proj_consumer_timeout: int = Field(CONSUMER_TIMEOUT, gt=0)

    #: Seconds for which the result of a task that succeeded is kept; 0 for ever.
    proj_result_expires: int = Field(RESULT_EXPIRES, ge=0, le=LONGEST_EXPIRES)

    #: How often a task that failed with a transient error is retried.
    proj_max_retries: int = Field(5, ge=0)

    #: Seconds that running tasks have to end after SIGTERM, before their messages are given back. The maximum
    #: is that of a timer.
    proj_shutdown_grace: float = Field(60.0, ge=0, le=threading.TIMEOUT_MAX)

    #: Format of log lines: text for people, or one JSON object a line.
    proj_log_format: Literal["text", "json"] = "text"

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError("it holds a NUL character")
            # A file name may be any bytes.
            if info.field_name not in _PATHS and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError("it is not UTF-8 text") from None
        return value

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if self.proj_task_time_limit >= self.proj_consumer_timeout:
            raise ValueError(
                f"PROJ_TASK_TIME_LIMIT must be below the broker's consumer_timeout, got "
                f"{self.proj_task_time_limit} and {self.proj_consumer_timeout}: lower it, or raise "
                f"consumer_timeout in the broker's configuration and PROJ_CONSUMER_TIMEOUT"
            )
        if self.proj_task_soft_time_limit >= self.proj_task_time_limit:
            raise ValueError(
                f"PROJ_TASK_SOFT_TIME_LIMIT must be below PROJ_TASK_TIME_LIMIT, got "
                f"{self.proj_task_soft_time_limit} and {self.proj_task_time_limit}"
            )
        return self

    @property
    def known_consumer_timeout(self) -> int | None:
        """`PROJ_CONSUMER_TIMEOUT` if it is set; a publisher does not know whether the default is right."""
        return self.proj_consumer_timeout if "proj_consumer_timeout" in self.model_fields_set else None

    @cached_property
    def topology(self) -> queues.Topology:
        return queues.Topology(_names_of(self.proj_queues), self.proj_consumer_timeout)

    @property
    def task_modules(self) -> tuple[str, ...]:
        """The modules with tasks, the project's own first."""
        return tuple(dict.fromkeys(("proj.tasks", *_names_of(self.proj_tasks))))

    @property
    def state_dir(self) -> Path:
        return self.proj_state_dir

    @property
    def rabbitmq_dir(self) -> Path | None:
        return self.proj_rabbitmq_dir

    @property
    def broker_url(self) -> str:
        """The broker's URL, or several separated by `;`, with passwords."""
        if self.celery_broker_url:
            return self.celery_broker_url
        user = quote(self.amqp_user, safe="")
        password = quote(self.amqp_password.get_secret_value(), safe="")
        host = f"[{self.amqp_host}]" if ":" in self.amqp_host else self.amqp_host
        vhost = quote(self.amqp_vhost, safe="")
        return f"amqp://{user}:{password}@{host}:{self.amqp_port}/{vhost}"

    @property
    def safe_broker_url(self) -> str:
        """`broker_url` for people, without passwords."""
        return ";".join(sanitize_url(url) for url in self.broker_url.split(";"))

    @property
    def result_backend(self) -> str:
        if self.celery_result_backend:
            return self.celery_result_backend
        # Only the characters with a meaning in URLs are quoted, so that bytes that are not UTF-8 remain.
        path = re.sub(r"[%?#\s]", lambda one: quote(one[0]), str(self.state_dir / "results.sqlite3"))
        return f"db+sqlite:///{path}"

    @property
    def deletes_results(self) -> bool:
        """Whether our workers delete old results; other stores do it by themselves, or Celery does."""
        return self.result_backend.startswith(("db+sqlite", "db+postgresql"))

    @property
    def safe_result_backend(self) -> str:
        """`result_backend` for people, without password and options."""
        return without_password(self.result_backend.partition("?")[0])


@cache
def load() -> Settings:
    """Read the settings, once a process.

    Raises `ConfigError`, one line with the wrong setting and what was expected.
    """
    text = state_dir.read_env_file()
    try:
        settings = Settings(**_given(text))
    except ValidationError as error:
        raise ConfigError(_explain(error), f"fix it in the environment or in {state_dir.ENV_FILE}") from None
    _refuse_slips([*os.environ, *_written(text)])
    return settings


def names() -> tuple[set[str], set[str]]:
    """The names that are set, with or without a meaning: in the environment, and in the `.env` file."""
    return set(os.environ), set(_written(state_dir.read_env_file()))


def _written(text: str | None) -> list[str]:
    return re.findall(_WRITTEN_NAME, text or "")


def _given(text: str | None) -> dict[str, Any]:
    """The settings that are set, by attribute. Names ignore case, and an empty value counts as none.

    Without pydantic-settings, which takes as long to import as all of kombu.
    """
    written: dict[str, str | None] = {}
    if text:
        from dotenv import dotenv_values  # takes as long as Python itself

        written = dotenv_values(stream=io.StringIO(text))
    return {
        name.lower(): value
        for name, value in (*written.items(), *os.environ.items())
        if value and name.lower() in Settings.model_fields
    }


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    if name.endswith(("_url", "_password", "_backend")):  # may hold a password
        return f"{name.upper()} cannot be used: {reason}"
    got = without_password(repr(problem["input"]))  # it may be a URL in the wrong setting
    if len(got) > _SHOWN_LENGTH:
        got = f"{got[:_SHOWN_LENGTH]}…"
    return f"{name.upper()} cannot be used: {reason}, got {got}"


def _refuse_slips(names: Iterable[str]) -> None:
    known = [name.upper() for name in Settings.model_fields]
    for name in names:
        if name in _BYPASSES:
            raise ConfigError(f"the setting {name} is not supported", "set CELERY_BROKER_URL instead")
        # A name that is less like ours may belong to another program: the library PROJ has `PROJ_DATA`.
        unknown = name.startswith("PROJ_") and name not in known
        if unknown and (hint := did_you_mean(name, known)):
            raise ConfigError(f"unknown setting {name}", hint)


def without_password(url: str) -> str:
    """The URL for people. kombu's function raises for a password with a slash, and quotes the password."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:**@", url)
