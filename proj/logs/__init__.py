"""One event a line, as text or as JSON."""

# What type checkers take for true; see below.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from proj.logs.formats import JsonFormatter

__all__ = ["JsonFormatter"]


def __getattr__(name: str) -> object:
    # Found when asked for, so that `proj health`, which imports a part of this, does not import Celery.
    if name == "JsonFormatter":
        from proj.logs.formats import JsonFormatter

        return JsonFormatter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
