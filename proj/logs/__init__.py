"""Logging: one event a line, as text or as JSON."""

# Type checkers treat it as true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from proj.logs.formats import JsonFormatter

__all__ = ["JsonFormatter"]


def __getattr__(name: str) -> object:
    # On first use, so that `proj health`, which imports a part of this package, does not import Celery.
    if name == "JsonFormatter":
        from proj.logs.formats import JsonFormatter

        return JsonFormatter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
