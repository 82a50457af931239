"""What Celery's page about tasks shows, each with how it ends here."""

TASKS = """
    from celery import Task, shared_task
    from celery.contrib.abortable import AbortableTask
    from celery.exceptions import Reject
    from celery.result import allow_join_result
    from celery.utils.log import get_task_logger

    logger = get_task_logger(__name__)

    @app.task
    def nameless(x):
        return x + 1

    @shared_task
    def shared(x):
        return x + 2

    class Hooked(Task):
        def before_start(self, task_id, args, kwargs):
            self.hooks = ["before_start"]

        def on_retry(self, exc, task_id, args, kwargs, einfo):
            logger.info("hooks: on_retry")

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            self.hooks.append("on_failure")

        def on_success(self, retval, task_id, args, kwargs):
            self.hooks.append("on_success")

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            logger.info("hooks: %s", [*self.hooks, status])

    @app.task(base=Hooked, bind=True, name="test.hooked")
    def hooked(self, how):
        if how == "fails":
            raise LookupError(how)
        if how == "retries" and not self.request.retries:
            raise self.retry(countdown=0)
        return isinstance(self, Hooked)

    class ByHand(app.Task):
        name = "test.by_hand"

        def run(self, x):
            return x * 7

    by_hand = app.register_task(ByHand())

    @app.task(name="test.auto", bind=True, autoretry_for=(LookupError,), retry_backoff=False,
              default_retry_delay=0)
    def auto(self, times):
        if self.request.retries < times:
            raise LookupError("too early")
        return self.request.retries

    @app.task(name="test.again", bind=True, max_retries=2, default_retry_delay=0)
    def again(self):
        try:
            raise LookupError(f"after {self.request.retries}")
        except LookupError as error:
            raise self.retry(exc=error)

    @app.task(name="test.rejects")
    def rejects(requeue):
        raise Reject("no bread", requeue=requeue)

    @app.task(name="test.expected", throws=(LookupError,))
    def expected():
        raise LookupError("expected")

    @app.task(name="test.tracked", track_started=True)
    def tracked(gate):
        while not Path(gate).exists():
            time.sleep(0.02)

    @app.task(name="test.progress", bind=True)
    def progress(self, gate):
        self.update_state(state="PROGRESS", meta={"current": 1, "total": 2})
        while not Path(gate).exists():
            time.sleep(0.02)

    @app.task(name="test.abortable", bind=True, base=AbortableTask)
    def abortable(self):
        while not self.is_aborted():
            time.sleep(0.02)
        return "aborted"

    @app.task(name="test.silent", ignore_result=True)
    def silent():
        return 1

    @app.task(name="test.waits")
    def waits(how):
        result = add.delay(1, 2)
        if how == "allowed":
            with allow_join_result():
                return result.get(timeout=60)
        return result.get(timeout=60, disable_sync_subtasks=how != "not disabled")
"""

EXAMPLES: dict[str, tuple[str, object]] = {
    "Tasks: automatic names": ("nameless.name, nameless.delay(1).get(T)", ["proj.tasks.nameless", 2]),
    "Tasks: shared_task": ("shared.delay(1).get(T)", 3),
    "Tasks: bind, request": (
        "asked.delay('retries', 'args', 'called_directly').get(T)",
        [0, ["retries", "args", "called_directly"], False],
    ),
    "Tasks: base, handlers such as on_failure": (
        "hooked.delay('works').get(T), hooked.delay('retries').get(T), "
        "repr(hooked.delay('fails').get(T, propagate=False))",
        [True, True, "LookupError('fails')"],
    ),
    "Tasks: register_task": ("by_hand.delay(3).get(T)", 21),
    "Tasks: argument checks": (
        "add.delay(1)",
        "BadArguments: proj.tasks.add: argument y is missing (usage: proj.tasks.add(x, y))",
    ),
    "Tasks: retry": ("again.delay().get(T)", "LookupError: after 2"),
    "Tasks: autoretry_for": ("auto.delay(2).get(T)", 2),
    "Tasks: throws": ("expected.delay().get(T)", "LookupError: expected"),
    "Tasks: Reject": ("rejects.delay(False).get(T)", "Reject: ('no bread', False)"),
    "Tasks: Reject(requeue=True)": ("rejects.delay(True).get(T)", "DeadLettered: delivery limit"),
    "Tasks: track_started": (
        "result = tracked.delay('started')\n"
        "state = until(lambda: result.state == 'STARTED' and result.state)\n"
        "Path('started').touch()\nstate, result.get(T)",
        ["STARTED", None],
    ),
    "Tasks: update_state, custom states": (
        "result = progress.delay('told')\n"
        "info = until(lambda: result.state == 'PROGRESS' and result.info)\n"
        "Path('told').touch()\ninfo, result.get(T)",
        [{"current": 1, "total": 2}, None],
    ),
    "Tasks: AbortableTask": (
        "result = abortable.delay()\nresult.abort()\nuntil(lambda: result.result)",
        "aborted",
    ),
    "Tasks: ignore_result": ("silent.delay().get(T)", None),
    "Tasks: get() within a task": (
        "waits.delay('never').get(T)",
        "RuntimeError: Never call result.get() within a task!",
    ),
    "Tasks: allow_join_result, disable_sync_subtasks": (
        "waits.delay('allowed').get(T), waits.delay('not disabled').get(T)",
        [3, 3],
    ),
}
