"""The parameters of a task's function, against whose annotations arguments are checked and converted.

A text of digits is converted to a number for `int`, a list to a tuple for `tuple`. Arguments without an
annotation arrive as JSON carries them, a tuple as a list.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

from pydantic import ConfigDict, ValidationError, WrapValidator, validate_call

from proj.errors import BadArguments, BadTask
from proj.logs.printable import key_shown, one_line, shown

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: A class that pydantic does not know may be an annotation: it accepts only its instances.
CONFIG: Final = ConfigDict(arbitrary_types_allowed=True)

#: Annotations that pydantic converts to an iterator, which the check would exhaust.
_ITERABLES: Final = (collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator)


class Parameters:
    """Checks arguments against the annotations of a task's function."""

    def __init__(self, task: str, run: Callable[..., Any]) -> None:
        """Raises `BadTask` for a parameter's annotation that cannot be used; the result's is ignored."""
        self.task = task
        try:
            signature = inspect.signature(run)
        except (TypeError, ValueError) as error:  # such as for some functions written in C
            raise BadTask(f"{task}: its parameters cannot be read: {one_line(error)}") from error
        parameters = [
            parameter.replace(annotation=_annotation(task, run, parameter))
            for parameter in signature.parameters.values()
        ]
        self.signature = inspect.Signature(parameters)
        self.names = [parameter.name for parameter in parameters]
        self._positional = [
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        self._rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "")

        try:
            self._check = check_of(parameters)
        except Exception as error:  # pydantic raises errors of many kinds
            for parameter in parameters:
                try:
                    check_of([parameter])
                except Exception as its_own:
                    raise _bad_annotation(task, parameter, its_own) from its_own
            raise BadTask(f"{task}: its arguments cannot be checked: {one_line(error)}") from error

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments, converted to their annotations. Raises `BadArguments`."""
        try:
            return self._check(*args, **kwargs)
        except ValidationError as error:
            usage = f"usage: {self.task}({', '.join(self.names)})"
            raise BadArguments(f"{self.task}: {self._problem(error)}", usage) from None
        except Exception as error:  # a task's own validator may raise anything
            raise BadArguments(f"{self.task}: the arguments cannot be checked: {one_line(error)}") from error

    def _problem(self, error: ValidationError) -> str:
        """The first problem of the arguments, for people."""
        first = error.errors(include_url=False)[0]
        got = shown(first["input"])
        if not first["loc"]:  # pydantic reports a keyword that UTF-8 cannot encode before any argument
            return f"the name of an argument is not Unicode: {got}"
        where, *inside = first["loc"]
        match first["type"]:
            case "missing_argument" | "missing_positional_only_argument" | "missing_keyword_only_argument":
                return f"argument {self.name_of(where)} is missing"
            case "unexpected_positional_argument":
                return f"too many arguments, {got} is left over"
            case "unexpected_keyword_argument":
                return f"there is no argument {key_shown(where)}"
            case "multiple_argument_values":
                return f"argument {key_shown(where)} is given twice"
        path = ".".join([self.name_of(where), *map(key_shown, inside)])
        words = one_line(first["msg"].removeprefix("Value error, "))
        return f"argument {path}: {words}, got {got}"

    def name_of(self, key: int | str) -> str:
        """The name of an argument, given its position or its name."""
        if isinstance(key, str):
            return key
        return (
            self._positional[key]
            if key < len(self._positional)
            else f"{self._rest}[{key - len(self._positional)}]"
        )


def check_of(parameters: list[inspect.Parameter]) -> Callable[..., Arguments]:
    def arguments(*args: Any, **kwargs: Any) -> Arguments:
        return args, kwargs

    arguments.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    arguments.__annotations__ = {
        each.name: each.annotation for each in parameters if each.annotation is not each.empty
    }
    return validate_call(config=CONFIG)(arguments)


def _annotation(name: str, run: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The annotation of the parameter, with all names in it resolved."""
    if parameter.annotation is parameter.empty:
        return parameter.empty
    function = inspect.unwrap(run, stop=lambda each: hasattr(each, "__signature__"))
    function = getattr(function, "__func__", function)
    around = dict(getattr(function, "__globals__", {}))
    if getattr(function, "__closure__", None):
        around |= inspect.getclosurevars(function).nonlocals
    one = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return _reusable(typing.get_type_hints(one, around, include_extras=True)[parameter.name])
    except Exception as error:  # an annotation is code, which may raise anything
        raise _bad_annotation(name, parameter, error) from error


def _bad_annotation(name: str, parameter: inspect.Parameter, error: Exception) -> BadTask:
    annotation = parameter.annotation
    spelled = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return BadTask(
        f"{name}: the annotation of argument {parameter.name} cannot be used: {spelled}: {one_line(error)}",
        "is a name in it imported only under TYPE_CHECKING?" if isinstance(error, NameError) else None,
    )


def _reusable(annotation: Any) -> Any:
    """The annotation, changed so that iterables are checked and then passed on unchanged."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _ITERABLES or origin in _ITERABLES:
        return Annotated[annotation, WrapValidator(_check_each)]
    if origin is Annotated:
        return Annotated[(_reusable(inside[0]), *annotation.__metadata__)]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_reusable, inside))]  # noqa: UP007  its members are known only at run time
    if origin in (list, dict, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Mapping):
        return (
            origin[tuple(each if each is ... else _reusable(each) for each in inside)]
            if inside
            else annotation
        )
    return annotation


def _check_each(value: Any, handler: Callable[[Any], Iterator[Any]]) -> Any:
    checking = handler(value)
    if isinstance(value, collections.abc.Iterator):
        return checking  # an iterator can be read only once
    for _ in checking:
        pass
    return value
