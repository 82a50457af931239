"""RabbitMQ's scripts, with only the plugins that tests use: the fewer a node finds, the faster it starts.

It reads the settings of all of them, and looks for each module in all their folders: a fifth of its start. To
load a thousand modules one by one is a half: where a node has run, the next ones load them of one file.

Erlang schedules on one processor there: two would cost a tenth more, to wake each other.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from proj.private_node.node import BrokerNode, find_server_dir
from tests.lib.erlang import evaluate

#: Plugins of RabbitMQ that stay, besides the libraries that it consists of.
_NEEDED: Final = ("management", "management_agent", "prelaunch", "prometheus", "web_dispatch")

#: For the pages on migration. The first needs the last on RabbitMQ 4.3, where else no node starts.
_SHOVEL: Final = ("shovel", "shovel_management", "amqp_client")

#: Beside the scripts: the modules that a node has loaded.
_MODULES: Final = "modules"

#: How the server's script ends, and how it ends there. In the environment it would also be for the Erlang
#: that RabbitMQ starts to see whether there is an epmd.
_EXEC: Final = "exec erl "
_LOADING: Final = f"""modules=$(dirname "$0")/{_MODULES}
    [ -e "$modules" ] || modules=
    load="{{ok, Read}} = file:read_file('$modules'), ok = code:atomic_load(
        [All || {{Name, _, _}} = All <- binary_to_term(Read), not erlang:module_loaded(Name)])."
    exec erl +S 1:1 ${{modules:+-eval "$load"}} """

#: Writes them, those of files: the others are in every Erlang. Few are refused, which run code when they are
#: loaded. The attributes say what RabbitMQ is to start.
_REMEMBER: Final = """
    All = [{{Name, File, Beam}} || {{Name, File}} <- code:all_loaded(), is_list(File),
        {{ok, Read}} <- [file:read_file(File)],
        {{ok, {{_, Beam}}}} <- [beam_lib:strip(Read, ["Attr", "CInf"])]],
    {{error, Refused}} = code:prepare_loading(All),
    ok = file:write_file("{file}", term_to_binary(lists:foldl(
        fun({{Name, _}}, Left) -> lists:keydelete(Name, 1, Left) end, All, Refused)))
"""


def put_on_path(folder: Path) -> None:
    """Let this process, and what it starts, find RabbitMQ there. Without one, raises `BrokerNodeError`."""
    scripts = folder / "sbin"
    if not scripts.exists() and not _make(folder):
        return  # a release that is laid out otherwise
    os.environ["PATH"] = os.pathsep.join([str(scripts), os.environ.get("PATH", os.defpath)])


def _make(folder: Path) -> bool:
    scripts = find_server_dir()
    home = scripts.parent
    if not {"plugins", "escript"} <= set(os.listdir(home)):
        return False
    shutil.copytree(scripts, folder / "sbin")
    server = folder / "sbin/rabbitmq-server"
    server.write_text(server.read_text().replace(_EXEC, _LOADING))
    (folder / "escript").symlink_to(home / "escript")
    (folder / "plugins").mkdir()
    for plugin in (home / "plugins").iterdir():
        name = plugin.name.partition("-")[0]
        if name.removeprefix("rabbitmq_") in (name, *_NEEDED, *_SHOVEL):
            (folder / "plugins" / plugin.name).symlink_to(plugin)
    return True


def remember_modules(node: BrokerNode) -> None:
    """Let the nodes that start from now on load at once what this one, the first, has loaded."""
    scripts = find_server_dir()
    modules = scripts / _MODULES
    if _LOADING in (scripts / "rabbitmq-server").read_text() and not modules.exists():
        new = modules.with_name(f"{_MODULES}-{node.pid}")
        evaluate(node, _REMEMBER.format(file=new))
        new.replace(modules)
