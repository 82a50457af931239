"""Tasks that fail as they are told, and where their messages are afterwards."""

from typing import Any, Final

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

#: A task that does as it is told; each attempt leaves a line in a file, whatever becomes of it.
SCRIPTED = """
    @app.task(name="proj.tasks.scripted", pydantic=True, bind=True)
    def scripted(self, *actions: str) -> str:
        import asyncio, os, signal, sys
        from celery.exceptions import Reject, SoftTimeLimitExceeded
        with open("attempts", "a") as file:
            file.write(f"{self.request.id}\\n")
        with open("attempts") as file:
            attempt = file.read().split().count(self.request.id)
        action = actions[min(attempt, len(actions)) - 1]
        if action == "transient":
            raise ConnectionError("the other side hung up")
        if action == "late":
            raise TimeoutError("the other side did not answer")
        if action == "fail":
            raise ValueError("no such thing")
        if action == "reject":
            raise Reject("no")
        if action == "cancelled":
            raise asyncio.CancelledError
        if action == "memory":
            raise MemoryError("no more")
        if action == "interrupt":
            raise KeyboardInterrupt
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "exit":
            sys.exit(3)
        if action == "sleep":
            time.sleep(600)
        if action == "stubborn":
            while True:
                try:
                    time.sleep(600)
                except SoftTimeLimitExceeded:
                    pass
        return action
"""

#: Other tasks that fail.
OTHERS: Final = """
    import celery
    from celery.exceptions import Retry

    @app.task(name="proj.tasks.busy", autoretry_for=(LookupError,), retry_jitter=False, max_retries=3)
    def busy() -> None:
        raise LookupError("come again")

    @app.task(name="proj.tasks.very_busy", retry_backoff=3600, retry_jitter=False)
    def very_busy() -> None:
        raise ConnectionError("come again")

    @app.task(name="proj.tasks.again")
    def again() -> None:
        raise Retry("later")

    class Called(celery.Task):
        def __call__(self, *args, **kwargs):
            return self.run(*args, **kwargs)

    class Begun(celery.Task):
        def before_start(self, *_):
            raise Retry("later")

    @app.task(name="proj.tasks.again_called", base=Called)
    def again_called() -> None:
        raise Retry("later")

    @app.task(name="proj.tasks.again_before", base=Begun)
    def again_before() -> None:
        pass

    @app.task(name="proj.tasks.bounded", time_limit=1)
    def bounded() -> None:
        time.sleep(600)

    @app.task(name="proj.tasks.unbounded", soft_time_limit=500)
    def unbounded() -> None:
        time.sleep(600)
"""

#: A task, its arguments, and options of its publishing, by the id of its message.
Messages = dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]


def enqueue(bundle: Bundle, messages: Messages) -> None:
    bundle.python(
        "from proj import tasks\n"
        f"for task_id, (name, args, options) in {messages!r}.items():\n"
        "    getattr(tasks, name).apply_async(args, task_id=task_id, **options)\n"
        "print(0)"
    )


def enqueue_scripted(bundle: Bundle, *actions: str) -> None:
    """Enqueue the scripted task under the id `it`."""
    enqueue(bundle, {"it": ("scripted", actions, {})})


def attempts(bundle: Bundle, task_id: str = "it") -> int:
    path = bundle.folder / "attempts"
    return path.read_text().split().count(task_id) if path.exists() else 0


def dead_letters(bundle: Bundle, count: int = 1) -> dict[str, Any]:
    """So many messages of proj.dead, once they are there, by their id; and nothing is left in proj.tasks."""

    eventually("the queue is declared", lambda: bundle.has("proj.dead"))

    dead.await_count(bundle, count)
    messages = bundle.peek("proj.dead")
    # Of a message that is retried, the next attempt may be on its way.
    eventually("nothing waits", lambda: bundle.depth("proj.tasks") == 0)
    found = [message["properties"] for message in messages]
    return {each.get("message_id") or each["headers"]["id"]: each["headers"] for each in found}


def outcomes(bundle: Bundle, *ids: str) -> dict[str, dict[str, Any]]:
    """What is stored under each id."""
    found: dict[str, dict[str, Any]] = bundle.python(
        "import json; from proj import app, results; from dataclasses import asdict;"
        f"print(json.dumps({{i: asdict(results.outcome(app, i)) for i in {ids!r}}}))"
    )
    return found


def outcome(bundle: Bundle, task_id: str = "it") -> dict[str, Any]:
    return outcomes(bundle, task_id)[task_id]


def assert_lost(bundle: Bundle, worker: Worker) -> None:
    """Neither waiting, nor dead, nor in the hands of the worker, which ends in good order."""
    assert worker.terminate() == 0
    assert bundle.kept("proj.tasks") == 0
    assert bundle.depth("proj.dead") == 0
