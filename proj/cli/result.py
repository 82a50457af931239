"""`proj result`: how a task ended."""

from dataclasses import asdict

import click

import proj
from proj.cli.strict_json import to_json
from proj.errors import ExitCode, NoResultYet
from proj.logs.printable import counted, indented


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def result(task_id: str, as_json: bool) -> None:
    """Show how a task ended.

    The exit code is 0 when it succeeded, 1 when it failed, 75 when no result is stored.

    Example: proj result 0e463b8b-2d75-4f9f-97b1-52a856013fb7
    """
    from proj import results
    from proj.enqueue.checks import checked_id

    found = results.outcome(proj.app, checked_id(task_id))
    fields = asdict(found)
    if as_json:
        click.echo(to_json(fields))
    else:
        fields["result"] = None if found.error else to_json(found.result)
        for name, value in fields.items():
            if value is not None and (found.ended or name != "result"):
                click.echo(indented(name, value, 9))
    if not found.ended and found.error:
        raise NoResultYet(
            f"the last attempt of {task_id} failed, and no result is stored yet",
            f"it will be retried, or is a dead letter: proj dead show {task_id}",
        )
    if not found.ended:
        raise NoResultYet(
            f"no result for {task_id}{_kept_for(proj.app.settings.proj_result_expires)}",
            "it is waiting or running, or a dead letter that no worker has read, or was never enqueued",
        )
    if found.error:
        raise click.exceptions.Exit(ExitCode.TASK_FAILED)


def _kept_for(seconds: int) -> str:
    """How long results are kept, in the largest unit that fits; nothing when they are kept for ever."""
    for unit, length in (("day", 24 * 3600), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, rest = divmod(seconds, length)
        if count and not rest:
            return f" (kept for {counted(count, unit)})"
    return ""
