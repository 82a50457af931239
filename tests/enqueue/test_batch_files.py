"""`proj enqueue batch`: what the lines of a file request is enqueued, and nothing is lost or told wrong."""

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.lib import fork_server
from tests.lib.batches import taken
from tests.lib.bundle import BIN, COMMAND_TIMEOUT, Bundle
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import ANSWERED, ID, REPEAT, headers, hurry, limit
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: The task of most lines.
ADD = "proj.tasks.add"


def line(x: Any = 1, **more: Any) -> str:
    return json.dumps({"task": ADD, "args": [x, 2], **more})


def write(bundle: Bundle, *lines: str | bytes, end: bytes = b"\n") -> str:
    """The name of a file of these lines."""
    path = bundle.folder / "requests.jsonl"
    encoded = [each.encode() if isinstance(each, str) else each for each in lines]
    path.write_bytes(b"".join(each + end for each in encoded))
    return str(path)


def start(bundle: Bundle, *args: str) -> subprocess.Popen[bytes]:
    process: subprocess.Popen[bytes] = fork_server.popen(
        [str(BIN / "proj"), "enqueue", "batch", *args],
        cwd=bundle.folder,
        env=bundle.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return process


def say(process: subprocess.Popen[bytes], *lines: str) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(each + "\n" for each in lines).encode())
    process.stdin.flush()


def printed(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """The next lines of its output."""
    assert process.stdout is not None
    return [process.stdout.readline().decode().strip() for _ in range(count)]


class Done:
    """How a run has ended."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes = b"") -> None:
        try:
            out, err = process.communicate(stdin, timeout=COMMAND_TIMEOUT)
        except BaseException:
            process.kill()
            raise
        self.code = process.returncode
        self.lines = out.decode().splitlines()
        self.words = err.decode()
        assert "Traceback" not in self.words, self.words

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(each) for each in self.lines]


def batch(bundle: Bundle, *args: str, code: int = 0, stdin: str = "") -> Done:
    """Run the command, which must end with this code."""
    done = Done(start(bundle, *args), stdin.encode())
    assert done.code == code, done.words
    return done


def test_lines_of_all_kinds(bundle: Bundle) -> None:
    """With a byte-order mark, CRLF, blank lines and no end; ids and options are the line's, else as usual."""
    named = {"task": ADD, "kwargs": {"x": 4, "y": 2}, "countdown": 0, "ignore_result": True, "id": None}
    name = write(
        bundle,
        *("\ufeff" + line(1), "", line(2, id="mine"), line(3, queue="proj.tasks", priority=2), "  "),
        *(json.dumps(named), line(5, id="twice"), line(5, id="twice"), line(6), line(6)),
        end=b"\r\n",
    )
    path = Path(name)
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))

    done = batch(bundle, name)

    assert done.words.splitlines()[-1].startswith("8 confirmed in ")
    # RabbitMQ 4.3 delivers a lower priority last.
    messages = sorted(headers(bundle), key=lambda message: done.lines.index(message[ID]))
    assert [message[ID] for message in messages] == done.lines
    assert [message["argsrepr"] for message in messages] == [
        *("(1, 2)", "(2, 2)", "(3, 2)", "()", "(5, 2)", "(5, 2)", "(6, 2)", "(6, 2)")
    ]
    # The same line twice is twice the work; an id that the line gives may be a repeat.
    assert [message.get(REPEAT, False) for message in messages] == [
        *(False, True, False, False, True, True, False, False)
    ]
    assert len(set(done.lines)) == 7


WRONG = {
    '{"task": "proj.tasks.ad", "args": [1, 2]}': "there is no task 'proj.tasks.ad' (did you mean",
    '{"args": [1, 2]}': "it names no task",
    '{"task": 5}': "the task is a text",
    '{"task": "proj.tasks.add", "args": "12"}': "args is a list",
    '{"task": "proj.tasks.add", "kwargs": []}': "kwargs is an object",
    '{"task": "proj.tasks.add", "arg": [1, 2]}': "there is no key arg (did you mean args?)",
    '{"task": "proj.tasks.add", "task": "proj.tasks.add"}': "it has a key twice: task",
    '{"task": "proj.tasks.add", "args": [1, 2': "it is not JSON",
    "[1, 2]": "it is not a JSON object",
    "nonsense": "it is not JSON",
    "[" * 100_000: "nested too deep",
    '{"task": "proj.tasks.add", "args": [1]}': "argument y is missing",
    '{"task": "proj.tasks.add", "args": [1], "kwargs": {"\\ud800": 1}}': "an argument is not Unicode",
    '{"task": "proj.tasks.add", "args": ["x", 2]}': "argument x",
    '{"task": "proj.tasks.add", "args": [1, 2], "queue": "nowhere"}': "there is no queue 'nowhere'",
    '{"task": "proj.tasks.add", "args": [1, 2], "queue": ""}': "queue must be the name of a queue, got ''",
    '{"task": "proj.tasks.add", "args": [1, 2], "priority": 11}': "priority must be",
    '{"task": "proj.tasks.add", "args": [1, 2], "countdown": 3, "expires": 1}': "expires before it may start",
    '{"task": "proj.tasks.add", "args": [1, 2], "countdown": "x"}': "a countdown is a number of seconds",
    '{"task": "proj.tasks.add", "args": [1, 2], "id": 5}': "an id is a text",
}
WRONG_BYTES = {
    b'{"task": "proj.tasks.add", "args": ["\xff", 2]}': "it is not UTF-8: byte 38 is 0xff",
    b"\xff\xfe{\0": "it is not UTF-8",
    b'{"args": ["' + b"x" * 50_000_000 + b'", 2]}': "it is longer than 16,777,216 bytes",
}


def test_wrong_lines(bundle: Bundle) -> None:
    """Each is reported with its number and its reason; the others are enqueued with --keep-going."""
    wrong = {**{text.encode(): why for text, why in WRONG.items()}, **WRONG_BYTES}
    name = write(bundle, *[each for text in wrong for each in (text, line())])

    done = batch(bundle, name, "--keep-going", "--json", code=65)

    assert [each["line"] for each in done.rows] == list(range(1, 2 * len(wrong) + 1))
    assert [each["outcome"] for each in done.rows] == ["refused", "confirmed"] * len(wrong)
    for each, why in zip(done.rows[::2], wrong.values(), strict=True):
        assert why in each["error"]
    assert all(f"line {each['line']}: " in done.words for each in done.rows[:40:2])  # the first 20
    assert f"{len(wrong)} confirmed, {len(wrong)} refused in " in done.words
    assert bundle.depth("proj.tasks") == len(wrong)

    done = batch(bundle, name, "--dry-run", "--keep-going", code=65)
    assert f"{len(wrong)} valid, {len(wrong)} wrong in " in done.words
    assert done.lines == []
    assert bundle.depth("proj.tasks") == len(wrong)


def test_unknown_task_far_in(bundle: Bundle) -> None:
    """It stops there: all lines before are valid, or enqueued, and no line after."""
    name = write(bundle, *[line(number) for number in range(69_999)], '{"task": "x"}', line(), line())
    done = batch(bundle, name, "--dry-run", code=65)
    assert done.words.splitlines()[-1].startswith("Error: line 70000: there is no task 'x'")
    assert bundle.depth("proj.tasks") == 0

    name = write(bundle, *[line(number) for number in range(2_999)], '{"task": "x"}', line(), line())
    done = batch(bundle, name, code=65)
    assert len(done.lines) == bundle.depth("proj.tasks") == 2_999
    assert done.words.splitlines()[-1].startswith("Error: line 3000: there is no task 'x'")


def test_inputs_that_are_empty_or_not_there(bundle: Bundle) -> None:
    """An empty input is no work; one that cannot be opened is a wrong command."""
    assert batch(bundle, "-").words.startswith("no lines in ")
    assert batch(bundle, "-", stdin="\n\n").words.startswith("no lines in ")
    assert "cannot be read: No such file" in batch(bundle, "nowhere.jsonl", code=2).words
    assert "File '..' is a directory" in batch(bundle, "..", code=2).words
    assert "the input cannot be read: Input/output error" in batch(bundle, "/proc/self/mem", code=65).words


def test_pipe_that_pauses_or_closes_early(bundle: Bundle) -> None:
    """While no line comes, those before are enqueued; Ctrl-C ends it; a line that is cut short is wrong."""
    with start(bundle, "-") as process:
        say(process, line(), line())
        assert all(printed(process, 2))
        assert bundle.depth("proj.tasks") == 2
        process.send_signal(signal.SIGINT)
        done = Done(process)
    assert done.code == 130
    assert done.words.startswith("2 confirmed in ")
    assert done.words.endswith("Interrupted.\n")

    # Many windows, and more than a pipe holds.
    done = batch(bundle, "-", stdin=(line() + "\n") * 2_500 + line()[:20], code=65)
    assert "Error: line 2501: it is not JSON" in done.words
    assert len(done.lines) == 2_500
    assert bundle.depth("proj.tasks") == 2_502


def test_stdout_that_is_closed_or_full(bundle: Bundle) -> None:
    """Without a reader the others are enqueued all the same; on a full disk it stops."""
    count = 2_500  # whose ids are more than a pipe holds
    name = write(bundle, *[line(number) for number in range(count)])
    process = bundle.start("enqueue", "batch", name)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(COMMAND_TIMEOUT) == 0
    bundle.proj("enqueue", "batch", name, closed={1})
    assert bundle.depth("proj.tasks") == 2 * count
    with Path("/dev/full").open("w") as full:
        done = bundle.proj("enqueue", "batch", name, stdout=full)
    assert done.returncode == 74
    assert "stdout cannot be written: No space left on device" in done.stderr


def test_run_that_is_killed_goes_on(bundle: Bundle, proxy: Proxy) -> None:
    """From its progress file: what may have been sent is sent again under its id, and only that is marked."""
    lines = [line(number) for number in range(300)]
    path = bundle.folder / "progress"
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "60"
    with start(bundle, "-", "--progress", "progress") as process:
        say(process, *lines[:100])
        ids = printed(process, 100)
        other = batch(bundle, "-", "--progress", "progress", code=65)
        assert "cannot be locked" in other.words
        proxy.network = Network.SWALLOWS_ANSWERS
        say(process, *lines[100:150])
        eventually("more are in the queue", lambda: bundle.depth("proj.tasks") == 150)
        process.kill()
        process.communicate()
    bundle.env["CELERY_BROKER_URL"] = bundle.url
    kept = json.loads(path.read_text())
    assert kept["done"] <= 100 < 150 <= kept["sent"]

    done = batch(bundle, write(bundle, *lines), "--progress", "progress", "--json")

    rest = range(kept["done"] + 1, 301)
    assert done.words.endswith("/s)\n")
    assert f"{len(rest)} confirmed in " in done.words
    assert [each["line"] for each in done.rows] == list(rest)
    again = {each["line"]: each["id"] for each in done.rows}
    assert [again[number] for number in rest if number <= 100] == ids[kept["done"] :]
    assert not path.exists()
    found = taken(bundle)
    assert len(found) == 300
    assert sum(found.values()) == 150 + len(rest)


def test_marks_of_a_run_that_goes_on(bundle: Bundle) -> None:
    """It goes on after a wrong line that was corrected; lines that were certainly not sent are not marked."""
    lines = [line(number) for number in range(20)]
    command = write(bundle, *lines[:10], "nonsense", *lines[11:]), "--progress", "progress"
    path = bundle.folder / "progress"

    first = batch(bundle, *command, code=65)
    assert "Error: line 11: " in first.words
    kept = json.loads(path.read_text())
    assert (kept["done"], kept["sent"]) == (10, 10)

    # As after a crash: some may have been sent that have no outcome.
    stored = path.read_bytes()
    write(bundle, *lines)
    second = batch(bundle, *command)
    assert second.words.startswith("10 lines were done before; 10 confirmed in ")
    assert not path.exists()
    messages = headers(bundle)
    assert [message[ID] for message in messages] == first.lines + second.lines
    assert not any(REPEAT in message for message in messages)

    # The same file again is other work; with the old progress file, it is the same.
    assert not set(batch(bundle, *command).lines) & set(first.lines + second.lines)
    path.write_bytes(stored)
    assert batch(bundle, *command).lines == second.lines


def test_progress_file_that_cannot_be_deleted(bundle: Bundle) -> None:
    """The batch is complete all the same, and the same input sent again is other work."""
    kept = bundle.folder / "progress"
    batch(bundle, write(bundle, line(1), "nonsense"), "--progress", "progress", code=65)
    name = write(bundle, line(1), line(2))

    with kept.open() as held:  # nobody may delete the link to it
        done = bundle.proj("enqueue", "batch", name, "--progress", "/proc/self/fd/0", stdin=held)

    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stderr.startswith("1 line was done before; 1 confirmed in ")
    assert kept.read_bytes() == b""
    assert len(batch(bundle, name, "--progress", "progress").lines) == 2


def test_progress_file_that_is_of_another_input_or_damaged(bundle: Bundle) -> None:
    """Nothing is enqueued, and the file stays as it is."""
    lines = [line(number) for number in range(20)]
    command = write(bundle, *lines, "nonsense"), "--progress", "progress"
    path = bundle.folder / "progress"
    batch(bundle, *command, code=65)
    stored = path.read_bytes()

    for other in (["", *lines[1:]], lines[:15]):
        write(bundle, *other)
        assert (
            "belongs to another input: the inputs differ before line 21"
            in batch(bundle, *command, code=65).words
        )
    write(bundle, *lines)
    for damage in (stored.replace(b'"done": 20', b'"done": 10'), stored[:100], b"[]", b"\0" * 512):
        path.write_bytes(damage)
        assert "is damaged, or is another file" in batch(bundle, *command, code=65).words
        assert path.read_bytes() == damage
    assert "cannot be used" in batch(bundle, command[0], "--progress", "no/such/folder", code=65).words
    assert bundle.depth("proj.tasks") == 20


def test_full_queue(bundle: Bundle) -> None:
    """It stops when nobody makes room, and goes on there."""
    bundle.declare()
    hurry(bundle, ANSWERED)
    policy = limit(bundle)
    # The broker tells publishers that the queue is full when it has one message too many.
    before = batch(bundle, "-", stdin=line() + "\n" + line() + "\n").lines
    lines = [line(number) for number in range(200)]
    command = write(bundle, *lines), "--progress", "progress", "--json"

    first = batch(bundle, *command, code=69)
    assert "the queue is full" in first.words
    assert "the same command goes on there" in first.words
    outcomes = {each["id"]: each["outcome"] for each in first.rows}
    found = taken(bundle)
    confirmed = [task_id for task_id, outcome in outcomes.items() if outcome == "confirmed"]
    assert found == Counter([*before, *confirmed])

    bundle.management("DELETE", policy)
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "60"  # it waits until that is so
    second = batch(bundle, *command)
    ids = {each["line"]: each["id"] for each in (*first.rows, *second.rows)}
    assert ids.keys() == set(range(1, 201))
    assert set(found) | set(taken(bundle)) == {*before, *ids.values()}


def test_outcome_that_is_unknown(bundle: Bundle, proxy: Proxy) -> None:
    """When the broker falls silent it ends with 75, and nothing is called confirmed that was not."""
    with start(bundle, "-", "--json") as process:
        say(process, line())
        assert all(printed(process, 1))
        proxy.network = Network.SWALLOWS_ANSWERS
        done = Done(process, b"".join(line(number).encode() + b"\n" for number in range(300)))
    assert proxy.happened[Network.SWALLOWS_ANSWERS]
    assert done.code == 75
    assert "did not confirm message" in done.words
    outcomes = Counter(each["outcome"] for each in done.rows)
    assert outcomes["unknown"] >= 1
    assert outcomes["confirmed"] == 0


_MEMORY = """
import json, resource
from proj.cli.batch import batch
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = []
for name in ("few", "requests.jsonl"):
    batch.main([name], standalone_mode=False)
    found.append(most())
print(json.dumps(found))
"""


def test_many_lines_need_no_more_memory_than_a_few(bundle: Bundle) -> None:
    """At most 20 MB more, in KiB, of which a slow leak would be a part."""
    name = write(bundle, *[line(number) for number in range(1_000)])
    Path(name).rename(bundle.folder / "few")
    write(bundle, *[line(number) for number in range(5_000)])
    few, many = bundle.python(_MEMORY)
    assert many < few + 5 * 1024


def test_progress_bar(bundle: Bundle) -> None:
    """With the rate, on a terminal only."""
    name = write(bundle, *[line(number) for number in range(3_000)])
    done, drawn = bundle.proj_on_terminal("enqueue", "batch", name)
    assert (done.returncode, len(done.stdout.split())) == (0, 3_000)
    assert b"enqueueing" in drawn
    assert b"/s)" in drawn
    assert b"3,000 confirmed in " in drawn
