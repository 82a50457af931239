"""The package as `pip install .` leaves it: its programs outside of the checkout, and its types."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Of a program of somebody else: what must pass, and of the lines that say so, what must not.
USER_MODULE = """
from proj import app
from proj.enqueue import Task, enqueue
from proj.tasks import add, sleep_dots


@app.task(name="theirs.greet", max_retries=3)
def greet(name: str, times: int = 1) -> str:
    return name * times


@app.task(name="theirs.bound", bind=True)
def bound(self: Task, name: str) -> int:
    self.update_state(state="PROGRESS", meta={"at": 1})
    return len(name)


@app.task
def bare(number: int) -> int:
    return number


def run(task: Task) -> None: ...


total: int | float = add.delay(1, 2).get(timeout=5)
seconds: int = sleep_dots.delay("...").get()
later: int | float = add.apply_async((1, 2), countdown=5, task_id="order").get()
greeting: str = greet.delay("a", times=2).get() + greet("a")
length: int = bound.delay("a").get() + bare.delay(1).get()
task_id: str = enqueue("proj.tasks.add", (1, 2), countdown=3).id
add.s(1, 2).apply_async()
run(add)

add.delay("x", 2)  # wrong: arg-type
add.delay(1)  # wrong: call-arg
sleep_dots.delay(1)  # wrong: arg-type
greet.delay("a", time=2)  # wrong: call-arg
bound.delay(1)  # wrong: arg-type
words: str = add.delay(1, 2).get()  # wrong: assignment
"""

#: Nothing is followed but the package itself: the others cost time, and Celery has no types.
MYPY_CONFIG = """
[mypy]
strict = True
follow_imports = skip
[mypy-proj.*]
follow_imports = silent
"""


class Installation:
    """A virtual environment with the package, which finds what that needs in the one of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self._run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
        venv.create(folder / "venv", symlinks=True)
        (self.wheel,) = folder.glob("*.whl")
        pip = (sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check")
        self._run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", str(self.wheel))
        paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.packages = Path(sysconfig.get_path("purelib", vars=paths))
        (self.packages / "tests.pth").write_text(sysconfig.get_path("purelib"))

    def run(self, *command: str | Path) -> str:
        """What the command writes to stdout, outside of the checkout."""
        return self._run(*map(str, command), cwd=self.elsewhere)

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env["PROJ_STATE_DIR"] = str(self.folder / "state")
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"))


def test_every_file_of_the_package_is_installed(installed: Installation) -> None:
    """What programs read, and `py.typed`, without which nobody sees the types."""
    files, in_checkout = (
        {
            str(path.relative_to(root))
            for path in (root / "proj").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for root in (installed.packages, ROOT)
    )

    assert "proj/py.typed" in files
    assert files == in_checkout


def test_programs_run_outside_of_the_checkout(installed: Installation) -> None:
    """Both `proj` and `celery -A proj` are those of the installation, in any folder."""
    proj = installed.python.with_name("proj")
    where = "import proj.celery; print(proj.celery.__file__)"
    assert installed.run(installed.python, "-c", where) == f"{installed.packages}/proj/celery.py\n"
    assert installed.run(proj, "--version") == f"proj, version {version('proj')}\n"
    assert "--watch" in installed.run(proj, "queues", "--help")
    report = installed.run(installed.python, "-m", "celery", "-A", "proj", "report")
    assert re.search(r"include:\s+\('proj\.tasks',\)", report)


def test_mypy_checks_a_program_that_uses_it(installed: Installation) -> None:
    """Strictly: correct calls pass with no ignores, a wrong argument or a wrong result is an error."""
    module = installed.elsewhere / "theirs.py"
    module.write_text(USER_MODULE)
    (installed.elsewhere / "mypy.ini").write_text(MYPY_CONFIG)
    cache = installed.folder / "mypy"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", installed.python, "--cache-dir", cache, module],
        cwd=installed.elsewhere,
        capture_output=True,
        text=True,
        timeout=120,
    )

    found = re.findall(r"^theirs\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    lines = USER_MODULE.splitlines()
    wrong = [(str(n), line.partition("# wrong: ")[2]) for n, line in enumerate(lines, 1) if "# wrong" in line]
    assert found == wrong, done.stdout + done.stderr
