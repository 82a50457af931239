"""What Celery's page about calling tasks shows, each with how it ends here."""

TASKS = '''
    import time
    from pathlib import Path

    @app.task(name="test.mul")
    def mul(x: int, y: int) -> int:
        return x * y

    @app.task(name="test.fails")
    def fails(*_):
        raise LookupError("no bread")

    @app.task(name="test.note")
    def note(request, exc, traceback, path):
        """An error callback as it is written today."""
        Path(path).write_text(f"{request.id} {exc!r}")

    @app.task(name="test.old_note")
    def old_note(task_id, path):
        """An error callback as it was written before Celery 4."""
        Path(path).write_text(task_id)

    @app.task(name="test.asked", bind=True)
    def asked(self, *names):
        """What the message says of itself."""
        return [getattr(self.request, name) for name in names]

    @app.task(name="test.slow")
    def slow():
        from celery.exceptions import SoftTimeLimitExceeded
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded:
            return "asked to end"
'''

EXAMPLES: dict[str, tuple[str, object]] = {
    "Calling: delay": ("add.delay(2, 2).get(T)", 4),
    "Calling: apply_async": ("add.apply_async((2,), {'y': 3}).get(T)", 5),
    "Calling: add(2, 2), apply": ("add(2, 2), add.apply((2, 3)).get()", [4, 5]),
    "Calling: send_task": ("app.send_task('proj.tasks.add', (2, 2)).get(T)", 4),
    "Calling: link": (
        "result = add.apply_async((2, 2), link=[mul.s(16), mul.si(1, 2)])\n"
        "result.get(T), [child.get(T) for child in until(lambda: result.children)]",
        [4, [[64, 2]]],
    ),
    "Calling: link_error": (
        "new = fails.apply_async(link_error=note.s('new'))\n"
        "old = fails.apply_async(link_error=old_note.s('old'))\n"
        "read('new') == f\"{new.id} LookupError('no bread')\", read('old') == old.id",
        [True, True],
    ),
    "Calling: on_message": (
        "add.delay(1, 2).get(T, on_message=print)",
        "ImproperlyConfigured: Backend does not support on_message callback",
    ),
    "Calling: retry, retry_policy": (
        "add.apply_async((1, 1), retry=False).get(T), "
        "add.apply_async((1, 1), retry_policy={'max_retries': 3}).get(T)",
        [2, 2],
    ),
    "Calling: serializer": (
        "add.apply_async((1, 1), serializer='json').get(T)\nadd.apply_async((1, 1), serializer='pickle')",
        "BadInput: proj.tasks.add: workers do not accept 'pickle' (they accept: json)",
    ),
    "Calling: compression": ("add.apply_async((1, 1), compression='zlib').get(T)", 2),
    "Calling: connection, producer": (
        "with app.connection_for_write() as connection:\n"
        "    one = add.apply_async((1, 1), connection=connection).get(T)\n"
        "with app.producer_pool.acquire(block=True) as producer:\n"
        "    two = add.apply_async((1, 1), producer=producer).get(T)\n"
        "one, two",
        [2, 2],
    ),
    "Calling: exchange, routing_key": (
        "assert add.apply_async((1, 1), exchange='proj', routing_key='proj.tasks').get(T) == 2\n"
        "add.apply_async((1, 1), routing_key='feed.import')",
        "BrokerRefused: proj.tasks.add: no queue takes the message",
    ),
    "Calling: ignore_result": ("add.apply_async((1, 1), ignore_result=True).get(T)", None),
    "Calling: headers, shadow, task_id, reply_to": (
        "options = {'headers': {'mine': 'a'}, 'shadow': 'other', 'task_id': 'me', 'reply_to': 'x'}\n"
        "asked.apply_async(('mine', 'shadow', 'id', 'reply_to'), **options).get(T)",
        ["a", "other", "me", "x"],
    ),
    "Calling: time_limit, soft_time_limit": (
        "asked.apply_async(('timelimit',), time_limit=60, soft_time_limit=30).get(T), "
        "slow.apply_async(soft_time_limit=1).get(T)",
        [[[60, 30]], "asked to end"],
    ),
    "Calling: get(timeout=…), propagate=False, then, forget": (
        "result, seen = add.delay(1, 2), []\n"
        "result.then(lambda ended: seen.append(ended.result))\n"
        "values = [result.get(T), seen, repr(fails.delay().get(T, propagate=False))]\n"
        "result.forget()\n"
        "values, result.state",
        [[3, [3], "LookupError('no bread')"], "PENDING"],
    ),
    "Calling: state, successful, failed, traceback, args, worker": (
        "result, failure = add.delay(1, 2), fails.delay()\n"
        "result.get(T), failure.get(T, propagate=False)\n"
        "[result.state, result.successful(), result.args, bool(result.worker)], "
        "[failure.state, failure.failed(), failure.traceback.splitlines()[-1]]",
        [["SUCCESS", True, [1, 2], True], ["FAILURE", True, "LookupError: no bread"]],
    ),
    "Calling: AsyncResult": (
        "from celery.result import AsyncResult\n"
        "add.apply_async((1, 2), task_id='by its id')\nAsyncResult('by its id').get(T)",
        3,
    ),
    "Calling: result.revoke": (
        "result = add.apply_async((1, 2), countdown=3600)\nresult.revoke()\nresult.get(T)",
        "TaskRevokedError: revoked",
    ),
    "Routing: Broadcast": (
        "from kombu.common import Broadcast\nadd.apply_async((1, 1), queue=Broadcast('news'))",
        "BadInput: proj.tasks.add: there is no queue ",
    ),
}
