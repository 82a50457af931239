"""Names in the environment that people who know Celery expect to be settings, and that nothing reads."""

from collections.abc import Iterator
from typing import Any, Final

from celery.app.defaults import NAMESPACES, flatten

from proj import config
from proj.config import Settings

#: What all of Celery's names begin with: `CELERY_`, and before Celery 4 also `CELERYD_` and `CELERYBEAT_`.
_PREFIX: Final = "CELERY"

#: First words of a setting of Celery that ours may leave out: `PROJ_QUEUES` is its `task_queues`.
_LEFT_OUT: Final = ("task_", "worker_")


def unread() -> dict[str, str | None]:
    """The names of Celery's settings that are set, but not read, each with the one to set instead."""
    exported, written = config.names()
    candidates = sorted(name for name in exported | written if name.startswith(_PREFIX))
    if not candidates:
        return {}
    settings, by_celery, ours = _settings(), _read_by_command_line(), _ours()
    # The command line reads no `.env` file.
    read = ours | (by_celery & exported)
    found: dict[str, str | None] = {}
    for name in candidates:
        if name in settings and name not in read:
            instead = _instead(settings[name], ours | by_celery)
            found[name] = f"export {name}" if instead == name else instead
    return found


def explain(names: dict[str, str | None]) -> str:
    """The names for people, each with what to set instead."""
    return ", ".join(f"{name} (instead: {instead})" if instead else name for name, instead in names.items())


def _settings() -> dict[str, str]:
    """Celery's settings by each name that they have in an environment, old names too."""

    def names_of(namespace: str, key: str, option: Any) -> Iterator[tuple[str, str]]:
        setting = namespace + key
        yield f"{_PREFIX}_{setting.upper()}", setting
        for old in option.old:
            yield old.format(key).upper(), setting

    return dict(flatten(NAMESPACES, keyfilter=names_of))


def _read_by_command_line() -> set[str]:
    """The names that `celery` reads: options of its commands, such as `CELERY_WORKER_CONCURRENCY`."""
    from celery.bin.celery import celery

    return {
        f"{_PREFIX}_{command}_{option.name}".upper()
        for command, definition in celery.commands.items()
        for option in definition.params
        if option.name
    }


def _ours() -> set[str]:
    return {name.upper() for name in Settings.model_fields}


def _instead(setting: str, read: set[str]) -> str | None:
    """The name that something reads for this setting of Celery, if there is one."""
    names = [setting, *(setting.removeprefix(word) for word in _LEFT_OUT if setting.startswith(word))]
    known = (f"{prefix}_{name}".upper() for name in names for prefix in ("PROJ", _PREFIX))
    return next((name for name in known if name in read), None)
