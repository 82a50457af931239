"""Imports the modules with tasks, and reports an error in one of them in one line, with file and line."""

import sysconfig
import traceback
from pathlib import Path
from typing import Any, Final

from celery.loaders.app import AppLoader

from proj.errors import BadTaskModule, ConfigError, ProjError

#: Folders of the modules of Python and of installed packages.
_LIBRARIES: Final = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


class Loader(AppLoader):
    """Celery's loader of modules with tasks, for every program that loads them."""

    def import_task_module(self, module: str) -> Any:
        """Import the module. Raises `ConfigError`, and `BadTaskModule` for any other error in the module."""
        try:
            return super().import_task_module(module)
        except ConfigError:
            raise
        except Exception as error:
            place = _place(error)
            if isinstance(error, ProjError):
                words, hint = error.message, error.hint
            else:
                text = error.msg if isinstance(error, SyntaxError) else error
                words = f"{type(error).__name__}: {text}"
                hint = f"for the traceback: python -c 'import {module}'"
                if _is_missing(module, error):
                    hint = (
                        f"start the program in the folder that has it, not in {Path.cwd()}; or set PYTHONPATH"
                    )
            where = f"{place}: " if place else ""
            raise BadTaskModule(f"{module} cannot be imported: {where}{words}", hint) from error


def _is_missing(module: str, error: Exception) -> bool:
    """Whether it is the module itself that does not exist, or a package that it is in."""
    return isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")


def _place(error: Exception) -> str | None:
    """The file and line of the project's innermost module that was being imported, if any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    modules = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    for frame in reversed(modules):
        folders = Path(frame.filename).parents
        # Files beside the module with tasks belong to the project, even where it is installed as a library.
        is_beside = Path(modules[0].filename).parent in folders
        if is_beside or not any(library in folders for library in _LIBRARIES):
            return f"{frame.filename}:{frame.lineno}"
    return None
