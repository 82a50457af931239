"""What `proj health` prints, without click, whose import alone takes longer than a probe should.

A command line that is not plainly right is left to click, which knows what is wrong with it; so are errors. A
test compares what both make of the same words.
"""

import sys
from typing import Any

from proj.cli.strict_json import to_json
from proj.errors import ExitCode
from proj.health import report


def parse(words: list[str]) -> dict[str, Any] | None:
    """The options of `proj health`, or None for words that click must see."""
    options: dict[str, Any] = {"live": False, "ready": False, "worker": None, "as_json": False}
    flags = {"--live": "live", "--ready": "ready", "--json": "as_json"}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word in flags:
            options[flags[word]] = True
        elif name == "--worker" and (value if equals else (value := next(rest, ""))):
            options["worker"] = value
        else:
            return None
    return options if options["live"] != options["ready"] else None


def run(*, live: bool, ready: bool, worker: str | None, as_json: bool) -> ExitCode:
    """Print what the probe found; `live` or `ready` says what it looks for."""
    verdict, workers = report.probe(ready=ready, worker=worker)
    if as_json:
        sys.stdout.write(to_json({**verdict._asdict(), "workers": workers}) + "\n")
    else:
        sys.stdout.write(verdict.why + "\n")
    sys.stdout.flush()
    return ExitCode.DONE if verdict.healthy else ExitCode.UNREACHABLE
