"""`celery -A proj flower`: read-only, and either local or behind a login.

Flower reads its command line, `FLOWER_…` and `flowerconfig.py`, which override the defaults here. Only that
command imports this module: a worker needs no web server.
"""

import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click
import tornado.options
from flower import command
from tornado.options import options

from proj.config import Settings
from proj.errors import ConfigError, MonitorError, ProjError, did_you_mean
from proj.flower.application import MonitorApp
from proj.rabbitmq.management import Management

#: Milliseconds between two saves of Flower's state: what a SIGKILL loses.
SAVE_INTERVAL: Final = 30_000

#: Tasks that Flower keeps, the newest ones. They take 40 MB, and up to a second to save, in which Flower does
#: not answer.
MAX_TASKS: Final = 10_000

#: Workers that Flower keeps. Each start of a worker counts, since its name is unique.
MAX_WORKERS: Final = 1_000

#: Seconds for which an ended worker stays on the page and in the metrics.
SHOW_OFFLINE: Final = 3_600

_LOGIN_HINT: Final = "set FLOWER_BASIC_AUTH=USER:PASSWORD"


def install(settings: Settings) -> None:
    """Make the `flower` command of this process start our application, with our defaults."""
    for name, value in defaults(settings).items():
        setattr(options, name, value)
    # Its warnings say in four lines that no worker answered, which the page of the workers shows.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    # upstream: not reported; remove when Flower has a setting for its application, and exits in one line
    command.Flower = _SafeFlower
    command.flower.callback = _with_one_line_errors(command.flower.callback)


def defaults(settings: Settings) -> dict[str, Any]:
    """Our values of Flower's options, where they differ from Flower's."""
    return {
        # Flower's default is every address, without a login.
        "address": "127.0.0.1",
        # Stopping workers and revoking tasks is opt-in.
        "read_only": True,
        # Flower learns from events only: without a file, a restart loses every task.
        "persistent": True,
        "db": str(settings.state_dir / "flower" / "state"),
        "state_save_interval": SAVE_INTERVAL,
        "max_tasks": MAX_TASKS,
        "max_workers": MAX_WORKERS,
        "purge_offline_workers": SHOW_OFFLINE,
        # Flower's default is port 15672 of the broker's host.
        "broker_api": Management.from_settings(settings).api_url,
    }


class _SafeFlower(MonitorApp):
    """The application, which refuses to start with unsafe options."""

    def __init__(self, options: Any, **settings: Any) -> None:
        check_login(options)
        if options.persistent:
            check_state_folder(Path(options.db).parent)
        super().__init__(options=options, **settings)

    def start_http_server(self) -> Any:
        """Start listening. Raises `MonitorError` when the address cannot be used."""
        try:
            return super().start_http_server()
        except OSError as error:
            at = self.options
            place = at.unix_socket or f"port {at.port} of {at.address or 'all addresses'}"
            raise MonitorError(
                f"Flower cannot listen on {place}: {error.strerror}",
                "choose another port, for example --port=5556; 0 picks a free one",
            ) from None


def check_login(options: Any) -> None:
    """Raise `ConfigError` when other users or web pages could use a Flower that has no login."""
    for login in options.basic_auth or ():
        user, _, password = login.partition(":")
        # Flower 2.2.0 cannot compare other characters: it would answer every request with 500.
        if not (user and password and login.isascii()):
            raise ConfigError("FLOWER_BASIC_AUTH, --basic-auth: expected USER:PASSWORD in ASCII")
    if options.basic_auth or options.auth:
        return
    if not options.unix_socket and not _is_loopback(options.address):
        raise ConfigError(
            f"Flower needs a login when it listens on {options.address or 'all addresses'}",
            f"{_LOGIN_HINT}, or remove --address",
        )
    if not options.read_only:
        # Any web page in a browser on this machine could send a form to it.
        raise ConfigError("Flower needs a login when it is not read-only", _LOGIN_HINT)


def check_state_folder(folder: Path) -> None:
    """Create the folder of Flower's state. Raises `ConfigError` when it is not writable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"Flower's state folder {folder} cannot be used: {error.strerror}",
            "set PROJ_STATE_DIR to another folder, or start Flower with --persistent=false",
        ) from None


def _is_loopback(address: str) -> bool:
    try:
        found = socket.getaddrinfo(address or None, 0, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"Flower cannot listen on {address}: {error.strerror}") from None
    return all(ip_address(where[0]).is_loopback for *_, where in found)


def _with_one_line_errors(callback: Callable[..., None]) -> Callable[..., None]:
    @wraps(callback)
    def start(*args: Any, **kwargs: Any) -> None:
        try:
            _refuse_unknown_options(kwargs["tornado_argv"])
            callback(*args, **kwargs)
        except (ProjError, ValueError, tornado.options.Error) as error:
            problem = error if isinstance(error, ProjError) else ConfigError(f"an option of Flower: {error}")
            click.echo(f"Error: {problem}", err=True)
            sys.exit(int(problem.exit_code))

    return start


def _refuse_unknown_options(arguments: tuple[str, ...]) -> None:
    # Flower ignores unknown options: --basic-auht would start it without a login.
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("-"):  # may be a password, so it is not shown
            raise ConfigError("options of Flower need '=' before the value", "for example --port=5556")
        if not command.is_flower_option(argument):
            known = [f"--{option.replace('_', '-')}" for option in options]
            hint = did_you_mean(name.replace("_", "-"), known, likeness=0.6)
            raise ConfigError(f"Flower has no option {name}", hint)
