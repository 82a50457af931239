"""Two applications in one process: each has its own broker, store, limits and tasks."""

from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

_TWO = """
import json
from proj import celeryconfig, worker
from proj.config import Settings
from proj.dead_letters import Wanted, listing
from proj.depths import Reader
from proj.enqueue.app import App
from proj import results

def application(name, url, retries):
    settings = Settings(
        celery_broker_url=url, celery_result_backend=f"db+sqlite:///{name}.sqlite3", proj_max_retries=retries
    )
    app = App(name, set_as_current=False)
    app.config_from_object(celeryconfig.configuration(settings))
    worker.install(app, settings)
    return app

one, two = application("one", URLS[0], 1), application("two", URLS[1], 2)

@one.task(name="test.of_one", shared=False)
def of_one(x: int) -> int:
    return x

@two.task(name="test.of_two", shared=False)
def of_two(x: str) -> str:
    return x

of_one.apply_async((1,), task_id="it")
of_two.apply_async(("x",), task_id="it")
of_two.apply_async(("y",), task_id="other")
one.backend.mark_as_done("it", 1)
ready = {}
for app in (one, two):
    with Reader(app, ["proj.tasks"]) as reader:
        ready[app.main] = reader.snapshot().depths[0].ready
print(json.dumps({
    "ready": ready,
    "states": [results.outcome(app, "it").state for app in (one, two)],
    "retries": [of_one.max_retries, of_two.max_retries],
    "tasks": [sorted(name for name in app.tasks if name.startswith("test.")) for app in (one, two)],
    "dead": [len(listing(app, Wanted(), 9)) for app in (one, two)],
}))
"""


def test_two_applications_in_one_process(bundle: Bundle) -> None:
    """Neither publishes, stores, reads or retries as the other does; a worker executes those of its own."""
    other = Bundle(bundle.node, f"{bundle.vhost}-other", bundle.folder)
    with other:
        found = bundle.python(f"URLS = {[bundle.url, other.url]!r}\n{_TWO}")
        assert found == {
            "ready": {"one": 1, "two": 2},
            "states": ["SUCCESS", "PENDING"],
            "retries": [1, 2],
            "tasks": [["test.of_one"], ["test.of_two"]],
            "dead": [0, 0],
        }
        assert (bundle.depth("proj.tasks"), other.depth("proj.tasks")) == (1, 2)


def test_enqueue_by_name_is_of_the_current_application(bundle: Bundle) -> None:
    """`proj.enqueue.enqueue` uses the application that is current, and finds `proj`'s when there is none."""
    bundle.python("from proj.enqueue import enqueue; print(len(enqueue('proj.tasks.add', (1, 2)).id))")
    eventually("the message is there", lambda: bundle.depth("proj.tasks") == 1)
    assert bundle.python(f"""
URLS = {[bundle.url, bundle.url]!r}
{_TWO.partition("of_one.apply_async")[0]}
from proj.enqueue import enqueue
from proj.errors import UnknownTask
two.set_current()
try:
    enqueue("proj.tasks.add", (1, 2))
except UnknownTask:
    enqueue("test.of_two", ("x",))
    print(1)
""")
    assert bundle.depth("proj.tasks") == 2


def test_default_application_of_a_program_stays(bundle: Bundle) -> None:
    """Ours is the default of all threads only where the program has set no other."""
    names = bundle.python("""
import celery, json
celery.Celery("theirs").set_default()
import proj.celery
from celery.app import default_app
print(json.dumps([default_app.main, proj.celery.app.main]))
""")
    assert names == ["theirs", "proj"]
