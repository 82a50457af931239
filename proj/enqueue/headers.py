"""The headers of Celery's messages: their types, and the names that a caller cannot use."""

from collections.abc import Callable, Mapping
from typing import Final

from celery.app.task import Context

#: The maximum of the result store's column for retries.
_MAX_COUNT: Final = 2**31 - 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


#: The type of a value, or what checks it.
Check = type | Callable[[object], bool]

#: What headers must be, unless they are absent or null.
TYPES: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _is_count),
    **dict.fromkeys(("root_id", "parent_id", "group", "taskset", "shadow", "origin"), str),
    **dict.fromkeys(("lang", "meth", "argsrepr", "kwargsrepr"), str),
    **dict.fromkeys(("ignore_result", "utc"), bool),
    **dict.fromkeys(("stamps", "headers"), dict),
    "stamped_headers": _is_list_of_texts,
}

#: All headers. A worker's request checks those that are not among `TYPES`.
HEADERS: Final = frozenset(TYPES) | {"id", "task", "eta", "expires", "timelimit"}

#: Names that the headers of a call cannot have: Celery writes them or reads them as its own.
TAKEN: Final = frozenset(dir(Context)) | HEADERS | {"compression"}
