"""The examples of Celery's pages about calls, canvases and tasks, all by one program and one worker."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.celery_docs import calling, canvas, tasks
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import PATIENCE
from tests.lib.worker import Worker

EXAMPLES = calling.EXAMPLES | canvas.EXAMPLES | tasks.EXAMPLES

#: What the last line of each example is, or its error. In threads, as a web server has them, since most wait.
_PROGRAM = """
import ast, json, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from celery import chain, chord, group, signature
from celery.canvas import StampingVisitor
from celery.result import GroupResult, ResultSet, result_from_tuple
from proj.tasks import *

T = {patience}

def until(condition):
    end = time.monotonic() + T
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError

def read(path):
    return until(lambda: Path(path).exists() and Path(path).read_text())

def compiled(code):
    *before, last = ast.parse(code).body
    module, expression = ast.Module(before, []), ast.Expression(last.value)
    return compile(module, "example", "exec"), compile(expression, "example", "eval")

def answer(example):
    names = dict(globals())
    before, last = example
    try:
        exec(before, names)
        return eval(last, names)
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"

# Not by the threads: in Python 3.11 syntax trees that several threads make at once may fail.
# https://github.com/python/cpython/issues/106905
examples = list(map(compiled, {examples!r}))
with ThreadPoolExecutor(8) as threads:
    print(json.dumps(list(threads.map(answer, examples))))
"""


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("examples")) as bundle:
        for page in (calling, canvas, tasks):
            bundle.add_task(page.TASKS)
        # Else it looks twice for the dead letters that the broker makes.
        bundle.switch_off("worker/lookout.py", "INTERVAL: Final = 5.0", "INTERVAL: Final = 0.5")
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    return shared.worker("--concurrency=2").ready()


@pytest.fixture(scope="module")
def answers(shared: Bundle, worker: Worker) -> dict[str, Any]:
    codes = [code for code, _ in EXAMPLES.values()]
    found = shared.python(_PROGRAM.format(patience=PATIENCE, examples=codes))
    return dict(zip(EXAMPLES, found, strict=True))


@pytest.mark.parametrize("row", EXAMPLES)
def test_example(answers: dict[str, Any], worker: Worker, row: str) -> None:
    """It ends as the row of the documentation says."""
    _, expected = EXAMPLES[row]
    answer = answers[row]
    if isinstance(expected, str):
        assert str(answer).startswith(expected)
    else:
        assert json.loads(json.dumps(expected)) == answer


def test_handlers_of_a_task(answers: dict[str, Any], worker: Worker) -> None:
    """Celery calls each of them when it is due."""
    for end, state in (("on_success", "SUCCESS"), ("on_failure", "FAILURE")):
        worker.says(f"hooks: ['before_start', '{end}', '{state}']")
    worker.says("hooks: on_retry")
