"""`proj health`: a probe for supervisors."""

import click

from proj.cli.strict_json import to_json
from proj.errors import ExitCode
from proj.health import report


@click.command()
@click.option("--live", is_flag=True, help="Check the event loop; if it hangs, restart the worker.")
@click.option("--ready", is_flag=True, help="Check also that the worker consumes its queue.")
@click.option("--worker", metavar="NAME", help="Only this worker, w1@host or w1.  [default: all running]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(live: bool, ready: bool, worker: str | None, as_json: bool) -> None:
    """Check that this machine's workers are live or ready.

    A probe for supervisors. Reads the heartbeat files that the workers' event loops write into the state
    folder; contacts neither broker nor worker. While the broker is down, workers are live and not ready.

    The exit code is 0 when all running workers pass, 69 when one fails or none runs.

    Example: proj health --live
    """
    if live == ready:
        raise click.UsageError("give either --live or --ready", click.get_current_context())
    verdict, workers = report.probe(ready=ready, worker=worker)
    click.echo(to_json({**verdict._asdict(), "workers": workers}) if as_json else verdict.why)
    raise click.exceptions.Exit(ExitCode.DONE if verdict.healthy else ExitCode.UNREACHABLE)
