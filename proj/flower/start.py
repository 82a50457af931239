"""How `celery -A proj flower` starts Flower: for this machine alone or behind a login, and read only.

Flower itself reads its command line, `FLOWER_…` and `flowerconfig.py`, and they win over the defaults here.
Only that command imports this module: a worker has no need of a web server.
"""

import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click
import tornado.options
from flower import command
from tornado.options import options

from proj.config import Settings
from proj.errors import ConfigError, MonitorError, ProjError
from proj.flower.application import MonitorApp
from proj.rabbitmq.management import Management

#: Milliseconds between two savings of what Flower knows: what a SIGKILL takes away.
SAVE_INTERVAL: Final = 30_000

#: Tasks that Flower keeps, the newest ones. They take 40 MB, and up to a second to be saved; meanwhile
#: Flower answers nobody.
MAX_TASKS: Final = 10_000

#: Workers that Flower keeps. Every start of a worker counts as a new one, since its name is unique.
MAX_WORKERS: Final = 1_000

#: Seconds for which a worker that has ended is shown, and is in the metrics.
SHOW_OFFLINE: Final = 3_600

_LOGIN_HINT: Final = "set FLOWER_BASIC_AUTH=USER:PASSWORD"


def install(settings: Settings) -> None:
    """Let the `flower` command of this process start our Flower, with our defaults."""
    for name, value in defaults(settings).items():
        setattr(options, name, value)
    # Its warnings tell that no worker has answered, in four lines; the page of the workers shows it.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    # Flower 2.2.0 has no extension point for these two; `test_flower_alone` tells when they can go.
    command.Flower = _Checked
    command.flower.callback = _in_one_line(command.flower.callback)


def defaults(settings: Settings) -> dict[str, Any]:
    """Flower's options, where ours differ from Flower's."""
    return {
        # Flower listens on every address, and asks for no login.
        "address": "127.0.0.1",
        # To stop workers or to revoke tasks must be asked for.
        "read_only": True,
        # Flower learns from events only: without a file, a restart forgets every task.
        "persistent": True,
        "db": str(settings.state_dir / "flower" / "state"),
        "state_save_interval": SAVE_INTERVAL,
        "max_tasks": MAX_TASKS,
        "max_workers": MAX_WORKERS,
        "purge_offline_workers": SHOW_OFFLINE,
        # Flower guesses port 15672 of the broker's host.
        "broker_api": Management.from_settings(settings).api_url,
    }


class _Checked(MonitorApp):
    """The application, which does not start with options that would harm."""

    def __init__(self, options: Any, **settings: Any) -> None:
        check_login(options)
        if options.persistent:
            check_state_folder(Path(options.db).parent)
        super().__init__(options=options, **settings)

    def start_http_server(self) -> Any:
        """Listen. Raises `MonitorError` when that cannot be."""
        try:
            return super().start_http_server()
        except OSError as error:
            at = self.options
            place = at.unix_socket or f"port {at.port} of {at.address or 'all addresses'}"
            raise MonitorError(
                f"Flower cannot listen on {place}: {error.strerror}",
                "choose another port with --port, such as --port=5556; 0 is a free one",
            ) from None


def check_login(options: Any) -> None:
    """Raise `ConfigError` when others could see, or foreign web pages could do, what needs a login."""
    for login in options.basic_auth or ():
        user, _, password = login.partition(":")
        # Flower 2.2.0 cannot compare other characters: it would answer 500 to everybody.
        if not (user and password and login.isascii()):
            raise ConfigError("FLOWER_BASIC_AUTH, --basic-auth: expected USER:PASSWORD in ASCII")
    if options.basic_auth or options.auth:
        return
    if not options.unix_socket and not _is_loopback(options.address):
        raise ConfigError(
            f"Flower needs a login when it listens on {options.address or 'all addresses'}",
            f"{_LOGIN_HINT}, or leave out --address",
        )
    if not options.read_only:
        # Any page that a browser of this machine shows could send a form to it.
        raise ConfigError("Flower needs a login when it is not read only", _LOGIN_HINT)


def check_state_folder(folder: Path) -> None:
    """Make the folder of Flower's state. Raises `ConfigError` when nothing can be written there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"Flower's state folder {folder} cannot be used: {error.strerror}",
            "set PROJ_STATE_DIR to another one, or start Flower with --persistent=false",
        ) from None


def _is_loopback(address: str) -> bool:
    try:
        found = socket.getaddrinfo(address or None, 0, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"Flower cannot listen on {address}: {error.strerror}") from None
    return all(ip_address(where[0]).is_loopback for *_, where in found)


def _in_one_line(callback: Callable[..., None]) -> Callable[..., None]:
    @wraps(callback)
    def start(*args: Any, **kwargs: Any) -> None:
        try:
            _refuse_slips(kwargs["tornado_argv"])
            callback(*args, **kwargs)
        except (ProjError, ValueError, tornado.options.Error) as error:
            problem = error if isinstance(error, ProjError) else ConfigError(f"an option of Flower: {error}")
            click.echo(f"Error: {problem}", err=True)
            sys.exit(int(problem.exit_code))

    return start


def _refuse_slips(arguments: tuple[str, ...]) -> None:
    # Flower passes over what it does not know: --basic-auht would start it without a login.
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("-"):  # may be a password
            raise ConfigError("an option of Flower has its value behind '='", "such as --port=5556")
        if not command.is_flower_option(argument):
            known = [f"--{option.replace('_', '-')}" for option in options]
            nearest = get_close_matches(name.replace("_", "-"), known, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else None
            raise ConfigError(f"Flower has no option {name}", hint)
