"""On what a run took place: the releases of all that takes part, and the machine."""

import os
import platform
from importlib.metadata import version
from typing import Final

import psutil

from proj.private_node.node import BrokerNode
from tests.lib.erlang import evaluate

_PACKAGES: Final = ("celery", "kombu", "amqp", "SQLAlchemy")


#: What the brokers of this run say of themselves.
_of_brokers: dict[str, str] = {}


def note(node: BrokerNode) -> None:
    """Note the releases of a node while it runs."""
    _of_brokers["RabbitMQ"] = evaluate(node, "rabbit_misc:version()").strip('"')
    _of_brokers["Erlang"] = evaluate(node, "erlang:system_info(otp_release)").strip('"')


def versions() -> dict[str, str]:
    return {
        **_of_brokers,
        "Python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{os.cpu_count()} CPUs, {memory:.0f} GiB of memory, {kernel}"
