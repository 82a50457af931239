"""A Celery work queue on RabbitMQ that loses nothing it has accepted."""

# What type checkers take for true; `typing` is not imported for it, so that `proj --help` is fast.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from proj.celery import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    # Found when asked for, so that `proj --help` does not import Celery.
    if name == "app":
        from proj.celery import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
