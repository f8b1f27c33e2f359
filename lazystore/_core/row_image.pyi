from collections.abc import Iterable
from typing import Any, NoReturn, final

from lazystore._core.row_shape import RowShape
from lazystore._core.rows import RowBatch

__test__: dict[str, Any]

@final
class RowImage:
    def __new__(cls, shape: RowShape, parts: Iterable[tuple[RowBatch, int, int]], limit: int) -> RowImage: ...
    def __reduce__(self) -> NoReturn: ...

def row_image(shape: RowShape, parts: Iterable[tuple[RowBatch, int, int]], *, limit: int = ...) -> bytearray: ...
