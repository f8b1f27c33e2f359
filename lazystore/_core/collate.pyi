from typing import Any, NoReturn

from typing_extensions import Buffer, disjoint_base

from lazystore._core.decode import DecodePlan

__test__: dict[str, Any]

@disjoint_base
class Sink:
    @property
    def count(self) -> int: ...
    def add_bytes(self, item: Buffer) -> None: ...
    def take_batch(self) -> Any: ...
    def __reduce__(self) -> NoReturn: ...

@disjoint_base
class ObjectSink(Sink):
    def __new__(cls, plan: DecodePlan) -> ObjectSink: ...

@disjoint_base
class ColumnSink(Sink):
    @property
    def capacity(self) -> int: ...
    def __new__(cls, plan: DecodePlan, capacity: int) -> ColumnSink: ...
