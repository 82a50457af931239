"""docs/tutorial.md, as its reader goes through it: from an empty folder to the example."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lib.bundle import BIN, Bundle
from tests.lib.missing import missing
from tests.lib.photos import EXAMPLE, plain
from tests.lib.ports import free_port
from tests.lib.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/tutorial.md").read_text()

#: What comes before the first step is the set-up, which the tests have.
STEPS = TEXT[TEXT.index("\n## 1.") : TEXT.index("\n## With Flask")]

#: A file of the example with its name and text, or the lines of a terminal.
BLOCKS = re.compile(r"(?:^`(\S+)`:\n\n)?^```(?:python|ini|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FILES = {name: text for name, text in BLOCKS.findall(STEPS) if name}

#: Commands that run until the reader ends them, and what they say when they are ready.
LASTING = {"celery -A proj worker": " ready.", "python -m photos": "photos: http"}

#: Commands that only look: what is to be seen may be yet to come.
LOOKING = ("curl", "proj dead list", "proj result")


@pytest.mark.parametrize("name", FILES)
def test_its_files_are_those_of_the_example(name: str) -> None:
    """To the letter. If they differ, the example is right: copy it."""
    assert FILES[name] == (EXAMPLE / name).read_text()


def test_it_has_all_modules_of_the_example() -> None:
    """But for the mark of a package, and the program that measures."""
    modules = {f"photos/{path.name}" for path in (EXAMPLE / "photos").glob("*.py")}
    found = {name for name in FILES if name.endswith(".py")}
    assert found == modules - {"photos/__init__.py", "photos/measure.py"}


class Reader:
    """Types what the tutorial says, in a folder that is empty at first."""

    def __init__(self, bundle: Bundle, terminals: ExitStack) -> None:
        self.folder = bundle.folder / "my-photos"
        self.folder.mkdir()
        self._terminals = terminals
        self._port = free_port()
        self._variables = bundle.folder / "variables"
        self._variables.touch()
        self._env = bundle.env | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PROJ": str(ROOT),
            "PHOTOS_PORT": str(self._port),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def type(self, command: str, expected: str) -> None:
        command = command.replace(":8000", f":{self._port}")
        for begin, ready in LASTING.items():
            if command.startswith(begin):
                return self._keep_running(command, ready)
        if command.startswith(LOOKING):
            eventually(f"{command} says {expected}", lambda: self._run(command) == expected)
        else:
            assert self._run(command) == expected, command
        return None

    def _run(self, command: str) -> str:
        """What it says, in the terminal whose variables the commands before have set."""
        keep = f"declare -p photo diary PHOTOS_DIR 2>/dev/null >{self._variables}"
        script = f". {self._variables}; {command}\n{keep}"
        return str(self._open(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).communicate()[0])

    def _keep_running(self, command: str, ready: str) -> None:
        log = self.folder.parent / f"{command.split()[0]}.log"
        with log.open("wb") as output:
            script = f". {self._variables}; export PHOTOS_DIR; exec {command}"
            program = self._open(script, stdout=output, stderr=output)
        self._terminals.callback(program.wait, PATIENCE)
        self._terminals.callback(program.terminate)

        def is_ready() -> bool:
            assert program.poll() is None, log.read_text()
            return ready in log.read_text()

        eventually(f"{command} is ready", is_ready, seen=log.read_text)

    def _open(self, script: str, **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            text=True,
            **streams,
        )


@pytest.fixture
def reader(bundle: Bundle) -> Iterator[Reader]:
    if not (shutil.which("curl") and shutil.which("bash")):
        missing("curl is missing")
    with ExitStack() as terminals:
        yield Reader(bundle, terminals)


def test_from_an_empty_folder_to_the_example(reader: Reader) -> None:
    """Each step runs and says what the tutorial says; at the end, the folder is that of the example."""
    commands = 0
    for name, text in BLOCKS.findall(STEPS):
        if name:
            reader.write(name, text)
            continue
        for command, said in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            if not command.startswith("proj doctor"):  # it says what is so on this machine
                reader.type(command, said)
            commands += 1
    assert commands > 20


#: Runs a handler of the tutorial once, without a server: it prints the answer's status, header and body.
FLASK = """
import io, json, sys
exec(open("handler.py").read())
form = {"photo": (io.BytesIO(open("photo.jpg", "rb").read()), "one.jpg")}
answer = site.test_client().post("/photos", data=form)
print(json.dumps([answer.status_code, answer.headers.get("Retry-After"), answer.get_json()]))
"""

DJANGO = """
import json
from django.conf import settings
settings.configure()
import django
django.setup()
exec(open("handler.py").read())
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import RequestFactory
file = SimpleUploadedFile("one.jpg", open("photo.jpg", "rb").read())
answer = upload(RequestFactory().post("/photos", {"photo": file}))
print(json.dumps([answer.status_code, answer.headers.get("Retry-After"), json.loads(answer.content)]))
"""


@pytest.mark.parametrize(("name", "program"), [("flask", FLASK), ("django", DJANGO)])
def test_handlers_of_other_frameworks(bundle: Bundle, name: str, program: str) -> None:
    """Each accepts a photo whose message is confirmed, and else asks for it again."""
    handlers = re.findall(r"^<!-- (\w+) -->\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (bundle.folder / "handler.py").write_text(dict(handlers)[name])
    (bundle.folder / "photo.jpg").write_bytes(plain())
    bundle.env |= {"PROJ_TASKS": "photos.tasks", "PROJ_QUEUES": "photos", "PYTHONPATH": str(EXAMPLE)}

    status, retry_after, answer = bundle.python(program)
    assert (status, retry_after, list(answer)) == (202, None, ["id"])
    assert bundle.depth("photos") == 1

    bundle.env |= {"CELERY_BROKER_URL": bundle.url_at(1), "PROJ_PUBLISH_TIMEOUT": "1"}
    status, retry_after, answer = bundle.python(program)
    assert (status, retry_after, list(answer)) == (503, "2", ["detail"])
