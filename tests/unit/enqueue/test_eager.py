"""Tasks that are executed by the program that calls them: Celery's `task_always_eager`, and `apply()`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SET_UP = """
import json, os, sys
from proj import app
app.conf.task_always_eager = True
attempts = []
def again(): attempts.clear(); return shaky

@app.task(name="proj.tasks.shaky", bind=True)
def shaky(self, failures: int):
    attempts.append(self.request.retries)
    if len(attempts) <= failures:
        raise ConnectionError("not yet")
    return len(attempts)

@app.task(name="proj.tasks.nested")
def nested(x: int) -> int:
    return again().delay(0).result + x

from proj.tasks import add, sleep_dots
from proj.errors import ProjError
def told(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


#: What is asked of the program, in this order, and what it answers, or how its answer begins.
ANSWERS: dict[str, Any] = {
    "[add.delay(2, 3).get(), add.apply((2, 3)).get()]": [5, 5],
    "[add.delay(2, 3).state, add.apply_async((2, 3), task_id='mine', countdown=60).id]": ["SUCCESS", "mine"],
    "told(lambda: add.delay('2', 3))": "BadArguments: proj.tasks.add: argument x: expected a number",
    "told(lambda: add.delay(2))": "BadArguments: proj.tasks.add: argument y is missing",
    "told(lambda: add.apply_async((2, 3), countdown=-1))": "BadInput: a countdown is 0 or more",
    "[again().delay(2).get(), attempts]": [3, [0, 1, 2]],
    "told(lambda: again().delay(99).get())": "ConnectionError: not yet",
    "[again().delay(99).state, len(attempts)]": ["FAILURE", 6],
    "nested.delay(4).get()": 5,
    "(add.s(1, 2) | add.s(10)).delay().get()": 13,
    "told(lambda: add.apply(('2', 3)).get())": "BadArguments: proj.tasks.add: argument x",
    "[add.delay(2, 3).get(), os.path.exists('state'), 'sqlalchemy' in sys.modules]": [5, False, False],
    "[again().apply((99,)).state, os.path.exists('state'), 'sqlalchemy' in sys.modules]": [
        "FAILURE",
        False,
        False,
    ],
}


def test_eager_task_needs_no_broker_and_no_store(tmp_path: Path) -> None:
    """It is executed here, its arguments are checked; results, errors and retries are as Celery has them."""
    program = [SET_UP, *(f"print(json.dumps({asked}))" for asked in ANSWERS)]
    env = os.environ | {
        "PROJ_STATE_DIR": str(tmp_path / "state"),
        "CELERY_RESULT_BACKEND": "db+postgresql://user@store.invalid/results",
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr

    for (asked, expected), line in zip(ANSWERS.items(), done.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        assert answer.startswith(expected) if isinstance(expected, str) else answer == expected, asked
