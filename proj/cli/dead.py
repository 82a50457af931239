"""`proj dead`: the dead-letter queue."""

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

import proj
from proj.cli.progress import progress_bar
from proj.cli.strict_json import to_json
from proj.dead_letters.reasons import Reason
from proj.errors import BadInput, ExitCode, ProjError
from proj.logs.printable import counted, indented, printable

if TYPE_CHECKING:
    from proj.dead_letters import Report
    from proj.dead_letters.letter import DeadLetter
    from proj.results import Outcome

#: Explanations of the reasons; `unknown` is a message without the broker's death header.
REASONS: Final[dict[str, str]] = {
    Reason.REJECTED: "the task failed, or a worker could not execute it",
    Reason.EXPIRED: "no worker took it in time",
    Reason.DELIVERY_LIMIT: "requeued {times}; it may kill its workers",
    Reason.MAXLEN: "its queue was full",
    Reason.UNREADABLE: "proj ingest cannot decode it",
    Reason.INVALID: "its task does not take what proj ingest decoded",
    Reason.UNKNOWN: "published to this queue by hand",
}

#: Columns to shorten when a line is wider than the terminal, in this order, each with its minimum width.
#: 155 characters hold every id that our publishers accept, so an id can be copied.
_CUT: Final = {"exception": 20, "arguments": 12, "task": 16, "reason": 14, "id": 155}

#: Characters of a line without a terminal.
_WIDTH: Final = 200


def _filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    task = click.option("--task", metavar="NAME", help="Only dead letters of this task.")
    reason = click.option(
        "--reason", type=click.Choice([*map(str, REASONS)]), help="Only dead letters with this reason."
    )
    return task(reason(command))


def _action_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--dry-run", is_flag=True, help="Change nothing; print how many would be affected."),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N dead letters."),
        click.option("--all", "everything", is_flag=True, help="All dead letters that match the options."),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return _filter_options(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per dead letter.")


@click.group()
def dead() -> None:
    """List, show, redrive or drop dead letters.

    Listing and showing change nothing. Only one program can read the dead letters at a time.

    Example: proj dead list
    """


@dead.command("list")
@_filter_options
@click.option("--limit", type=click.IntRange(min=1), default=50, metavar="N", help="At most N dead letters.")
@_json_option
def list_(task: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, oldest first, each with its reason.

    Takes less than a second, whatever the queue's length. Filters such as --task read further into the queue,
    and later calls must read as far again to keep the order: 10 to 25 seconds for 100,000 dead letters.

    Example: proj dead list --reason rejected --limit 10
    """
    from proj import dead_letters
    from proj.dead_letters import letter

    letters = dead_letters.listing(proj.app, letter.Wanted(task=task, reason=reason), limit)
    outcomes = letter.Outcomes(proj.app)
    rows = [_row(letter, outcomes.of(letter)) for letter in letters]
    if as_json:
        for row in rows:
            click.echo(to_json(row))
    elif rows:
        _print_table(rows)
    else:
        click.echo("No dead letters.", err=True)
    if len(rows) == limit:
        click.echo(f"Only the first {limit} are listed; see --limit.", err=True)
    _warn(outcomes.problem)


@dead.command()
@click.argument("letter_id", metavar="ID")
@_json_option
def show(letter_id: str, as_json: bool) -> None:
    """Show everything known about one dead letter.

    Example: proj dead show 0e463b8b-2d75-4f9f-97b1-52a856013fb7
    """
    from proj import dead_letters
    from proj.dead_letters import letter

    letters = dead_letters.listing(proj.app, letter.Wanted(ids={letter_id}), limit=1)
    if not letters:
        raise _unknown([letter_id])
    outcomes = letter.Outcomes(proj.app)
    details = _details(letters[0], outcomes.of(letters[0]))
    if as_json:
        click.echo(to_json(details))
    else:
        for name, value in details.items():
            if value not in (None, {}, []):
                text = value if isinstance(value, str) else to_json(value)
                click.echo(indented(name, text, 11))
    _warn(outcomes.problem)


@dead.command()
@_action_options
def redrive(ids: tuple[str, ...], everything: bool, dry_run: bool, **choice: Any) -> None:
    """Send dead letters back to their queues.

    Each is marked as a possible repeat. A dead letter that cannot be sent back stays where it is. --dry-run
    detects missing queues, but neither messages that are too large nor full queues.

    Example: proj dead redrive --all --task proj.tasks.add
    """
    from proj import dead_letters
    from proj.logs import formats

    _check_choice(ids, everything)
    formats.write_events(proj.app.settings)
    report = dead_letters.redrive(
        proj.app,
        _wanted(ids, **choice),
        choice["limit"],
        dry_run=dry_run,
        progress=partial(progress_bar, "redriving"),
    )
    left = ", ".join(f"{why} ({count})" for why, count in sorted(report.left.items()))
    word = "would be redriven" if dry_run else "redriven"
    _print_summary(
        f"{report.done} {word}" + (f", {report.left.total()} left: {left}" if left else ""), ids, report
    )
    if report.undeliverable:
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)
    if report.left:
        raise click.exceptions.Exit(ExitCode.BAD_DATA)
    _check_all_found(ids, report, choice["limit"])


@dead.command()
@_action_options
@click.option("--yes", is_flag=True, help="Confirm the deletion; otherwise only count.")
def drop(ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, **choice: Any) -> None:
    """Delete dead letters permanently.

    Example: proj dead drop --all --reason expired --yes
    """
    from proj import dead_letters
    from proj.logs import formats

    _check_choice(ids, everything)
    formats.write_events(proj.app.settings)
    count_only = dry_run or not yes
    report = dead_letters.drop(
        proj.app,
        _wanted(ids, **choice),
        choice["limit"],
        dry_run=count_only,
        progress=partial(progress_bar, "dropping"),
    )
    if report.done and not (dry_run or yes):
        letters = counted(report.done, "dead letter")
        raise click.UsageError(f"{letters} would be deleted permanently; confirm with --yes")
    _print_summary(f"{report.done} {'would be dropped' if count_only else 'dropped'}", ids, report)
    _check_all_found(ids, report, choice["limit"])


def _check_choice(ids: tuple[str, ...], everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("give either ids or --all")


def _wanted(ids: tuple[str, ...], task: str | None, reason: str | None, **_: Any) -> Any:
    from proj.dead_letters.letter import Wanted

    return Wanted(set(ids) if ids else None, task, reason)


def _print_summary(text: str, ids: tuple[str, ...], report: "Report") -> None:
    if report.ids or not ids:  # otherwise the error about unknown ids says it all
        click.echo(text, err=True)


def _check_all_found(ids: tuple[str, ...], report: "Report", limit: int | None) -> None:
    if limit is not None and report.done >= limit:
        return  # reading stopped at the limit
    missing = [each for each in dict.fromkeys(ids) if each not in report.ids]
    if missing:
        raise _unknown(missing)


def _unknown(ids: Iterable[str]) -> ProjError:
    return BadInput(f"no such dead letter: {', '.join(ids)}", "list them with: proj dead list")


def _row(letter: "DeadLetter", outcome: "Outcome | None") -> dict[str, Any]:
    from proj.dead_letters.letter import attempts_of

    attempts = attempts_of(letter, outcome)
    times = "too often" if attempts is None else f"{attempts} times"
    reason = REASONS.get(letter.reason, "reported by the broker").format(times=times)
    return {
        "id": letter.id,
        "task": letter.task or ("a foreign message" if letter.foreign else "not a Celery message"),
        "arguments": letter.arguments if letter.task else letter.text,
        "reason": f"{letter.reason}: {reason}",
        "attempts": attempts,
        "redrives": letter.redrives,
        "first": letter.first,
        "last": letter.last,
        "exception": (outcome and outcome.error) or (letter.foreign and letter.foreign.problem),
    }


def _details(letter: "DeadLetter", outcome: "Outcome | None") -> dict[str, Any]:
    original = letter.foreign or letter  # of a foreign message, what its publisher wrote
    return _row(letter, outcome) | {
        "queue": letter.queue,
        "worker": outcome.worker if outcome else None,
        "properties": _named({k: v for k, v in original.properties.items() if k != "application_headers"}),
        "headers": _named({k: v for k, v in original.headers.items() if k != "x-death"}),
        "x-death": _named(letter.deaths),
        "body": letter.text,
        "traceback": outcome.traceback if outcome else None,
    }


def _named(value: Any) -> Any:
    """The value with text for names that are not UTF-8: these are bytes, so that a redrive sends the same."""
    if isinstance(value, dict):
        return {_name(name): _named(each) for name, each in value.items()}
    return [_named(each) for each in value] if isinstance(value, list) else value


def _name(name: str | bytes) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


def _print_table(rows: list[dict[str, Any]]) -> None:
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = {name: max(len(line[i]) for line in lines) for i, name in enumerate(rows[0])}
    terminal = shutil.get_terminal_size((_WIDTH, 0)).columns
    for name, least in _CUT.items():
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - terminal
        widths[name] = max(min(least, widths[name]), widths[name] - max(0, excess))
    for line in lines:
        cells = (
            (text if len(text) <= width else f"{text[: width - 1]}…").ljust(width)
            for text, width in zip(line, widths.values(), strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    return "-" if value is None else printable(" ".join(str(value).split()))


def _warn(problem: str | None) -> None:
    if problem:
        click.echo(f"Exceptions are missing: {problem}", err=True)
