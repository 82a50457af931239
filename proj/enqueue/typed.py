"""Types of tasks and results for type checkers: the arguments of `delay`, and what `get` returns.

They do not exist at run time: a task is a `proj.enqueue.Task`, and its result Celery's `AsyncResult`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    from celery.result import AsyncResult

    from proj.enqueue import Task

    class Result(AsyncResult, Generic[R]):
        """The result of one message's task."""

        id: str
        state: str

        def get(self, timeout: float | None = None, **options: Any) -> R: ...

    class TypedTask(Task, Generic[P, R]):
        """A task made by `App.task`."""

        name: str

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> Result[R]: ...

        def apply_async(
            self,
            args: Sequence[Any] | None = None,
            kwargs: Mapping[str, Any] | None = None,
            **options: Any,
        ) -> Result[R]: ...
