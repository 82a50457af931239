"""RabbitMQ's scripts, with only the plugins that tests use: the fewer a node finds, the faster it starts.

It reads the settings of all of them, and looks for each module in all their folders: a fifth of its start.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from proj.private_node.node import find_server_dir

#: Plugins of RabbitMQ that stay, besides the libraries that it consists of.
_NEEDED: Final = ("management", "management_agent", "prelaunch", "prometheus", "web_dispatch")

#: For the pages on migration.
_SHOVEL: Final = ("shovel", "shovel_management")


def put_on_path(folder: Path) -> None:
    """Let this process, and what it starts, find RabbitMQ there. Without one, raises `BrokerNodeError`."""
    scripts = find_server_dir()
    home = scripts.parent
    if not {"plugins", "escript"} <= set(os.listdir(home)):
        return  # a release that is laid out otherwise
    shutil.copytree(scripts, folder / "sbin")
    (folder / "escript").symlink_to(home / "escript")
    (folder / "plugins").mkdir()
    for plugin in (home / "plugins").iterdir():
        name = plugin.name.partition("-")[0]
        if name.removeprefix("rabbitmq_") in (name, *_NEEDED, *_SHOVEL):
            (folder / "plugins" / plugin.name).symlink_to(plugin)
    os.environ["PATH"] = os.pathsep.join([str(folder / "sbin"), os.environ.get("PATH", os.defpath)])
