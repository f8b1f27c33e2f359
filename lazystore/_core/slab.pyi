from typing import Any, NoReturn, final

from lazystore._core.frames import FrameStore

__test__: dict[str, Any]

@final
class Slab:
    @property
    def chunk(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def released(self) -> bool: ...
    def __new__(
        cls,
        store: FrameStore,
        chunk: int,
        first: int,
        last: int,
        *,
        table: tuple[int, int, int],
        table_at: int,
        body: tuple[int, int, int],
        body_at: int,
        begin: int,
        end: int,
        stride: int = 0,
    ) -> Slab: ...
    def item(self, i: int) -> bytes: ...
    def release(self) -> None: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> NoReturn: ...
