"""The top-level command: loads its subcommands on demand, and prints errors as one line."""

import difflib
import importlib
import os
import sys
from typing import Any, Final, NoReturn

import click

from proj.errors import ExitCode, ProjError
from proj.logs import streams
from proj.logs.printable import error_line

#: Each command with its module and its line in `proj --help`, which then needs no import of the module.
COMMANDS: Final = {
    "enqueue": ("proj.cli.enqueue", "Enqueue a task and wait for the broker's confirm."),
    "result": ("proj.cli.result", "Show how a task ended."),
    "ingest": ("proj.cli.ingest", "Make tasks of plain messages in queues of other programs."),
    "schema": ("proj.cli.schema", "Print JSON Schema of tasks' arguments and foreign bodies."),
    "queues": ("proj.cli.queues", "Show the length and message rates of queues."),
    "dead": ("proj.cli.dead", "List, show, redrive or drop dead letters."),
    "doctor": ("proj.cli.doctor", "Check the installation, and suggest a fix for each problem."),
    "health": ("proj.cli.health", "Check that this machine's workers are live or ready."),
    "broker": ("proj.cli.broker", "Run a private RabbitMQ node, for development and tests."),
}

#: The variable that click's shell completion sets.
_COMPLETE: Final = "_PROJ_COMPLETE"

#: Raised by click 8.2 and later for a group without a command; its message is the group's help.
_NO_COMMAND: Final[Any] = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Click suggests only commands that are loaded.
        near = (
            []
            if args[0] in COMMANDS or args[0].startswith("-")
            else difflib.get_close_matches(args[0], COMMANDS)
        )
        if near and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command; turn every error into one line on stderr and an `ExitCode`."""
        if instruction := os.environ.get(_COMPLETE):
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(self, {}, "proj", _COMPLETE, instruction))
        debug = False
        try:
            with self.make_context("proj", list(sys.argv[1:])) as ctx:
                debug = ctx.params["debug"]
                self.invoke(ctx)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except _NO_COMMAND as error:
            click.echo(error.format_message(), err=True)
            sys.exit(ExitCode.USAGE)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "proj"
            _print_error(f"{error.format_message().rstrip('.')} (see: {command} --help)")
            sys.exit(ExitCode.USAGE)
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            sys.exit(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output has ended, as `head` does.
            streams.discard_stdout()
            sys.exit(ExitCode.DONE)
        except Exception as error:
            if debug:
                raise
            if isinstance(error, OSError) and (problem := streams.stdout_problem()):
                streams.discard_stdout()
                _print_error(f"stdout cannot be written: {problem}")
                sys.exit(ExitCode.NOT_WRITTEN)
            _print_error(_error_text(error))
            sys.exit(error.exit_code if isinstance(error, ProjError) else ExitCode.TASK_FAILED)
        sys.exit(ExitCode.DONE)


def _print_error(problem: str) -> None:
    click.echo(f"Error: {error_line(problem)}", err=True)


def _error_text(error: Exception) -> str:
    if isinstance(error, ProjError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (run again with: proj --debug …)"


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Exit codes: 0 done, 1 the task failed, 2 wrong usage, 65 wrong data, 69 broker or worker "
    "unreachable, 74 output not written, 75 outcome unknown, 130 interrupted.",
)
@click.version_option(package_name="proj")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def proj(debug: bool) -> None:
    """Run slow tasks in background workers, through RabbitMQ. An accepted task is never lost.

    Start a worker with: celery -A proj worker
    """
