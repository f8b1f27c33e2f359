from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias, final

from typing_extensions import Buffer

from lazystore._core.row_shape import RowShape

__test__: dict[str, Any]

#: offset, length, validity, data, text.
_RowView: TypeAlias = tuple[int, int, Buffer | None, Buffer | None, Buffer | None]

@final
class RowBatch:
    @property
    def rows(self) -> int: ...
    def __new__(cls, shape: RowShape, views: Sequence[_RowView], rows: int) -> RowBatch: ...
    def __reduce__(self) -> NoReturn: ...
