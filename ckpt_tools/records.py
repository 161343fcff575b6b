"""Frozen records that cost little to define and to make: a command defines some forty of them before it starts.

A record is a dataclass to `dataclasses` (``replace``, ``fields``, ``asdict``), but is not made by it:
``@dataclass(slots=True)`` takes five times as long over a class, and a frozen one three times as long over each
instance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, Generic, TypeVar, cast, dataclass_transform, overload

T = TypeVar("T")
Owner = TypeVar("Owner")


class cached(Generic[Owner, T]):
    """A property that is worked out when it is first asked for, and kept.

    `functools.cached_property` before Python 3.12 takes a lock for it, which takes longer than most of what is kept.
    """

    def __init__(self, work: Callable[[Owner], T]) -> None:
        self._work = work
        self.__doc__ = work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached[Owner, T]: ...
    @overload
    def __get__(self, instance: Owner, owner: type) -> T: ...
    def __get__(self, instance: Owner | None, owner: type) -> cached[Owner, T] | T:
        if instance is None:
            return self
        # found there from then on, as this is no data descriptor
        value = instance.__dict__[self._name] = self._work(instance)
        return value


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A class with slots and an ``__init__`` of its annotations, compared by identity.

    It is immutable to the type checker only: a guard at run time would cost more than all the rest.
    """
    return _made(cls, {})


@dataclass_transform(frozen_default=True, eq_default=True, field_specifiers=(field,))
def comparable(cls: type[T]) -> type[T]:
    """A `record` that is compared, hashed and shown by its fields."""
    return _made(cls, {"__eq__": _equal, "__hash__": _hash, "__repr__": _shown})


def _made(cls: type[T], methods: dict[str, object]) -> type[T]:
    names = tuple(cls.__annotations__)
    body = {key: item for key, item in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    defaults = {name: body.pop(name) for name in names if name in body}
    body |= {
        "__slots__": names,
        "__match_args__": names,
        "__init__": _initializer(cls, names, defaults),
        "__dataclass_fields__": _Fields(cls, defaults),
        **methods,
    }
    metaclass: Callable[..., Any] = type(cls)
    return cast("type[T]", metaclass(cls.__name__, cls.__bases__, body))


def _initializer(cls: type, names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., None]:
    """``__init__`` with a parameter for each of *names*, and after it what ``__post_init__`` does."""
    scope: dict[str, Any] = {"_made_anew": MISSING}
    parameters, lines = ["self"], []
    for name in names:
        default = defaults.get(name, MISSING)
        given = name
        if default is MISSING:
            parameters.append(name)
        elif isinstance(default, Field) and default.default_factory is not MISSING:
            scope[f"_make_{name}"] = default.default_factory
            parameters.append(f"{name}=_made_anew")
            given = f"_make_{name}() if {name} is _made_anew else {name}"
        else:
            scope[f"_default_{name}"] = default
            parameters.append(f"{name}=_default_{name}")
        lines.append(f" self.{name} = {given}")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines), scope)
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    made.__annotations__ = {**cls.__annotations__, "return": None}
    return made


class _Fields:
    """What `dataclasses` asks a class for, made when it first asks."""

    def __init__(self, cls: type, defaults: dict[str, Any]) -> None:
        self._cls = cls
        self._defaults = defaults
        self._fields: dict[str, Field[Any]] = {}

    def __get__(self, instance: object, owner: type) -> dict[str, Field[Any]]:
        if not self._fields:
            body = {"__annotations__": self._cls.__annotations__, "__doc__": "", "__module__": self._cls.__module__}
            twin: Any = type(self._cls.__name__, (), {**self._defaults, **body})
            self._fields = dataclass(init=False, repr=False, eq=False)(twin).__dataclass_fields__
        return self._fields


def _values(self: Any) -> tuple[object, ...]:
    return tuple(getattr(self, name) for name in type(self).__slots__)


def _equal(self: object, other: object) -> bool:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    return hash(_values(self))


def _shown(self: object) -> str:
    pairs = zip(type(self).__slots__, _values(self), strict=True)  # type: ignore[attr-defined]
    return f"{type(self).__qualname__}({', '.join(f'{name}={item!r}' for name, item in pairs)})"
