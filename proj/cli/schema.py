"""`proj schema`: JSON Schema of what tasks and foreign messages take."""

import json
from typing import Any

import click

import proj


@click.command()
@click.argument("task", required=False)
def schema(task: str | None) -> None:
    """Print JSON Schema of tasks' arguments and foreign bodies.

    With TASK, the schema of its arguments (draft 2020-12). Without, one object: the schemas of all tasks by
    name, and those of the bodies that proj ingest takes, by queue.

    Example: proj schema proj.tasks.add
    """
    from proj.enqueue import find_task, own_tasks
    from proj.enqueue import schema as schemas

    found: dict[str, Any]
    if task is not None:
        found = schemas.of_task(find_task(proj.app, task))
    else:
        from proj.ingest import routes
        from proj.ingest import schema as bodies

        found = {
            "tasks": {name: schemas.of_task(each) for name, each in own_tasks(proj.app).items()},
            "routes": {route.queue: bodies.of_route(route) for route in routes.load(proj.app)},
        }
    click.echo(json.dumps(found, indent=2))
