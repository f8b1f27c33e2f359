"""Calls as cache keys: which function, which instance, which arguments.

Binding is done by a function that is compiled with the same parameters, so that it costs one call, and a wrong call
raises what Python itself raises.
"""

from __future__ import annotations

import inspect
import itertools
import os
import uuid
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from lazystore.cache.keys import Kind
from lazystore.cache.locks import forkable_lock
from lazystore.errors import ConfigError, UnhashableKeyError

__all__ = ["CallKeys", "call_name", "instance_token"]

_EMPTY = inspect.Parameter.empty
_names = itertools.count(1)
_seen: set[str] = set()
_naming = forkable_lock()
_session = uuid.uuid4().hex[:12]


def _unique() -> str:
    """A word that no other object of this process, or of any other, has had."""
    return f"{_session}-{os.getpid()}-{next(_names)}"


def call_name(function: Any) -> str:
    """What keys of a function's calls begin with: ``module.qualified_name()``.

    A function in a function, a lambda, one of ``__main__`` and one that takes the name of an earlier one (a module
    loaded again) also have a mark of their own: what looks alike may do something else.
    """
    name = f"{function.__module__}.{function.__qualname__}()"
    with _naming:
        again = name in _seen
        _seen.add(name)
    if again or "<" in name or name.startswith("__main__."):
        return f"{name}#{_unique()}"
    return name


# -- instances --------------------------------------------------------------------------

_tokens: dict[int, tuple[weakref.ref[Any], str]] = {}


def instance_token(instance: Any) -> str:
    """A word that stands for an instance in keys, without keeping it alive, and is never another's.

    Cost: a quarter of a microsecond. Raises :class:`ConfigError` for an object that cannot be referred to weakly.
    """
    found = _tokens.get(id(instance))
    if found is not None and found[0]() is instance:
        return found[1]
    number = id(instance)

    def gone(reference: weakref.ref[Any]) -> None:
        entry = _tokens.get(number)
        if entry is not None and entry[0] is reference:
            del _tokens[number]

    try:
        reference = weakref.ref(instance, gone)
    except TypeError:
        raise ConfigError(
            f"{type(instance).__qualname__} objects cannot be referred to weakly, so that calls of their methods "
            "cannot be told apart: add '__weakref__' to __slots__, or decorate a function"
        ) from None
    entry = (reference, _unique())
    if found is None:
        return _tokens.setdefault(number, entry)[1]
    _tokens[number] = entry  # that of a dead one whose callback is still to come
    return entry[1]


class CallKeys:
    """Makes the cache keys of a function's calls.

    Parameters:
        function: whose calls.
        key: ``key(*args, **kwargs)`` makes what stands for the arguments (but not for the instance of a method).
        of_method: the first argument is an instance.

    Attributes:
        make: ``make(*args, **kwargs)``: the key; equal for calls that mean the same. Raises TypeError as the function.
    """

    def __init__(self, function: Any, key: Callable[..., Hashable] | None, *, of_method: bool | None = None) -> None:
        self.name = call_name(function)
        self._function = function
        self._key = key
        self.signature = _signature(function)
        self.of_method = looks_like_method(function, self.signature) if of_method is None else of_method
        self._compile()

    def become_method(self) -> None:
        """It turned out to be a method."""
        if not self.of_method:
            self.of_method = True
            self._compile()

    def _compile(self) -> None:
        head = (Kind.CALL, self.name)
        if self._key is None:
            self.make = _binder(self.signature, head, self.of_method, self._function.__qualname__)
        else:
            self.make = _with_key(self._key, head, self.of_method)

    def unhashable(self, key: Any) -> Exception | None:
        """The error that names the argument that cannot be hashed, if there is one."""
        names = ["key="] if self._key is not None else [*self.signature.parameters][self.of_method :]
        values = key[2 + self.of_method :]
        for name, value in zip(names, values, strict=False):
            try:
                hash(value)
            except TypeError:
                what = "what key= gives" if self._key is not None else f"argument {name!r}"
                return UnhashableKeyError(
                    f"{what} of {self._function.__qualname__}() is not hashable ({type(value).__name__}): "
                    "give the decorator key=, which makes a key of the arguments"
                )
        return None


def _signature(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # of some built-in functions
        kinds = (("args", inspect.Parameter.VAR_POSITIONAL), ("kwargs", inspect.Parameter.VAR_KEYWORD))
        return inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds])


def looks_like_method(function: Any, signature: inspect.Signature) -> bool:
    """Written in a class, with ``self`` or ``cls`` first: also where a property or classmethod is put around it."""
    outer = function.__qualname__.rpartition(".")[0]
    first = next(iter(signature.parameters), "")
    return bool(outer) and not outer.endswith("<locals>") and first in ("self", "cls")


def _binder(
    signature: inspect.Signature, head: tuple[Any, ...], of_method: bool, name: str
) -> Callable[..., tuple[Any, ...]]:
    """A function with the parameters of ``signature`` that gives ``(*head, *arguments)``."""
    kind = inspect.Parameter
    known: dict[str, Any] = {"__builtins__": {"tuple": tuple, "sorted": sorted}}
    prefix = "_lazystore"
    while any(parameter.startswith(prefix) for parameter in signature.parameters):
        prefix += "_"
    parameters, body = [], [f"{prefix}_head{place}" for place in range(len(head))]
    known |= {f"{prefix}_head{place}": part for place, part in enumerate(head)}
    known[f"{prefix}_token"] = instance_token
    for builtin in ("tuple", "sorted"):
        known[f"{prefix}_{builtin}"] = known["__builtins__"][builtin]
    positional_only = starred = False
    for place, parameter in enumerate(signature.parameters.values()):
        text = parameter.name
        if positional_only and parameter.kind is not kind.POSITIONAL_ONLY:
            parameters.append("/")
            positional_only = False
        positional_only = parameter.kind is kind.POSITIONAL_ONLY
        if parameter.kind is kind.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        stars = "*" if parameter.kind is kind.VAR_POSITIONAL else "**" if parameter.kind is kind.VAR_KEYWORD else ""
        starred = starred or stars == "*"
        default = ""
        if parameter.default is not _EMPTY:
            default = f"={prefix}_default{place}"
            known[f"{prefix}_default{place}"] = parameter.default
        parameters.append(f"{stars}{text}{default}")
        if stars == "**":
            text = f"{prefix}_tuple({prefix}_sorted({text}.items()))"
        elif place == 0 and of_method:
            text = f"{prefix}_token({text})"
        body.append(text)
    if positional_only:
        parameters.append("/")
    # Only names that Python accepted as names of parameters are in it.
    made: Callable[..., tuple[Any, ...]] = eval(f"lambda {', '.join(parameters)}: ({', '.join(body)},)", known)
    made.__qualname__ = made.__name__ = name
    return made


def _with_key(key: Callable[..., Hashable], head: tuple[Any, ...], of_method: bool) -> Callable[..., tuple[Any, ...]]:
    if not callable(key):
        raise ConfigError(f"key={key!r} is not a function")
    if of_method:
        return lambda self, /, *args, **kwargs: (*head, instance_token(self), key(self, *args, **kwargs))
    return lambda *args, **kwargs: (*head, key(*args, **kwargs))
