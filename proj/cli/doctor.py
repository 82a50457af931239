"""`proj doctor`: check everything that the promise depends on."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

import proj
from proj.cli.strict_json import to_json
from proj.errors import ExitCode

if TYPE_CHECKING:
    from proj.doctor import Finding

#: The terminal colour of each level.
_COLOURS: Final = {
    "ok": "green",
    "info": "cyan",
    "skipped": "bright_black",
    "warning": "yellow",
    "error": "red",
}

#: Columns before the text of a finding.
_INDENT: Final = 11


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list of findings.")
def doctor(as_json: bool) -> None:
    """Check the installation, and suggest a fix for each problem.

    Checks the broker, topology, settings, result store and workers, and changes nothing. Checks that cannot
    be made are listed with the reason.

    The exit code is 1 when a finding is an error, else 0.

    Example: proj doctor
    """
    from proj.doctor import Level, examine

    findings: list[Finding] = []
    debug = click.get_current_context().find_root().params["debug"]
    for finding in examine(proj.app, debug=debug):
        if not as_json:
            _print(finding, findings)
        findings.append(finding)
    if as_json:
        click.echo(to_json([_fields(finding) for finding in findings]))
    else:
        counts = Counter(finding.level for finding in findings)
        click.echo("\n" + ", ".join(f"{counts[level]} {level}" for level in Level))
    if any(finding.level == Level.ERROR for finding in findings):
        raise click.exceptions.Exit(ExitCode.TASK_FAILED)


def _fields(finding: "Finding") -> dict[str, str | None]:
    fields = asdict(finding)
    return {name: fields[name] for name in ("area", "check", "level", "what", "why", "fix")}


def _print(finding: "Finding", before: list["Finding"]) -> None:
    if not before or before[-1].area != finding.area:
        click.secho(finding.area.capitalize(), bold=True)
    level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    click.echo(f"  {level} {finding.what}")
    # Skipped checks often share one reason: it is printed once.
    known = {(other.why, other.fix) for other in before} if finding.level == "skipped" else set()
    for name, text in (("why", finding.why), ("fix", finding.fix)):
        if text and (finding.why, finding.fix) not in known:
            click.echo(f"{'':{_INDENT}}{click.style(name, dim=True)}: {text}")
