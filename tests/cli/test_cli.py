"""`proj enqueue` and `proj result`, through the installed console script."""

import json
import signal
import sys
from typing import Any

import pytest

from tests.lib import dead
from tests.lib.bundle import COMMAND_TIMEOUT, Bundle
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


def _ids(bundle: Bundle) -> list[str]:
    return [message["properties"]["headers"]["id"] for message in bundle.peek("proj.tasks")]


def _arguments(bundle: Bundle) -> list[list[Any]]:
    return [json.loads(message["payload"])[0] for message in bundle.peek("proj.tasks")]


@pytest.mark.parametrize(
    ("command", "task", "args"),
    [
        (["sleep-dots"], "proj.tasks.sleep_dots", ["Hello World!"]),
        (["sleep-dots", "First", "message."], "proj.tasks.sleep_dots", ["First message."]),
        (["add", "221", "345"], "proj.tasks.add", [221, 345]),
        (["add", "-1", "2.5"], "proj.tasks.add", [-1, 2.5]),
        (["task", "proj.tasks.add", "2", "3"], "proj.tasks.add", [2, 3]),
        (["task", "proj.tasks.sleep_dots", '"a text"'], "proj.tasks.sleep_dots", ["a text"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_command_puts_its_message_into_the_queue(
    bundle: Bundle, command: list[str], task: str, args: list[object]
) -> None:
    """Each command enqueues what it says, and prints the id on stdout and nothing else."""
    done = bundle.proj("enqueue", *command)

    assert done.returncode == 0, done.stderr
    (message,) = bundle.peek("proj.tasks")
    assert message["properties"]["headers"]["task"] == task
    assert json.loads(message["payload"])[0] == args
    assert done.stdout == message["properties"]["headers"]["id"] + "\n"
    assert done.stderr == ""


def test_keyword_arguments_travel(bundle: Bundle) -> None:
    """`--kwargs` is a JSON object."""
    done = bundle.proj("enqueue", "task", "proj.tasks.add", "--kwargs", '{"x": 1, "y": 2}')

    assert done.returncode == 0, done.stderr
    (message,) = bundle.peek("proj.tasks")
    assert json.loads(message["payload"])[:2] == [[], {"x": 1, "y": 2}]


def test_random_numbers_are_drawn_anew_for_each_message(bundle: Bundle) -> None:
    """`--random --count` enqueues sums of different numbers from 0 to 998."""
    done = bundle.proj("enqueue", "add", "--random", "--count", "20")

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == _ids(bundle)
    pairs = _arguments(bundle)
    assert len({tuple(pair) for pair in pairs}) > 1
    assert all(0 <= number <= 998 for pair in pairs for number in pair)


def test_id_is_the_callers(bundle: Bundle) -> None:
    """`--id` names the message."""
    assert bundle.proj("enqueue", "add", "1", "2", "--id", "order-4711").stdout == "order-4711\n"
    assert _ids(bundle) == ["order-4711"]


def test_json_says_id_and_task(bundle: Bundle) -> None:
    """`--json` prints an object a message."""
    done = bundle.proj("enqueue", "add", "1", "2", "--json", "--count", "2")

    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(item) for item in objects] == [["id", "task"]] * 2
    assert [item["id"] for item in objects] == _ids(bundle)


def test_expired_message_becomes_a_dead_letter(bundle: Bundle) -> None:
    """What `--expires` ends is kept in proj.dead with the reason."""
    assert bundle.proj("enqueue", "add", "1", "2", "--expires", "0.2").returncode == 0

    eventually("the message is in proj.dead", lambda: bundle.depth("proj.dead") == 1)
    (message,) = bundle.peek("proj.dead")
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "expired"


def test_wait_prints_results_in_the_order_of_the_messages(bundle: Bundle) -> None:
    """`--wait` prints a result a line, and with `--json` all that is known of it."""
    bundle.worker().ready()

    done = bundle.proj("enqueue", "add", "1", "2", "--count", "3", "--wait")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n" * 3, "")

    done = bundle.proj("enqueue", "add", "1", "2", "--id", "full", "--wait", "--json")
    outcome = json.loads(done.stdout)
    assert outcome["id"] == "full"
    assert outcome["task"] == "proj.tasks.add"
    assert outcome["state"] == "SUCCESS"
    assert outcome["result"] == 3
    assert outcome["worker"].startswith("celery-")
    assert outcome["finished"].endswith("Z")
    assert outcome["error"] is None


def test_wait_and_result_exit_1_for_a_failed_task(bundle: Bundle) -> None:
    """A task that failed is told in one line, and its traceback by `proj result`."""
    bundle.worker(env={"PROJ_TASK_SOFT_TIME_LIMIT": "1"}).ready()

    done = bundle.proj("enqueue", "sleep-dots", "600", "--id", "slow", "--wait")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "Error: proj.tasks.sleep_dots[slow] failed: SoftTimeLimitExceeded: SoftTimeLimitExceeded()\n"
    )

    done = bundle.proj("result", "slow")
    assert done.returncode == 1
    assert "state     FAILURE" in done.stdout
    assert "Traceback (most recent call last)" in done.stdout


def test_result_that_only_celerys_json_can_carry_is_text(bundle: Bundle) -> None:
    """A task that returned a date or a decimal number has succeeded, and its result is shown."""
    bundle.add_task("""
        @app.task(name="proj.tasks.price")
        def price():
            import datetime, decimal
            return {"amount": decimal.Decimal("9.90"), "due": datetime.datetime(2026, 11, 30, 12)}
    """)
    bundle.worker().ready()
    shown = {"amount": "9.90", "due": "2026-11-30T12:00:00"}

    enqueue = ("enqueue", "task", "proj.tasks.price", "--id", "it", "--wait")
    for command in (enqueue, (*enqueue, "--json"), ("result", "it", "--json"), ("result", "it")):
        done = bundle.proj(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert json.dumps(shown) in done.stdout


def test_wait_is_for_the_message_and_not_for_one_that_failed_before(bundle: Bundle) -> None:
    """Under an id whose task has failed, `--wait` waits for the next attempt, and tells how that ends."""
    bundle.add_task("""
        @app.task(name="proj.tasks.mended")
        def mended(text):
            if not __import__("os").path.exists("mended"):
                raise ValueError(text)
            return text
    """)
    worker = bundle.worker()
    enqueue = ("enqueue", "task", "proj.tasks.mended", '"x"', "--id", "it", "--wait", "--timeout")
    assert bundle.proj(*enqueue, "90").returncode == 1
    worker.stop()

    done = bundle.proj(*enqueue, "1")
    assert (done.returncode, done.stdout) == (75, "")

    (bundle.folder / "mended").touch()
    bundle.worker(log="next.log").ready()
    done = bundle.proj(*enqueue, "90")
    assert (done.returncode, done.stdout, done.stderr) == (0, '"x"\n', "")


def test_wait_that_runs_out_is_75(bundle: Bundle) -> None:
    """Without a worker `--timeout` ends the wait, and says where to look later."""
    done = bundle.proj("enqueue", "add", "1", "2", "--id", "later", "--wait", "--timeout", "0.5")

    assert (done.returncode, done.stdout) == (75, "")
    assert "proj result later" in done.stderr
    assert _ids(bundle) == ["later"]


def test_timeout_of_a_wait_is_for_all_messages(bundle: Bundle) -> None:
    """One worker needs 3 s for them, and less for each than `--timeout` has."""
    bundle.worker().ready()

    done = bundle.proj("enqueue", "sleep-dots", ".", "--count", "3", "--wait", "--timeout", "1.9")

    assert done.returncode == 75, done.stdout
    assert "has no result after 1.9 s" in done.stderr


def test_wait_says_once_that_no_worker_consumes_the_queue(bundle: Bundle) -> None:
    """On stderr, and goes on waiting."""
    bundle.switch_off("cli/unconsumed.py", "PATIENCE: Final = 5.0", "PATIENCE: Final = 0.0")
    process = bundle.start("enqueue", "add", "1", "2", "--wait")
    assert process.stderr
    said = process.stderr.readline()
    assert said == "proj.tasks has no worker; start one with: celery -A proj worker\n"

    bundle.worker()

    assert process.communicate(timeout=COMMAND_TIMEOUT) == ("3\n", "")


def test_result_of_an_id_that_nothing_is_stored_for_is_75(bundle: Bundle) -> None:
    """`proj result` tells PENDING, and that this may mean two things."""
    done = bundle.proj("result", "never", "--json")

    assert done.returncode == 75
    assert json.loads(done.stdout)["state"] == "PENDING"
    assert "never enqueued" in done.stderr


def test_reader_that_has_had_enough_keeps_no_message_back(bundle: Bundle) -> None:
    """Of `--count`, all are enqueued, also when nobody reads their ids to the end."""
    count = 2_500  # whose ids are more than a pipe holds
    process = bundle.start("enqueue", "add", "1", "2", "--count", str(count))
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(COMMAND_TIMEOUT) == 0, process.stderr.read()
    assert bundle.depth("proj.tasks") == count


def test_ctrl_c_while_waiting_is_130(bundle: Bundle) -> None:
    """Ctrl-C ends the wait at any time of it, and not the message."""
    bundle.switch_off(
        "cli/interrupt.py",
        "    def __call__(self) -> None:\n",
        "    def __call__(self) -> None:\n        open('asked', 'w').close()\n",
    )
    process = bundle.start("enqueue", "add", "1", "2", "--wait")
    eventually("it has been asked whether to wait on", (bundle.folder / "asked").exists)

    process.send_signal(signal.SIGINT)

    _, stderr = process.communicate(timeout=COMMAND_TIMEOUT)
    assert process.returncode == 130
    (task_id,) = _ids(bundle)
    assert f"proj result {task_id}" in stderr


def test_ctrl_c_between_results(bundle: Bundle) -> None:
    """It is taken also when each result is there at the first look, so that nothing is waited for."""
    bundle.switch_off(
        "cli/enqueue.py",
        "                advance()\n",
        "                advance()\n                __import__('signal').raise_signal(2)\n",
    )
    bundle.worker()
    done = bundle.proj("enqueue", "add", "1", "2", "--count", "2", "--wait")

    assert (done.returncode, done.stdout) == (130, "3\n")
    assert "The messages stay enqueued" in done.stderr


@pytest.mark.parametrize(("handler", "code"), [("SIG_IGN", 0), ("default_int_handler", 130)])
def test_ctrl_c_that_is_switched_off_stays_so(bundle: Bundle, handler: str, code: int) -> None:
    """A shell switches it off for what a script runs in the background; Python leaves it so."""
    bundle.worker()
    bundle.switch_off(
        "cli/interrupt.py",
        "    def __call__(self) -> None:\n",
        "    def __call__(self) -> None:\n        signal.raise_signal(signal.SIGINT)\n",
    )
    done = bundle.run_python(f"""
import signal, sys
signal.signal(signal.SIGINT, signal.{handler})
sys.argv = ["proj", "enqueue", "add", "1", "2", "--wait"]
from proj.__main__ import main
main()
""")

    assert done.returncode == code, done.stderr


def test_ctrl_c_while_a_result_is_read(bundle: Bundle) -> None:
    """It is told in the same lines, without the traceback of what was at work."""
    bundle.switch_off(
        "results/engines.py",
        "        # Results written to a file that was deleted or replaced would be lost.\n",
        "        once = vars(os).setdefault('once', iter([os.getpid()]))\n"
        "        [os.kill(pid, 2) for pid in once]\n",
    )
    done = bundle.proj("enqueue", "add", "1", "2", "--wait")

    assert (done.returncode, done.stdout) == (130, "")
    (task_id,) = _ids(bundle)
    said = f"The messages stay enqueued; see: proj result {task_id}\nInterrupted.\n"
    assert done.stderr == said


def test_wait_shows_a_progress_bar_on_a_terminal_only(bundle: Bundle) -> None:
    """The bar is drawn on a terminal's stderr; stdout has the results alone."""
    bundle.worker().ready()
    done, drawn = bundle.proj_on_terminal("enqueue", "add", "1", "2", "--count", "2", "--wait")

    assert done.stdout == b"3\n3\n"
    assert b"waiting for results" in drawn


@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("--help", 1, 0),
        ("queues --watch no-such-queue", 1, 65),
        ("health --live", 1, 69),
        ("health --live --json", 1, 69),
        ("dead redrive --all", 2, 0),
    ],
)
def test_with_a_stream_closed(bundle: Bundle, command: str, closed: int, code: int) -> None:
    """Nothing can be printed there; what is done, and the exit code, are those of any other time."""
    dead.expire(bundle, 1)
    done = bundle.proj(*command.split(), closed={closed})

    assert done.returncode == code
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr


def test_module_is_the_same_as_the_script(bundle: Bundle) -> None:
    """`python -m proj` is `proj`."""
    done = bundle.run(sys.executable, "-m", "proj", "enqueue", "add", "1", "2", "--id", "module")

    assert (done.returncode, done.stdout) == (0, "module\n")


def test_own_task_needs_a_function_and_nothing_else(bundle: Bundle) -> None:
    """A function in `proj/tasks.py`, written as the README says, is enqueued, executed and validated."""
    bundle.add_task("""
        @app.task(name="proj.tasks.shout")
        def shout(text: str, times: int = 1) -> str:
            return text.upper() + "!" * times
    """)
    bundle.worker()

    done = bundle.proj("enqueue", "task", "proj.tasks.shout", '"hey"', "2", "--wait")
    assert (done.returncode, done.stdout) == (0, '"HEY!!"\n'), done.stderr
    done = bundle.proj("enqueue", "task", "proj.tasks.shout", "1")
    assert done.returncode == 65
    assert "argument text: Input should be a valid string, got 1" in done.stderr
