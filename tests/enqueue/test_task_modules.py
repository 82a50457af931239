"""Modules with tasks of a user: one setting names them, and every program knows their tasks."""

import json
from collections.abc import Iterator

import pytest

from tests.lib.bundle import Bundle
from tests.lib.findings import doctor
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually

GREET = """\
from proj import app
from shop import words

app.conf.beat_schedule = {"hello": {"task": "shop.gret", "schedule": 60, "args": ("Anna",)}}


@app.task(name="shop.greet")
def greet(name: str) -> str:
    return f"{words.HELLO}, {name}"
"""

MAIL = """\
from proj import app


@app.task(name="shop.mail", queue="slow")
def mail(to: str, copies: int = 1) -> str:
    from shop.words import HELLO  # while a task is executed, not when the module is imported
    return HELLO * copies
"""

REQUEST = '{"task": "shop.greet", "args": ["Anna"], "id": "one"}\n'

ROUTES = '[[route]]\nqueue = "hellos"\ndecoder = "text"\ntask = "shop.greet"\n'

#: Programs that load the tasks.
PROGRAMS = (
    "proj enqueue task shop.greet 1",
    "proj enqueue batch requests.jsonl",
    "proj schema",
    "proj doctor",
    "proj ingest",
    "celery -A proj report",
    "celery -A proj beat",
    "celery -A proj worker",
)


@pytest.fixture(scope="module")
def shop(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Programs that are started in a folder with a package `shop`."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop").mkdir()
    for name, text in {"tasks": GREET, "mail": MAIL, "words": 'HELLO = "Hello"'}.items():
        (folder / f"shop/{name}.py").write_text(text)
    (folder / "routes.toml").write_text(ROUTES)
    (folder / "requests.jsonl").write_text(REQUEST)
    with vhosts.lend(folder) as bundle:
        bundle.env |= {
            "PROJ_TASKS": "shop.tasks, shop.mail",
            "PROJ_QUEUES": "slow",
            "PROJ_INGEST_ROUTES": "routes.toml",
        }
        yield bundle


def test_every_program_knows_their_tasks(shop: Bundle) -> None:
    """The worker executes them, from the command line and from a batch, and the doctor counts them."""
    shop.worker("-Q", "slow").ready()
    shop.worker("-n", "other", log="other.log").ready()
    sent = shop.proj("enqueue", "task", "shop.mail", '"Anna"', "--wait")
    assert (sent.stdout, sent.returncode) == ('"Hello"\n', 0), sent.stderr
    batch = shop.proj("enqueue", "batch", "requests.jsonl")
    assert batch.returncode == 0, batch.stderr
    eventually("it is executed", lambda: '"Hello, Anna"' in shop.proj("result", "one").stdout)

    found = doctor(shop)

    assert [each["what"][:11] for each in found if each["check"] == "tasks"] == ["all 4 tasks"]
    assert [each for each in found if "shop." in each["what"]] == []


def test_their_arguments_are_checked_and_described(shop: Bundle) -> None:
    """As those of the project's own tasks; a route of `proj ingest` may name one."""
    schemas = json.loads(shop.proj("schema").stdout)

    assert set(schemas["tasks"]) == {"proj.tasks.add", "proj.tasks.sleep_dots", "shop.greet", "shop.mail"}
    assert list(schemas["routes"]) == ["hellos"]
    assert shop.proj("enqueue", "task", "shop.greet", "[]").returncode == 65


def test_beat_checks_its_schedule_against_them(shop: Bundle) -> None:
    """A misspelt name ends it at its start, with the nearest one that is known."""
    beat = shop.beat()

    assert beat.ends() == 2
    assert (
        "entry 'hello' of the schedule: there is no task 'shop.gret' (did you mean shop.greet?)"
        in beat.text()
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mistake_in_one_is_one_line(shop: Bundle, program: str) -> None:
    """With its file and its line, whichever program meets it."""
    file = shop.folder / "slip.py"
    file.write_text("import json\n\nlimit = LIMIT\n")

    _ends_with_one_line(shop, program, "slip", f"slip cannot be imported: {file}:3: NameError: name 'LIMIT'")


def test_a_module_that_is_missing_is_one_line(shop: Bundle) -> None:
    """With the folder in which it was looked for."""
    said = "shop.gone cannot be imported: ModuleNotFoundError: No module named 'shop.gone' (start the program"
    _ends_with_one_line(shop, "proj schema", "shop.tasks,shop.gone", said)


def _ends_with_one_line(shop: Bundle, program: str, modules: str, words: str) -> None:
    name, *options = program.split()
    run = shop.proj if name == "proj" else shop.celery
    done = run(*options[2 * (name == "celery") :], env={"PROJ_TASKS": modules})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"Error: {words}")
    assert done.stderr.count("\n") == 1
