"""A worker's start: its name, its options, and its checks."""

import gc
import inspect
import os
import sys
from typing import Any, Final

import click
from billiard import set_start_method
from celery import concurrency
from celery.concurrency import prefork, solo
from celery.signals import (
    celeryd_after_setup,
    task_postrun,
    worker_before_create_process,
    worker_init,
)
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename

from proj import queues
from proj.enqueue import Task
from proj.enqueue.routing import check_queue
from proj.errors import BadInput, ConfigError, ExitCode, ProjError
from proj.logs import formats, printed
from proj.logs.printable import error_line
from proj.worker import ending, environment

log = get_logger(__name__)

#: The suffix of the worker's queue for remote control, whose name must fit AMQP too.
_LONGEST_SUFFIX: Final = ".celery.pidbox"


def begin(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Prepare a worker (`celery.apps.worker.Worker`) before Celery reads its options, at `celeryd_init`.

    Raises `SystemExit` for an option that it cannot have.
    """
    give_unique_name(instance, options)
    refuse_options(instance, conf, options)
    fork_processes()
    select_queues(instance, options)
    ending.bound_shutdown(instance)
    keep_restartable()
    formats.log_only_json(instance)
    worker_init.connect(count_slots)
    celeryd_after_setup.connect(warn_of_several_queues)
    celeryd_after_setup.connect(warn_of_unread_names)
    celeryd_after_setup.connect(check_tasks)
    celeryd_after_setup.connect(check_time_limits)
    celeryd_after_setup.connect(check_result_store)
    task_postrun.connect(printed.end_line)
    worker_before_create_process.connect(share_memory)


def give_unique_name(instance: Any, options: dict[str, Any]) -> None:
    """Name an unnamed worker `celery-PID@host`, since two workers with one name cannot share a broker.

    Ends a worker whose name is too long.
    """
    if instance.hostname == default_nodename(None):
        instance.hostname = default_nodename(None, f"celery-{os.getpid()}")
    if not queues.can_be_name(f"{instance.hostname}{_LONGEST_SUFFIX}"):
        name = error_line(instance.hostname)
        words = f"a worker cannot be named {name!r} (choose a shorter name with -n)"
        raise _refusal(instance, options, words)


def refuse_options(instance: Any, conf: Any, options: dict[str, Any]) -> None:
    """End a worker over an option of Celery that breaks what it says it does."""
    pool = concurrency.get_implementation(options.get("pool") or conf.worker_pool)
    if options.get("beat"):
        # Neither notices the end of the other, such as of a beat whose schedule is refused.
        words = "a worker cannot embed a beat with -B (run `celery -A proj beat` beside it)"
    elif pool.is_green:
        # Celery reads the connection for events at most ten times a second.
        words = "gevent and eventlet are not supported: they stall (use --pool=threads)"
    elif options.get("autoscale") and not issubclass(pool, prefork.TaskPool):
        # Other pools raise when they have to grow.
        words = "--autoscale needs the pool prefork (leave out --pool, or use --concurrency)"
    elif options.get("time_limit") or options.get("soft_time_limit"):
        # Each message has the limits of its task or of the settings, so that Celery would look at no others.
        words = "time limits are settings, not options (PROJ_TASK_TIME_LIMIT, PROJ_TASK_SOFT_TIME_LIMIT)"
    elif "spawn" in {options.get("pool_start_method"), conf.worker_pool_start_method}:
        # What a worker sets up before its processes start would be missing in them.
        words = "spawn is not supported: processes are forked (leave out --pool-start-method)"
    else:
        return
    raise _refusal(instance, options, words)


def fork_processes() -> None:
    """Let the pool fork its processes on macOS too, where billiard's default differs from Celery's."""
    set_start_method("fork", force=True)


def count_slots(sender: Any, **_: Any) -> None:
    """Give a worker with `-P solo` its one slot. Celery counts the CPUs, and fetches as many messages."""
    if issubclass(concurrency.get_implementation(sender.pool_cls), solo.TaskPool):
        sender.concurrency = 1


def select_queues(instance: Any, options: dict[str, Any]) -> None:
    """Let a worker consume the default queue, or those that it was given, if they exist; else it ends.

    With `-X`, it consumes all other work queues, as Celery documents it.
    """
    known = instance.app.amqp.queues
    named, excluded = options.get("queues"), options.get("exclude_queues") or []
    named = named or (list(known) if excluded else [queues.DEFAULT_QUEUE])
    try:
        for name in (*named, *excluded):
            check_queue(instance.app, name)
    except BadInput as error:
        raise _refusal(instance, options, str(error)) from None
    if not set(named).difference(excluded):
        words = "-X leaves no queue to consume (name those to consume with -Q)"
        raise _refusal(instance, options, words)
    known.select(named)


def _refusal(instance: Any, options: dict[str, Any], words: str) -> SystemExit:
    """The end of a worker over its command line. In the background (`-D`), only the log file can tell."""
    click.echo(f"Error: {words}", err=True)
    if logfile := options.get("logfile"):
        instance.app.log.setup_logging_subsystem("ERROR", logfile, hostname=instance.hostname)
        log.critical("%s", words)
    return SystemExit(int(ExitCode.USAGE))


def warn_of_several_queues(instance: Any, **_: Any) -> None:
    """Log what it costs that a worker consumes more than one queue."""
    names = list(instance.app.amqp.queues.consume_from)
    if len(names) > 1:
        log.warning(
            "This worker consumes %d queues (%s), and each has its own prefetch count: it may keep up to %d "
            "messages waiting for each that runs. To avoid this, start one worker per queue: -Q %s",
            len(names),
            ", ".join(names),
            len(names) - 1,
            names[0],
        )


def warn_of_unread_names(**_: Any) -> None:
    """Log which names of the environment look like settings and are none. They may be for another program."""
    if names := environment.unread():
        log.warning(
            "Nothing reads %s. Other settings of Celery are in proj/celeryconfig.py",
            environment.explain(names),
        )


def check_tasks(instance: Any, **_: Any) -> None:
    """End a worker over a task whose arguments cannot be checked, or whose queue does not exist."""
    for name, task in instance.app.tasks.items():
        try:
            # Celery's own have no annotations; to find that out would take milliseconds.
            if isinstance(task, Task) and not name.startswith("celery."):
                task.parameters  # noqa: B018  this reads the annotations
            if queue := getattr(task, "queue", None):
                check_queue(instance.app, queue)
        except BadInput as error:
            code = getattr(inspect.unwrap(task.run), "__code__", None)
            place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
            log.critical("%s%s", place, error)
            raise SystemExit(int(ExitCode.USAGE)) from None


def check_time_limits(instance: Any, **_: Any) -> None:
    """End a worker that has a task whose time limit is not below the broker's `consumer_timeout`."""
    timeout = instance.app.settings.proj_consumer_timeout
    for name, task in instance.app.tasks.items():
        if task.time_limit and task.time_limit >= timeout:
            error = ConfigError(
                f"the time_limit of {name} must be below the broker's consumer_timeout, got "
                f"{task.time_limit} and {timeout}",
                "lower it, or raise consumer_timeout in the broker's configuration and PROJ_CONSUMER_TIMEOUT",
            )
            log.critical("%s", error)
            raise SystemExit(int(error.exit_code))


def check_result_store(instance: Any, **_: Any) -> None:
    """End a worker whose result store is configured wrongly; one that is down is waited for."""
    try:
        instance.app.backend.max_retries  # noqa: B018  this opens the store
    except ProjError as error:
        log.critical("%s", error)
        raise SystemExit(int(error.exit_code)) from None


def keep_restartable() -> None:
    """Let SIGHUP restart a worker that `python -m celery` has started, as `-D` and `celery multi` do.

    Celery executes Python with `sys.argv`, whose first word is then a file that cannot be executed by itself.
    """
    if os.path.basename(sys.argv[0]) == "__main__.py":
        sys.argv[:1] = ["-m", "celery"]


def share_memory(**_: Any) -> None:
    """Leave to the pool's processes, before the first one, memory that they share with the main process.

    A full garbage collection writes to every object, and so copies all of it, in each process.
    """
    worker_before_create_process.disconnect(share_memory)
    gc.collect()
    gc.freeze()
