"""What all decorated functions are: callable, bound to instances, with a store that is found at first use.

What each kind of them gives is in ``decorators`` and ``paginated``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazystore.lazy.store import LazyStore

__all__ = ["Bound", "Stored"]


class Stored:
    """A function whose results are kept in a store: one of its own, or the one that decorators share."""

    __wrapped__: Callable[..., Any]
    __qualname__: str

    def __init__(self, function: Callable[..., Any], store: LazyStore | None) -> None:
        wrapper: Any = self
        functools.update_wrapper(wrapper, function)
        self._given = store

    @property
    def store(self) -> LazyStore:
        """The store its results are in."""
        if self._given is not None:
            return self._given
        from lazystore.lazy.store import default_store

        return default_store()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        function: Any = self
        return function if instance is None else Bound(function, instance)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.__module__}.{self.__qualname__}>"


class Bound(functools.partial[Any]):
    """A decorated function bound to an instance: ``partial(function, instance)`` that can do what the function can."""

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of these arguments for this instance. Whether there was one."""
        found: bool = self.func.invalidate(*self.args, *args, **kwargs)  # type: ignore[attr-defined]
        return found

    def pages(self, *args: Any, **kwargs: Any) -> Any:
        """The pages of this instance."""
        return self.func.pages(*self.args, *args, **kwargs)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((id(self.func), id(self.args[0])))

    def __reduce__(self) -> Any:
        return getattr, (self.args[0], self.func.__name__)

    def __repr__(self) -> str:
        return f"<bound {self.func!r} of {self.args[0]!r}>"


# -- arguments --------------------------------------------------------------------------
