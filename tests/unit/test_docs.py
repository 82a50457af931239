"""What the documentation says exists."""

import re
import subprocess
from pathlib import Path

import click
import pytest

from proj import config
from proj.cli.main import COMMANDS, proj
from proj.dead_letters.reasons import Reason
from proj.errors import ExitCode

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GLOSSARY = (ROOT / "docs/glossary.md").read_text()


def _commands(group: click.Group, path: str = "proj") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            found[f"{path} {name}"] = command
            if isinstance(command, click.Group):
                found |= _commands(command, f"{path} {name}")
    return found


ALL_COMMANDS = _commands(proj)


def _blocks() -> list[str]:
    """The lines of the README that people type."""
    return [
        line.removeprefix("$ ")
        for block in re.findall(r"```(?:console|sh)\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
    ]


def test_list_of_commands_says_what_each_says_of_itself() -> None:
    """The sentence of a command stands in two places, since one of them must cost no import."""
    for name, (_, sentence) in COMMANDS.items():
        assert (ALL_COMMANDS[f"proj {name}"].help or "").splitlines()[0] == sentence


@pytest.mark.parametrize("path", ALL_COMMANDS)
def test_every_command_is_in_the_readme_and_has_an_example(path: str) -> None:
    """A command that nobody hears of is not there."""
    assert path in README
    if not isinstance(ALL_COMMANDS[path], click.Group):
        assert f"Example: {path}" in (ALL_COMMANDS[path].help or "")


def test_every_command_line_of_the_readme_exists() -> None:
    """Each `proj …` in the README's blocks is a command, and its options are options of it."""
    lines = [line for line in _blocks() if line.startswith("proj ")]
    assert lines
    for line in lines:
        words = line.split("#")[0].split()
        path = max((p for p in ALL_COMMANDS if words[: len(p.split())] == p.split()), key=len, default=None)
        assert path, line
        options = {opt for param in ALL_COMMANDS[path].params for opt in param.opts} | {"--help", "--debug"}
        assert {word for word in words if re.match(r"--[a-z]", word)} <= options, line


def test_every_make_target_of_the_readme_exists_and_has_a_line_of_help() -> None:
    """`make` without a target lists them all."""
    listed = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make ([a-z-]+)", listed, re.MULTILINE))

    assert set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)) == targets
    mentioned = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(_blocks())))
    assert {"demo", "test"} <= mentioned <= targets


@pytest.mark.parametrize("name", [name.upper() for name in config.Settings.model_fields])
def test_every_setting_is_in_the_readme(name: str) -> None:
    """With the name that it has in the environment."""
    assert f"`{name}`" in README


def test_every_setting_of_the_readme_exists() -> None:
    """No setting is promised that is not read."""
    named = set(re.findall(r"`((?:PROJ|AMQP|CELERY)_[A-Z_]+)`", README))
    assert named == {name.upper() for name in config.Settings.model_fields}


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_in_the_readme(code: ExitCode) -> None:
    """As a row of its table."""
    assert re.search(rf"^\| {code.value} \|", README, re.MULTILINE)


def test_glossary_words_are_used() -> None:
    """Each word of the glossary is used elsewhere."""
    text = README + "".join(path.read_text() for path in (ROOT / "proj").rglob("*.py"))
    words = re.findall(r"^\| ([a-z ]+) \|", GLOSSARY, re.MULTILINE)[1:]
    assert "dead letter" in words
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_in_the_docs(reason: Reason) -> None:
    assert f"`{reason}`" in (ROOT / "docs" / "logs.md").read_text()
