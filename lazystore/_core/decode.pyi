from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from typing_extensions import Buffer, disjoint_base

from lazystore.errors import FormatError

__test__: dict[str, Any]

@disjoint_base
class DecodePlan:
    @property
    def n_leaves(self) -> int: ...
    @property
    def head(self) -> int: ...
    @property
    def headless(self) -> bool: ...
    @property
    def loose(self) -> bool: ...
    @property
    def names(self) -> tuple[Any, ...]: ...
    def __new__(
        cls,
        leaves: Iterable[tuple[str, Any] | tuple[str, Any, dict[str, Any]]],
        tree: Iterable[tuple[Any, ...]],
        *,
        names: Iterable[Any],
        headless: bool = False,
        opener: Callable[[bytes], bytes] | None = None,
        loose: bool = False,
    ) -> DecodePlan: ...
    def __call__(self, item: Buffer) -> Any: ...
    def size_error(self, n: int) -> FormatError: ...
    def __reduce__(self) -> NoReturn: ...
