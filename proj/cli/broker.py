"""`proj broker`: a private RabbitMQ node, or a cluster of them, for development and tests."""

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proj import state_dir
from proj.cli.strict_json import to_json
from proj.errors import ExitCode

if TYPE_CHECKING:
    from proj.private_node.cluster import Cluster
    from proj.private_node.guard import NodeInfo
    from proj.private_node.node import BrokerNode

#: More replicas make a quorum queue slower, and hardly safer.
_MOST_NODES: Final = 7


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
    nodes = click.option(
        "--nodes",
        type=click.IntRange(1, _MOST_NODES),
        default=1,
        show_default=True,
        help="Nodes of the broker: with 3, a cluster that survives the loss of one; each has the next ports.",
    )
    port = _port_option("--port", _default_port, "5672, or AMQP_PORT", "AMQP")
    management_port = _port_option("--management-port", 15672, True, "the management UI and API")
    metrics_port = _port_option("--metrics-port", 15692, True, "Prometheus metrics")
    return _dir_option(nodes(port(management_port(metrics_port(command)))))


def _broker(data_dir: Path, nodes: int, *ports: int) -> "BrokerNode | Cluster":
    from proj import config
    from proj.private_node.cluster import Cluster, check_folder
    from proj.private_node.node import BrokerNode

    server_dir = config.load().rabbitmq_dir
    if nodes > 1:
        return Cluster(data_dir, nodes, *ports, server_dir=server_dir)
    check_folder(data_dir, nodes)
    return BrokerNode(data_dir, *ports, server_dir=server_dir)


def _found(data_dir: Path) -> dict[str, Any]:
    """What runs in the folder, and whether it accepts connections."""
    from proj.private_node.cluster import folders
    from proj.private_node.node import answers, running

    def state(info: "NodeInfo | None") -> str:
        return "stopped" if info is None else "running" if answers(info) else "starting"

    nodes = folders(data_dir)
    infos = {folder: running(folder) for folder in nodes or [data_dir]}
    states = {folder: state(info) for folder, info in infos.items()}
    if not nodes:
        return _fields(states[data_dir], data_dir, infos[data_dir])
    running_ones = [info for info in infos.values() if info]
    of_all = set(states.values())
    return {
        "state": of_all.pop() if len(of_all) == 1 else "degraded",
        "amqp": ";".join(info.safe_url for info in running_ones) or None,
        "management": ";".join(info.management_url for info in running_ones) or None,
        "metrics": ";".join(info.metrics_url for info in running_ones) or None,
        "data": str(data_dir),
        "nodes": [
            {"name": folder.name} | _fields(states[folder], folder, info) for folder, info in infos.items()
        ],
    }


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
        if name == "nodes":
            for node in value:
                log = f", its log is {node['log']}" if node["log"] else ""
                click.echo(f"{node['name']:<11} {node['state']}{log}")
        elif value is not None:
            click.echo(f"{name:<11} {value}")


@click.group()
def broker() -> None:
    """Run a private RabbitMQ node, for development and tests.

    It needs no root, listens on localhost only, and accepts the user guest. With --nodes 3 it is a cluster
    of three, whose addresses are printed as CELERY_BROKER_URL takes them.

    Example: proj broker start
    """


@broker.command()
@_start_options
def run(data_dir: Path, nodes: int, port: int, management_port: int, metrics_port: int) -> None:
    """Run the node until Ctrl-C or SIGTERM, then stop it cleanly.

    Example: proj broker run --nodes 3 --port 0 --management-port 0 --metrics-port 0
    """

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the stop
        sys.exit(ExitCode.DONE)

    signal.signal(signal.SIGTERM, end)
    with _broker(data_dir, nodes, port, management_port, metrics_port) as broker:
        _print_lines(_found(data_dir))
        click.echo("Ctrl-C stops it.", err=True)
        broker.wait()


@broker.command()
@_start_options
def start(data_dir: Path, nodes: int, port: int, management_port: int, metrics_port: int) -> None:
    """Start the node in the background and wait until it is ready.

    Example: proj broker start --dir /tmp/broker
    """
    broker = _broker(data_dir, nodes, port, management_port, metrics_port)
    broker.start()
    broker.detach()
    _print_lines(_found(data_dir))
    click.echo(f"Stop it with: proj broker stop --dir {shlex.quote(str(data_dir))}", err=True)


@broker.command()
@_dir_option
def stop(data_dir: Path) -> None:
    """Stop the node cleanly and wait until it has ended.

    Example: proj broker stop
    """
    from proj.private_node.cluster import folders, stop_broker

    what = "cluster" if folders(data_dir) else "node"
    stopped = stop_broker(data_dir)
    click.echo(f"{f'Stopped the {what}' if stopped else f'No {what} is running'} in {data_dir}.", err=True)


@broker.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(data_dir: Path, as_json: bool) -> None:
    """Show whether the node is running, and its addresses.

    Example: proj broker status --json

    The exit code is 0 when the node, or each node of a cluster, accepts connections, else 69.
    """
    fields = _found(data_dir)
    if as_json:
        click.echo(to_json(fields))
    else:
        _print_lines(fields)
    if fields["state"] != "running":
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)
