"""`proj broker`: a private RabbitMQ node, for development and tests."""

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proj import state_dir
from proj.cli.strict_json import to_json
from proj.errors import ExitCode

if TYPE_CHECKING:
    from proj.private_node.guard import NodeInfo
    from proj.private_node.node import BrokerNode


def _default_dir() -> Path:
    from proj import config

    return config.load().state_dir / "broker"


def _default_port() -> int:
    from proj import config

    return config.load().amqp_port


def _absolute(_ctx: click.Context, _param: click.Parameter, folder: Path) -> Path:
    """Expand `~` here: shells leave it alone in --dir=~/node."""
    try:
        return Path(state_dir.absolute(str(folder)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_dir_option = click.option(
    "--dir",
    "data_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_dir,
    callback=_absolute,
    show_default="broker in PROJ_STATE_DIR",
    help="Folder for the node's data, settings and log.",
)


def _port_option(
    name: str, default: int | Callable[[], int], shown: str | bool, use: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        name,
        type=click.IntRange(0, 65535),
        default=default,
        show_default=shown,
        help=f"Port for {use}; 0 picks a free one.",
    )


def _start_options(command: Callable[..., Any]) -> Callable[..., Any]:
    port = _port_option("--port", _default_port, "5672, or AMQP_PORT", "AMQP")
    management_port = _port_option("--management-port", 15672, True, "the management UI and API")
    metrics_port = _port_option("--metrics-port", 15692, True, "Prometheus metrics")
    return _dir_option(port(management_port(metrics_port(command))))


def _node(data_dir: Path, *ports: int) -> "BrokerNode":
    from proj import config
    from proj.private_node.node import BrokerNode

    return BrokerNode(data_dir, *ports, server_dir=config.load().rabbitmq_dir)


def _fields(state: str, data_dir: Path, info: "NodeInfo | None") -> dict[str, Any]:
    return {
        "state": state,
        "amqp": info and info.safe_url,
        "management": info and info.management_url,
        "metrics": info and info.metrics_url,
        "data": str(data_dir),
        "log": info and str(info.log),
        "pid": info and info.pid,
    }


def _print_lines(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if value is not None:
            click.echo(f"{name:<11} {value}")


@click.group()
def broker() -> None:
    """Run a private RabbitMQ node, for development and tests.

    It needs no root, listens on localhost only, and accepts the user guest.

    Example: proj broker start
    """


@broker.command()
@_start_options
def run(data_dir: Path, port: int, management_port: int, metrics_port: int) -> None:
    """Run the node until Ctrl-C or SIGTERM, then stop it cleanly.

    Example: proj broker run --port 0 --management-port 0 --metrics-port 0
    """

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the stop
        sys.exit(ExitCode.DONE)

    signal.signal(signal.SIGTERM, end)
    with _node(data_dir, port, management_port, metrics_port) as node:
        _print_lines(_fields("running", data_dir, node.info))
        click.echo("Ctrl-C stops it.", err=True)
        node.wait()


@broker.command()
@_start_options
def start(data_dir: Path, port: int, management_port: int, metrics_port: int) -> None:
    """Start the node in the background and wait until it is ready.

    Example: proj broker start --dir /tmp/broker
    """
    node = _node(data_dir, port, management_port, metrics_port)
    node.start()
    node.detach()
    _print_lines(_fields("running", data_dir, node.info))
    click.echo(f"Stop it with: proj broker stop --dir {shlex.quote(str(data_dir))}", err=True)


@broker.command()
@_dir_option
def stop(data_dir: Path) -> None:
    """Stop the node cleanly and wait until it has ended.

    Example: proj broker stop
    """
    from proj.private_node.node import stop_running

    stopped = stop_running(data_dir)
    click.echo(f"{'Stopped the node' if stopped else 'No node is running'} in {data_dir}.", err=True)


@broker.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(data_dir: Path, as_json: bool) -> None:
    """Show whether the node is running, and its addresses.

    Example: proj broker status --json

    The exit code is 0 when the node accepts connections, else 69.
    """
    from proj.private_node.node import answers, running

    info = running(data_dir)
    state = "stopped" if info is None else "running" if answers(info) else "starting"
    fields = _fields(state, data_dir, info)
    if as_json:
        click.echo(to_json(fields))
    else:
        _print_lines(fields)
    if state != "running":
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)
