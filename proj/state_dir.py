"""Where the state folder is, for programs that have no time to import `proj.config`.

To read all settings takes longer than `proj health` may. This is the only other reader of a setting;
`proj.config` uses what is here, and a test proves that both find the same folder.
"""

import os
from collections.abc import Iterable

#: The file of settings that is read from the working folder.
ENV_FILE = ".env"

#: Upper and lower case are one, in the environment and in the file, as they are to pydantic-settings.
_NAME = "proj_state_dir"


def find() -> str:
    """The state folder: of the environment, else of the `.env` file, else the user's.

    Raises `ConfigError` when the file cannot be read.
    """
    text = read_env_file()
    folder = _value(os.environ.items())
    if folder is None and text is not None and _NAME in text.lower():
        from dotenv import dotenv_values  # takes as long as Python itself

        folder = _value(dotenv_values(ENV_FILE, encoding="utf-8").items())
    return os.path.join(os.getcwd(), os.path.expanduser(folder or default()))


def default() -> str:
    """The user's state folder."""
    import platformdirs  # takes as long as Python itself

    return platformdirs.user_state_dir("proj")


def read_env_file() -> str | None:
    """The text of the `.env` file, None when there is none. Raises `ConfigError` when it cannot be read.

    pydantic-settings skips a file that is not a regular one, and dies of one that is not text.
    """
    if not os.path.lexists(ENV_FILE):
        return None
    try:
        with open(ENV_FILE, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        from proj.errors import ConfigError

        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the settings file {os.path.abspath(ENV_FILE)} cannot be read: {reason}",
            "mend it, move it away, or run from another folder",
        ) from None


def _value(settings: Iterable[tuple[str, str | None]]) -> str | None:
    found = None
    for name, value in settings:
        if name.lower() == _NAME and value:
            found = value
    return found
