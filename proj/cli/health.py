"""`proj health`: a probe for supervisors. `proj.__main__` runs it without click when it can."""

import click

from proj.cli import health_text


@click.command()
@click.option("--live", is_flag=True, help="Does its event loop turn? If not, restart it.")
@click.option("--ready", is_flag=True, help="Does it also consume its queue, now?")
@click.option("--worker", metavar="NAME", help="Only this worker, w1@host or w1.  [default: all that run]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(live: bool, ready: bool, worker: str | None, as_json: bool) -> None:
    """Tell a supervisor whether the workers here are live, or ready.

    It asks neither broker nor worker, but reads the heartbeats that the event loops of this machine's workers
    leave in the state folder. A broker that is down makes a worker not ready, never dead.

    The exit code is 0 when all that run are well, 69 when one is not, or none runs.

    Example: proj health --live
    """
    if live == ready:
        raise click.UsageError("say what to look for: --live or --ready", click.get_current_context())
    raise click.exceptions.Exit(health_text.run(live=live, ready=ready, worker=worker, as_json=as_json))
