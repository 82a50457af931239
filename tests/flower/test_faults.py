"""What stops Flower from starting, in one line each, and what does not stop it."""

import shelve
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from proj.errors import ExitCode
from tests.lib.bundle import Bundle
from tests.lib.flower import Flower
from tests.lib.proxy import Proxy
from tests.lib.waiting import PATIENCE, eventually

pytestmark = pytest.mark.used_vhost

#: What saves the state, when a file is there.
SLOW_SAVE = """log.warning("it saves")
            while not os.path.exists("{}"):
                time.sleep(0.02)
            super().save_state()"""

Start = Callable[..., Flower]


def refused(bundle: Bundle, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code and the only line of a Flower that does not start."""
    done = bundle.celery("flower", *options, env=env)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return done.returncode, line


def test_an_address_that_others_reach_needs_a_login(bundle: Bundle) -> None:
    """All addresses are what Flower's own default means."""
    code, line = refused(bundle, "--address=0.0.0.0", "--port=0")
    assert code == ExitCode.USAGE
    assert line.startswith("Error: Flower needs a login when it listens on 0.0.0.0 (set FLOWER_BASIC_AUTH=")


@pytest.mark.parametrize("chosen", ["option", "environment", "flowerconfig.py"])
def test_what_the_user_chose_wins(bundle: Bundle, chosen: str) -> None:
    """By option, environment or file; the choice tells by what it needs."""
    if chosen == "flowerconfig.py":
        (bundle.folder / chosen).write_text("read_only = False\n")
    code, line = refused(
        bundle,
        *(["--read-only=false"] if chosen == "option" else []),
        env={"FLOWER_READ_ONLY": "false"} if chosen == "environment" else None,
    )
    assert code == ExitCode.USAGE
    assert line.startswith("Error: Flower needs a login when it is not read-only")


def test_a_login_in_the_file_is_enough(bundle: Bundle, flower: Start) -> None:
    """The address on the command line is judged when all has been read."""
    (bundle.folder / "flowerconfig.py").write_text('basic_auth = ["anna:s3cret"]\n')
    assert flower("--address=0.0.0.0").get("/tasks").status == 401


def test_only_flower_loads_flower(bundle: Bundle) -> None:
    """A worker, or a program that publishes, has no need of a web server."""
    code = "import json, sys, proj.celery; print(json.dumps([*{'flower', 'tornado'} & sys.modules.keys()]))"
    assert bundle.python(code, forked=False) == []


def test_a_port_that_is_taken_is_named(bundle: Bundle) -> None:
    """With the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, line = refused(bundle, f"--port={port}")
    assert code == ExitCode.UNREACHABLE
    assert line.startswith(f"Error: Flower cannot listen on port {port} of 127.0.0.1: Address already in use")
    assert "--port=" in line


def test_a_state_folder_that_cannot_be_written_is_named(bundle: Bundle) -> None:
    """With the setting that names another."""
    (bundle.folder / "state").write_text("a file")
    code, line = refused(bundle, "--port=0")
    assert code == ExitCode.USAGE
    assert f"{bundle.folder}/state/flower cannot be used: Not a directory (set PROJ_STATE_DIR" in line


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--basic-auht=anna:s3cret"], "Flower has no option --basic-auht (did you mean --basic-auth?)"),
        (["--basic-auth", "anna:s3cret"], "options of Flower need '=' before the value"),
        (["--port=five"], "an option of Flower: invalid literal for int() with base 10: 'five'"),
    ],
)
def test_an_option_with_a_slip_is_refused(bundle: Bundle, options: list[str], problem: str) -> None:
    """Flower would pass over it, and start without the login, or show a traceback."""
    code, line = refused(bundle, *options)
    assert code == ExitCode.USAGE
    assert line.startswith(f"Error: {problem}")
    assert "s3cret" not in line


def test_a_state_that_cannot_be_read_is_kept_beside(bundle: Bundle, flower: Start) -> None:
    """Flower starts and says so, and goes on when it cannot save any more."""
    folder = bundle.folder / "state/flower"
    folder.mkdir(parents=True)
    with shelve.open(str(folder / "state")) as state:
        state["events"] = "something"
    for path in folder.iterdir():
        path.write_bytes(b"\xff no state")

    monitor = flower("--state-save-interval=2000")  # milliseconds
    monitor.says("moving it aside and starting fresh")
    assert {path.read_bytes() for path in folder.glob("*.corrupt")} == {b"\xff no state"}
    eventually("a new state is saved", lambda: readable(folder / "state"))

    # Between two saves: Python's own dbm prints a traceback when its file goes away while it is open.
    last = folder.stat().st_mtime_ns
    eventually("a save ends", lambda: folder.stat().st_mtime_ns != last and not [*folder.glob("*.tmp*")])
    folder.rename(bundle.folder / "away")
    monitor.says("the state cannot be saved")
    assert monitor.get("/tasks").status == 200
    assert "Traceback" not in monitor.text()


def readable(path: Path) -> bool:
    try:
        with shelve.open(str(path), "r") as state:
            return "events" in state
    except Exception:  # not there yet, or half there
        return False


@pytest.mark.long
def test_a_broker_that_is_down_is_waited_for(bundle: Bundle, flower: Start) -> None:
    """At the start and later; SIGTERM, once or again, ends Flower meanwhile too, with its state saved."""
    gate = bundle.folder / "gate"
    bundle.switch_off("flower/application.py", "super().save_state()", SLOW_SAVE.format(gate))
    bundle.switch_off("flower/application.py", "RETRY_INTERVAL: Final = 5", "RETRY_INTERVAL: Final = 0.2")
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        port = place.getsockname()[1]
        url = bundle.url_at(port)
        monitor = flower("--state-save-interval=600000", env={"CELERY_BROKER_URL": url})
        monitor.says("no events from the broker, retrying: [Errno 111] Connection refused")
        assert monitor.get("/tasks").status == 200

        with Proxy(bundle.node.info.port, port):
            monitor.hears_events()
            bundle.worker("-n", "w@host").ready()
            eventually("the worker is known", lambda: "w@host" in monitor.get("/workers?json=1").text)

        # By now one of Flower's threads waits for the broker, and would not let Python end.
        again = "no events from the broker, retrying: [Errno 111]"
        eventually("the broker is missed", lambda: monitor.text().count(again) == 2)
        monitor.process.terminate()
        monitor.says("it saves")
        for number in (signal.SIGTERM, signal.SIGINT):
            monitor.process.send_signal(number)
        gate.touch()
        assert monitor.process.wait(PATIENCE) == 0
    assert "w@host" in flower().get("/workers?json=1").text
    assert "Traceback" not in monitor.text()
