from collections.abc import Iterable
from typing import Any

from lazystore._core.row_shape import RowShape
from lazystore._core.rows import RowBatch

__test__: dict[str, Any]

def row_image(shape: RowShape, parts: Iterable[tuple[RowBatch, int, int]], *, limit: int = ...) -> bytearray: ...
