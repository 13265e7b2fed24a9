"""Values that never change: dataclasses that share the methods which need not be their own.

`@dataclass` writes and compiles six methods for each class at import. Of 240 classes that was 2 MiB
that stay, and a tenth of the CPU of a start.
"""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def frozen(cls: type[T], /) -> type[T]: ...
@overload
def frozen(*, kw_only: bool) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(
    cls: type[T] | None = None, /, *, kw_only: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Return what `@dataclass(frozen=True, slots=True)` would make of the class.

    But what is compared is also hashed, and a class with an `__eq__` of its own brings its
    `__hash__`.
    """

    def made(cls: type[T]) -> Any:
        whole: Any = dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=kw_only)(cls)
        compared = [one.name for one in fields(whole) if one.compare]
        whole.__compared__ = attrgetter(*compared) if compared else type
        for method in (_eq, _hash, _repr):
            if (name := f"_{method.__name__}__") not in vars(cls):
                setattr(whole, name, method)
        whole.__setattr__, whole.__delattr__ = _setattr, _delattr
        return whole

    return made if cls is None else made(cls)


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    values = self.__compared__
    return values(self) == values(other)


def _hash(self: Any) -> int:
    return hash(self.__compared__(self))


def _repr(self: Any) -> str:
    shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _setattr(self: object, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
