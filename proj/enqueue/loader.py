"""The modules with tasks, imported; what is wrong with one is said in one line, with its file and line."""

import sysconfig
import traceback
from pathlib import Path
from typing import Any, Final

from celery.loaders.app import AppLoader

from proj.errors import BadTaskModule, ConfigError, ProjError

#: Where Python and the packages that are installed have their modules.
_LIBRARIES: Final = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


class Loader(AppLoader):
    """Celery's loader of modules with tasks, for every program that loads them."""

    def import_task_module(self, module: str) -> Any:
        """Import it. Raises `BadTaskModule`, whatever the module raises, and `ConfigError`."""
        try:
            return super().import_task_module(module)
        except ConfigError:
            raise
        except Exception as error:
            place = _place(error)
            if isinstance(error, ProjError):
                words, hint = error.message, error.hint
            else:
                said = error.msg if isinstance(error, SyntaxError) else error
                words = f"{type(error).__name__}: {said}"
                hint = f"for the traceback: python -c 'import {module}'"
            where = f"{place}: " if place else ""
            raise BadTaskModule(f"{module} cannot be imported: {where}{words}", hint) from error


def _place(error: Exception) -> str | None:
    """The file and line of the innermost module of the project that was being imported, if any was."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    modules = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    for frame in reversed(modules):
        folders = Path(frame.filename).parents
        # What is beside the module with tasks is the project's, also where that is installed as a library.
        is_beside = Path(modules[0].filename).parent in folders
        if is_beside or not any(library in folders for library in _LIBRARIES):
            return f"{frame.filename}:{frame.lineno}"
    return None
