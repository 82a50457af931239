"""What people are shown of results, failures and dead letters, whatever those hold."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import compression

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: Tasks whose results and failures Python's `json`, or Celery, cannot carry as they are.
TASKS = """
    import json, math, subprocess
    from decimal import Decimal

    class ApiError(ValueError):
        def __init__(self, status, *, reason):
            super().__init__(status)
            self.status, self.reason = status, reason

        def __str__(self):
            return f"{self.status}, for {self.reason}"

    class Nothing(Exception):
        def __init__(self, *, code):
            self.code = code

        def __str__(self):
            return f"code {self.code}"

    @app.task(name="proj.tasks.odd")
    def odd():
        numbers = [math.nan, {"i": math.inf}]
        return {"n": numbers, "half": "caf\\udce9", "bytes": b"caf\\xe9", "price": Decimal("9.90")}

    @app.task(name="proj.tasks.fail")
    def fail(how):
        if how == "json":
            json.loads("")
        if how == "api":
            raise ApiError(404, reason="bad luck")
        if how == "nothing":
            raise Nothing(code=5)
        if how == "process":
            subprocess.run(["false"], check=True)
        if how == "lookup":
            {}["x"]
"""


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle with one worker for all tests of this module."""
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
        bundle.add_task(TASKS)
        bundle.worker().ready()
        yield bundle


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def test_json_of_a_result_is_strict(shared: Bundle) -> None:
    """NaN, infinity and half characters in a result are text in JSON, which no strict parser refuses."""
    shown = {"n": ["NaN", {"i": "Infinity"}], "half": "caf\\udce9", "bytes": "caf\\xe9", "price": "9.90"}
    enqueue = ("enqueue", "task", "proj.tasks.odd", "--id", "odd", "--wait")

    for command in ((*enqueue, "--json"), ("result", "odd", "--json")):
        done = shared.proj(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert json.loads(done.stdout, parse_constant=_refuse)["result"] == shown
    assert json.loads(shared.proj(*enqueue).stdout, parse_constant=_refuse) == shown


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (
            "json",
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        ),
        ("api", "ApiError: 404, for bad luck"),
        ("nothing", "Nothing: code 5"),
        ("process", "CalledProcessError: Command '['false']' returned non-zero exit status 1."),
        ("lookup", "KeyError: 'x'"),
    ],
    ids=lambda value: value if value.isalpha() else "",
)
def test_failure_is_shown_with_type_and_text(shared: Bundle, how: str, error: str) -> None:
    """Whatever arguments the exception takes; by `--wait`, `proj result` and `proj dead show` alike."""
    done = shared.proj("enqueue", "task", "proj.tasks.fail", json.dumps(how), "--id", how, "--wait")
    assert (done.returncode, done.stderr) == (1, f"Error: proj.tasks.fail[{how}] failed: {error}\n")

    assert json.loads(shared.proj("result", how, "--json").stdout)["error"] == error
    dead.await_letter(shared, how)
    assert dead.show(shared, how)["exception"] == error


def test_get_raises_an_exception_of_the_class(shared: Bundle) -> None:
    """In Python `.get()` raises what `except` clauses for the class, or for a base class, catch."""
    assert shared.python("""
import json
from proj import app
from proj.tasks import ApiError, fail
try:
    fail.apply_async(("json",)).get(timeout=60)
except json.JSONDecodeError as error:
    said = [type(error).__name__, str(error)[:9]]
try:
    fail.apply_async(("api",)).get(timeout=60)
except ApiError as error:
    print(json.dumps([*said, type(error).__name__, str(error)]))
""") == ["JSONDecodeError", "Expecting", "ApiError", "404"]


@pytest.mark.parametrize("method", ["zlib", "bzip2", "lzma"])
def test_compressed_dead_letter_is_unpacked_for_people_only(shared: Bundle, method: str) -> None:
    """`proj dead` shows its task and arguments; a redrive sends the bytes that were published."""
    packed, name = compression.compress(b'[["x"], {}, {"chain": null}]', method)
    headers = {"id": method, "task": "proj.tasks.nobody", "compression": name}
    dead.publish(shared, packed, application_headers=headers, content_type="application/json")

    dead.await_letter(shared, method)
    shown = dead.show(shared, method)
    assert (shown["task"], shown["arguments"]) == ("proj.tasks.nobody", '"x"')
    assert shown["body"] == '[["x"], {}, {"chain": null}]'

    assert shared.proj("dead", "redrive", method).returncode == 0
    dead.await_letter(shared, method, redrives=1)
    assert packed in [message.body for message in dead.take(shared, "proj.dead")]


def test_names_in_headers_that_are_no_text_are_escaped_for_people_only(shared: Bundle) -> None:
    """RabbitMQ takes any bytes as a name; a redrive sends those that were published."""
    table = {b"caf\xe9": [{b"th\xe9": 1}]}
    headers = {b"\xe9t\xe9": 1, "table": table}
    dead.publish_task(shared, "names", task="proj.tasks.nobody", headers=headers)
    dead.await_letter(shared, "names")

    shown = dead.show(shared, "names")["headers"]
    assert shown["table"] == {"caf\\xe9": [{"th\\xe9": 1}]}
    assert shown["\\xe9t\\xe9"] == 1
    assert '{"caf\\\\xe9": [{"th\\\\xe9": 1}]}' in shared.proj("dead", "show", "names").stdout

    assert shared.proj("dead", "redrive", "names").returncode == 0
    dead.await_letter(shared, "names", redrives=1)
    found = [message.properties["application_headers"] for message in dead.take(shared, "proj.dead")]
    [again] = [each for each in found if each.get("id") == "names"]
    assert headers.items() <= again.items()


def test_bomb_does_not_fill_memory(shared: Bundle) -> None:
    """A dead letter of 100 KB that is 100 MB when unpacked is shown by its task, and why no more."""
    packed, name = compression.compress(b"[[" + b" " * 100_000_000, "zlib")
    headers = {"id": "bomb", "task": "proj.tasks.add", "compression": name}
    dead.publish(shared, packed, queue=dead.OTHER, expiration="0", application_headers=headers)
    dead.await_letter(shared, "bomb")

    shown = dead.show(shared, "bomb")
    assert shown["task"] == "proj.tasks.add"
    assert shown["arguments"] == "(compressed with application/x-gzip, over 1 MiB when decompressed)"


def test_attempts_that_never_began_are_not_counted(shared: Bundle) -> None:
    """What a worker rejects unexecuted has had no attempt; what failed has had one."""
    dead.publish_task(shared, "unknown", task="proj.tasks.nobody")
    dead.publish_task(shared, "wrong", "one", task="proj.tasks.add")
    dead.publish(shared, b"no JSON", correlation_id="unreadable", content_type="application/json")
    dead.publish_task(shared, "failed", "lookup", task="proj.tasks.fail")
    wanted = {"unknown": 0, "wrong": 0, "unreadable": 0, "failed": 1}
    eventually("all are dead", lambda: wanted.keys() <= set(dead.ids(shared)))

    found = {row["id"]: row["attempts"] for row in dead.rows(shared)}
    assert {task_id: found[task_id] for task_id in wanted} == wanted
