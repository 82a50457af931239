"""On what it was measured: the releases of all that takes part, and the machine."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from typing import Final

from benchmarks.broker import Broker
from benchmarks.program import PEERS

#: The peers, by the names of their packages.
PACKAGES: Final = ("celery", "pika", "amqp", "taskiq", "taskiq-aio-pika", "dramatiq")

#: What ours is made of, as far as it decides.
OURS: Final = ("celery", "amqp", "SQLAlchemy")


def versions(broker: Broker) -> dict[str, str]:
    """By name, in the order in which they are shown."""
    code = f"""
import json
from importlib.metadata import version
print(json.dumps({{name: version(name) for name in {PACKAGES!r}}}))
"""
    answer = subprocess.run([PEERS, "-c", code], capture_output=True, text=True, check=True).stdout
    return {
        "CPUs": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "RabbitMQ": broker.version,
        **{f"proj's {name}": version(name) for name in OURS},
        **json.loads(answer),
    }
