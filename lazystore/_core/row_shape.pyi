from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias, final

__test__: dict[str, Any]

#: kind, width, children, keys.
_RowType: TypeAlias = tuple[str, int, tuple[_RowType, ...], tuple[str, ...]]

@final
class RowShape:
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def loose(self) -> bool: ...
    def __new__(cls, columns: Sequence[tuple[str, str, _RowType]], *, loose: bool = False) -> RowShape: ...
    def __reduce__(self) -> NoReturn: ...
