"""A Celery work queue on RabbitMQ that loses nothing it has accepted."""

# Type checkers treat it as true. Not imported from `typing`, so that `proj --help` is fast.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from proj.celery import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    # On first use, so that `proj --help` does not import Celery.
    if name == "app":
        from proj.celery import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
