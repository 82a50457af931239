"""Finds the state folder without importing `proj.config`, which takes longer than `proj health` may.

This is the only other reader of a setting. `proj.config` uses it too, and a test proves that both find the
same folder.
"""

import os
from collections.abc import Iterable

#: The file of settings that is read from the working folder.
ENV_FILE = ".env"

#: Names ignore case, in the environment and in the file, as in `proj.config`.
_NAME = "proj_state_dir"


def find() -> str:
    """The state folder of the environment, else of the `.env` file, else the user's default.

    Raises `ConfigError` when the file cannot be read, or the folder cannot be determined.
    """
    text = read_env_file()
    folder = _value(os.environ.items())
    if folder is None and text is not None and _NAME in text.lower():
        from dotenv import dotenv_values  # takes as long as Python itself

        folder = _value(dotenv_values(ENV_FILE, encoding="utf-8").items())
    if folder is None:
        return default()
    try:
        return absolute(folder)
    except ValueError as error:
        raise _unknown(error) from None


def default() -> str:
    """The user's default state folder. Raises `ConfigError` when it cannot be determined."""
    import platformdirs  # takes as long as Python itself

    try:
        return absolute(platformdirs.user_state_dir("proj"))
    except ValueError as error:
        raise _unknown(error) from None


def absolute(path: str) -> str:
    """The absolute path, with `~` expanded. Raises `ValueError` when it cannot be determined."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"the home folder {expanded.partition(os.sep)[0]} is not known")
    try:
        return expanded if os.path.isabs(expanded) else os.path.join(os.getcwd(), expanded)
    except OSError as error:
        raise ValueError(f"the working folder is not known: {error.strerror}") from None


def _unknown(why: ValueError) -> Exception:
    from proj.errors import ConfigError

    return ConfigError(f"there is no state folder: {why}", "set PROJ_STATE_DIR to an absolute path")


def read_env_file() -> str | None:
    """The text of the `.env` file, or None without one. Raises `ConfigError` when it cannot be read."""
    try:
        os.lstat(ENV_FILE)
    except FileNotFoundError:  # also when the working folder was deleted
        return None
    except OSError:
        pass  # `open` raises it again
    try:
        with open(ENV_FILE, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        from proj.errors import ConfigError

        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the settings file {os.path.abspath(ENV_FILE)} cannot be read: {reason}",
            "fix it, move it away, or run from another folder",
        ) from None


def _value(settings: Iterable[tuple[str, str | None]]) -> str | None:
    found = None
    for name, value in settings:
        if name.lower() == _NAME and value:
            found = value
    return found
