"""Whatever is wrong: one line that says what, which and what to do, its exit code, and nothing half done."""

import socket
from functools import partial
from pathlib import Path

import pytest

from tests.lib.bundle import Bundle
from tests.lib.refusal import refuses

#: A command that would enqueue, were nothing wrong.
ENQUEUE = ("enqueue", "add", "2", "3")

_refuses = partial(refuses, command=ENQUEUE)


def _url(bundle: Bundle, user: str = "guest:guest", vhost: str | None = None) -> str:
    return f"amqp://{user}@127.0.0.1:{bundle.node.info.port}/{vhost or bundle.vhost}"


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_broker_down(bundle: Bundle, closed_port: int) -> None:
    """Nobody listens there: the address, and how to start a broker."""
    url = f"amqp://guest:s3cret@127.0.0.1:{closed_port}"
    _refuses(bundle, 69, f"127.0.0.1:{closed_port}", "proj broker start", CELERY_BROKER_URL=url)


def test_broker_that_takes_connections_and_says_nothing(bundle: Bundle) -> None:
    """A port that something else listens at is given up in the time that a publish has."""
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "2"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        _refuses(bundle, 69, "does not answer in time", CELERY_BROKER_URL=f"amqp://127.0.0.1:{port}")


def test_wrong_password(bundle: Bundle) -> None:
    """The classic ACCESS_REFUSED: for whom, and never the password."""
    url = _url(bundle, "guest:s3cret")
    _refuses(bundle, 69, "refused user 'guest' and its password", "AMQP_PASSWORD", CELERY_BROKER_URL=url)


def test_wrong_password_in_parts(bundle: Bundle) -> None:
    """The same when the address is given in parts, with a password that a URL would have to quote."""
    _refuses(
        bundle,
        69,
        "refused user 'gu/est' and its password",
        CELERY_BROKER_URL="",
        AMQP_HOST="127.0.0.1",
        AMQP_PORT=str(bundle.node.info.port),
        AMQP_USER="gu/est",
        AMQP_PASSWORD="s3cret@/%",
    )


def test_virtual_host_that_does_not_exist(bundle: Bundle) -> None:
    """Which virtual host."""
    _refuses(bundle, 69, "no virtual host 'nowhere'", CELERY_BROKER_URL=_url(bundle, vhost="nowhere"))


def test_host_that_does_not_resolve(bundle: Bundle) -> None:
    """Which host."""
    url = "amqp://guest:s3cret@nohost.invalid"
    # What a name server may take, in seconds, is less than connecting may.
    quick = "timeout:1 attempts:1"
    _refuses(bundle, 69, "'nohost.invalid' cannot be resolved", CELERY_BROKER_URL=url, RES_OPTIONS=quick)


def test_queue_with_other_arguments(bundle: Bundle) -> None:
    """The 406 names the queue and the argument, and no message goes anywhere."""
    with bundle.channel() as channel:
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False)
    _refuses(bundle, 69, "queue 'proj.tasks'", "x-dead-letter-exchange")
    assert bundle.depth("proj.tasks") == 0


@pytest.mark.parametrize(
    ("command", "code", "parts"),
    [
        (["task", "proj.tasks.ad", "2", "3"], 65, ["'proj.tasks.ad'", "did you mean proj.tasks.add?"]),
        (["task", "nothing.like.it"], 65, ["known tasks: proj.tasks.add, proj.tasks.sleep_dots"]),
        (["task", "proj.tasks.add", '"2"', "3"], 65, ["argument x: expected a number, got '2'"]),
        (["task", "proj.tasks.add", "true", "3"], 65, ["argument x: expected a number, got True"]),
        (["task", "proj.tasks.add", "1", "NaN"], 65, ["argument y: expected a number, got nan"]),
        (["task", "proj.tasks.sleep_dots", "4"], 65, ["argument text", "got 4"]),
        (["task", "proj.tasks.add", "2"], 65, ["argument y is missing", "proj.tasks.add(x, y)"]),
        (["task", "proj.tasks.add", "1", "2", "3"], 65, ["too many arguments, 3 is left over"]),
        (["task", "proj.tasks.add", "1", "--kwargs", '{"z": 2}'], 65, ["argument y is missing"]),
        (["task", "proj.tasks.add", "1", "2", "--kwargs", '{"z": 2}'], 65, ["no argument z"]),
        (["task", "proj.tasks.add", "1", "2", "--kwargs", "[]"], 65, ["--kwargs", "JSON object"]),
        (
            ["task", "proj.tasks.add", "--kwargs", "{x:1}"],
            65,
            ["--kwargs is not a JSON object: {x:1}", 'such as {"x": 1}'],
        ),
        (["task", "proj.tasks.sleep_dots", "hello"], 65, ["not JSON: hello", "quotes"]),
        (["task", "proj.tasks.add", "1", '{"a": 1, "a": 2}'], 65, ['a key twice: "a"']),
        (["task", "proj.tasks.add", "1", "--kwargs", '{"y": 1, "y": 2}'], 65, ['a key twice: "y"']),
        (["add", "2", "three"], 65, ["argument y: expected a number, got 'three'"]),
        (["add", "2"], 65, ["argument y is missing"]),
        (["add", "1", "2", "3"], 65, ["too many arguments"]),
        (["add"], 2, ["two numbers or --random", "proj enqueue add --help"]),
        (["add", "1", "2", "--random"], 2, ["two numbers or --random"]),
        (["add", "1", "2", "--countdown", "-1"], 2, ["--countdown", "-1.0"]),
        (["add", "1", "2", "--countdown", "nan"], 65, ["countdown", "nan"]),
        (["add", "1", "2", "--countdown", "1e10"], 65, ["longer than the maximum of 268435455 s"]),
        (["add", "1", "2", "--eta", "2020-01-01"], 2, ["--eta", "2020-01-01", "is in the past"]),
        (["add", "1", "2", "--eta", "soon"], 2, ["--eta", "'soon' is not a time"]),
        (["add", "1", "2", "--eta", "2999-01-01", "--countdown", "1"], 2, ["cannot be combined"]),
        (["add", "1", "2", "--expires", "0"], 2, ["--expires", "0.0"]),
        (
            ["add", "1", "2", "--expires", "inf"],
            65,
            ["expires is inf s ahead, more than the maximum of 315360000 s"],
        ),
        (
            ["add", "1", "2", "--countdown", "3", "--expires", "1"],
            65,
            ["proj.tasks.add: it expires before it may start (delay 3 s, expires 1 s)"],
        ),
        (["add", "1", "2", "--count", "0"], 2, ["--count", "0"]),
        (["add", "1", "2", "--count", "2", "--id", "x"], 2, ["--id", "--count"]),
        (["add", "1", "2", "--timeout", "2"], 2, ["--timeout needs --wait"]),
        (["add", "1", "2", "--wait", "--timeout", "nan"], 2, ["--timeout needs a number"]),
        (["add", "1", "2", "--id", ""], 65, ["an id is 1 to 155 printable characters"]),
        (["add", "1", "2", "--queue", ""], 65, ["queue must be the name of a queue, got ''"]),
        (["add", "1", "2", "--id", "x" * 156], 65, ["an id is 1 to 155 printable characters"]),
        (["sleep-dots", "--nope"], 2, ["--nope", "proj enqueue sleep-dots --help"]),
        (["nope"], 2, ["nope", "proj enqueue --help"]),
    ],
)
def test_wrong_command_enqueues_nothing(
    bundle: Bundle, command: list[str], code: int, parts: list[str]
) -> None:
    """A wrong command ends with the exit code of its kind, before anything is sent or even declared."""
    _refuses(bundle, code, *parts, command=("enqueue", *command))
    assert bundle.of_vhost("queues") == []


@pytest.mark.parametrize("task_id", ["", "x" * 300, "a\nb"], ids=ascii)
def test_result_of_what_is_no_id(bundle: Bundle, task_id: str) -> None:
    """No message can have it, so it is refused as `--id` refuses it, and not called unknown."""
    _refuses(bundle, 65, "an id is 1 to 155 printable characters", command=("result", task_id))


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("AMQP_PORT", "many", ["AMQP_PORT", "integer", "got 'many'"]),
        ("AMQP_PORT", "99999", ["AMQP_PORT", "65535", "got '99999'"]),
        ("PROJ_LOG_FORMAT", "yaml", ["PROJ_LOG_FORMAT", "'text' or 'json'", "got 'yaml'"]),
        ("PROJ_SHUTDOWN_GRACE", "inf", ["PROJ_SHUTDOWN_GRACE", "less than or equal to", "got 'inf'"]),
        ("PROJ_PUBLISH_TIMEOUT", "-1", ["PROJ_PUBLISH_TIMEOUT", "greater than 0", "got '-1'"]),
        (
            "PROJ_TASK_TIME_LIMIT",
            "1800",
            ["PROJ_TASK_TIME_LIMIT", "1800", "consumer_timeout", "PROJ_CONSUMER_TIMEOUT"],
        ),
        ("PROJ_TASK_SOFT_TIME_LIMIT", "1500", ["must be below PROJ_TASK_TIME_LIMIT", "1500"]),
        (
            "PROJ_PUBLISH_TIMEOT",
            "5",
            ["unknown setting PROJ_PUBLISH_TIMEOT", "did you mean PROJ_PUBLISH_TIMEOUT?"],
        ),
        ("CELERY_BROKER_URL", "amqp://u:s3cret@host:port", ["CELERY_BROKER_URL", "expected URLs such as"]),
        ("CELERY_BROKER_URL", "redis://u:s3cret@host", ["CELERY_BROKER_URL", "expected URLs such as"]),
        ("AMQP_HOST", ".svc.local", ["AMQP_HOST", "expected a host name", "got '.svc.local'"]),
        ("CELERY_BROKER_READ_URL", "amqp://elsewhere", ["CELERY_BROKER_READ_URL", "CELERY_BROKER_URL"]),
        ("CELERY_RESULT_BACKEND", "nonsense", ["CELERY_RESULT_BACKEND", "expected a URL"]),
    ],
)
def test_wrong_setting(bundle: Bundle, name: str, value: str, parts: list[str]) -> None:
    """A wrong setting ends every program that reads it, with what was expected."""
    refuses(bundle, 2, *parts, command=ENQUEUE, **{name: value})

    worker = bundle.worker(env={name: value})
    assert worker.ends() == 2
    assert worker.text().startswith("Error: ")
    assert worker.text().count("\n") == 1


def _as_folder(path: Path) -> None:
    path.mkdir()


def _as_bytes(path: Path) -> None:
    path.write_bytes(b"AMQP_PORT=\xff\xfe")


def _as_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere-to-be-found")


@pytest.mark.parametrize("make", [_as_folder, _as_bytes, _as_dangling_link])
def test_env_file_that_cannot_be_read(bundle: Bundle, make: object) -> None:
    """A `.env` that is no readable text is told, not skipped."""
    assert callable(make)
    make(bundle.folder / ".env")
    _refuses(bundle, 2, str(bundle.folder / ".env"), "cannot be read")


def test_wrong_value_in_the_env_file(bundle: Bundle) -> None:
    """A `.env` is read, and its values are checked like the others."""
    (bundle.folder / ".env").write_text("PROJ_MAX_RETRIES=soon\n")
    _refuses(bundle, 2, "PROJ_MAX_RETRIES", "got 'soon'")


def test_debug_shows_the_traceback(bundle: Bundle, closed_port: int) -> None:
    """`--debug` is for whoever looks for the cause."""
    done = bundle.proj("--debug", *ENQUEUE, env={"CELERY_BROKER_URL": f"amqp://127.0.0.1:{closed_port}"})
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "BrokerUnreachable" in done.stderr


def test_queue_that_is_not_ours(bundle: Bundle) -> None:
    """A queue that nobody declared is not made on the way."""
    assert (
        bundle.python("""
from proj import errors
from proj.tasks import add
try:
    add.apply_async((2, 3), queue="slip")
except errors.BadInput as error:
    import json; print(json.dumps(str(error)))
""")
        == "proj.tasks.add: there is no queue 'slip' (known queues: proj.tasks; PROJ_QUEUES adds more)"
    )
    assert bundle.depth("proj.tasks") == 0


def test_wrong_import_among_the_tasks(bundle: Bundle) -> None:
    """Every program that loads the tasks ends with one line that has the file and the line of the mistake."""
    bundle.add_task("import requets")
    file = bundle.folder / "copy/proj/tasks.py"
    line = file.read_text().splitlines().index("import requets") + 1
    where = f"proj.tasks cannot be imported: {file}:{line}: ModuleNotFoundError: No module named 'requets'"

    for command in (ENQUEUE, ("doctor",)):
        _refuses(bundle, 2, where, command=command)
    report = bundle.celery("report")
    worker = bundle.worker()

    assert (worker.ends(), report.returncode, report.stdout) == (2, 2, "")
    assert report.stderr == worker.text()
    assert report.stderr.startswith(f"Error: {where}")
    assert report.stderr.count("\n") == 1
    debugged = bundle.proj("--debug", *ENQUEUE).stderr
    assert debugged.count("\nModuleNotFoundError: No module named 'requets'\n") == 1
    assert f'File "{file}", line {line}, in <module>\n' in debugged
