"""`proj health`: a probe for supervisors."""

import click

from proj.cli.strict_json import to_json
from proj.errors import ExitCode
from proj.health import heartbeat, report


@click.command()
@click.option("--live", is_flag=True, help="Check the event loop; if it hangs, restart the worker.")
@click.option("--ready", is_flag=True, help="Check also that the worker consumes its queue.")
@click.option("--beat", is_flag=True, help="Check this machine's celery beat instead of its workers.")
@click.option("--ingest", is_flag=True, help="Check this machine's `proj ingest` instead of its workers.")
@click.option("--worker", metavar="NAME", help="Only this worker, w1@host or w1.  [default: all running]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(live: bool, ready: bool, beat: bool, ingest: bool, worker: str | None, as_json: bool) -> None:
    """Check that this machine's workers are live or ready.

    A probe for supervisors. Reads the heartbeat files that the workers' event loops write into the state
    folder; contacts neither broker nor worker. While the broker is down, workers are live and not ready.

    A beat is live when it looks at its schedule, whether it leads or stands by.

    The exit code is 0 when all running workers pass, 69 when one fails or none runs.

    Example: proj health --live
    """
    if live + ready + beat != 1:
        raise click.UsageError("give one of --live, --ready and --beat", click.get_current_context())
    if ingest and beat:
        raise click.UsageError("give either --ingest or --beat", click.get_current_context())
    kind = heartbeat.BEAT if beat else heartbeat.INGEST if ingest else heartbeat.WORKER
    verdict, found = report.probe(ready=ready, worker=worker, kind=kind)
    click.echo(to_json({**verdict._asdict(), f"{kind}s": found}) if as_json else verdict.why)
    raise click.exceptions.Exit(ExitCode.DONE if verdict.healthy else ExitCode.UNREACHABLE)
