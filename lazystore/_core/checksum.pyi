from typing import Any

from typing_extensions import Buffer

__pyx_capi__: dict[str, Any]
__test__: dict[str, Any]
IMPLEMENTATION: str

def crc32c(data: Buffer, value: int = 0) -> int: ...
def crc32c_narrow(data: Buffer, value: int = 0) -> int: ...
def crc32c_tables(data: Buffer, value: int = 0) -> int: ...
