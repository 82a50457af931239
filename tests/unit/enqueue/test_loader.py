"""A module with tasks that cannot be imported is reported in one line, with its file and line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proj.enqueue.app import App
from proj.errors import BadTaskModule, ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a user has modules; they are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def app() -> Iterator[App]:
    with App("mine", include=["their_tasks"], task_cls="proj.enqueue:Task", set_as_current=False) as app:
        yield app


def _load(app: App) -> str:
    with pytest.raises(BadTaskModule) as told:
        app.loader.import_default_modules()
    assert told.value.exit_code == 2
    words = str(told.value)
    assert "\n" not in words
    return words


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("import json\nimport requets", 2, "ModuleNotFoundError: No module named 'requets'"),
        ("from json import nothing", 1, "ImportError: cannot import name 'nothing' from 'json'"),
        ("import json\n\nlimit = LIMIT", 3, "NameError: name 'LIMIT' is not defined"),
        ("\ndef task(:\n    pass", 2, "SyntaxError: invalid syntax"),
        ("def f():\n    return 1 / 0\n\nf()", 4, "ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')", 2, "JSONDecodeError: Expecting property name"),
    ],
)
def test_error_of_a_module_has_its_line(folder: Path, app: App, code: str, line: int, words: str) -> None:
    """The file and the line of the module, what is wrong there, and how to see the traceback."""
    file = folder / "their_tasks.py"
    file.write_text(code)

    said = _load(app)

    assert said.startswith(f"their_tasks cannot be imported: {file}:{line}: {words}")
    assert said.endswith("(for the traceback: python -c 'import their_tasks')")


def test_error_of_a_module_that_is_imported_there_has_its_own_line(folder: Path, app: App) -> None:
    """The innermost module of the project is where the mistake is; a library's is not."""
    (folder / "their_tasks.py").write_text("import their_helper")
    helper = folder / "their_helper.py"
    helper.write_text("import json\n\njson.nothing")

    assert f"imported: {helper}:3: AttributeError: " in _load(app)


def test_task_that_is_refused_has_its_line(folder: Path, app: App) -> None:
    """What its decorator says of it, and what to do."""
    file = folder / "their_tasks.py"
    file.write_text("import their_app\n\n@their_app.app.task(name='t')\nasync def t(): ...")
    helper = folder / "their_app.py"
    helper.write_text("from proj.enqueue.app import App\n\napp = App('theirs', set_as_current=False)")

    said = _load(app)

    assert said.startswith(f"their_tasks cannot be imported: {file}:3: t: a task cannot be an async function")
    assert said.endswith("(write a plain function that calls asyncio.run(…))")


def test_module_that_does_not_exist(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no file to name; it was looked for in the working folder."""
    monkeypatch.chdir(tmp_path)
    said = _load(app)

    assert said.startswith("their_tasks cannot be imported: ModuleNotFoundError: No module named 'their")
    assert said.endswith(
        f"start the program in the folder that has it, not in {tmp_path}; or set PYTHONPATH)"
    )


def test_two_modules_with_tasks_of_one_name(folder: Path, app: App) -> None:
    """Only the first function would ever be executed, so the second is refused, with its line."""
    task = "import their_app\n\n@their_app.app.task(name='t')\ndef t(): ..."
    (folder / "their_tasks.py").write_text(f"import their_others\n{task}")
    (folder / "their_others.py").write_text(task)
    app_of = "from proj.enqueue.app import App\n\napp = App('theirs', set_as_current=False)"
    (folder / "their_app.py").write_text(app_of)

    said = _load(app)

    where = f"their_tasks cannot be imported: {folder}/their_tasks.py:4: t: defined in"
    assert said.startswith(f"{where} their_others and in their_tasks (give each task a name of its own)")


def test_wrong_setting_stays_one(folder: Path, app: App) -> None:
    """What a module reads of the settings is reported as their error."""
    (folder / "their_tasks.py").write_text("from proj.errors import ConfigError\n\nraise ConfigError('no')")
    with pytest.raises(ConfigError, match=r"^no$"):
        app.loader.import_default_modules()
