"""The headers of Celery's messages: their types, and the names that a caller cannot use."""

from collections.abc import Callable, Mapping
from typing import Final

from celery.app.task import Context

#: The maximum of the result store's column for retries.
_MAX_COUNT: Final = 2**31 - 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


#: The types of headers, unless they are absent or null.
TYPES: Final[Mapping[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _is_count),
    **dict.fromkeys(("root_id", "parent_id", "group", "taskset", "shadow", "origin"), _is_text),
    **dict.fromkeys(("lang", "meth", "argsrepr", "kwargsrepr"), _is_text),
    **dict.fromkeys(("ignore_result", "utc"), _is_bool),
    **dict.fromkeys(("stamps", "headers"), _is_table),
    "stamped_headers": _is_list_of_texts,
}

#: All headers. A worker's request checks those that are not among `TYPES`.
HEADERS: Final = frozenset(TYPES) | {"id", "task", "eta", "expires", "timelimit"}

#: Names that the headers of a call cannot have: Celery writes them or reads them as its own.
TAKEN: Final = frozenset(dir(Context)) | HEADERS | {"compression"}
