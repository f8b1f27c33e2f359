from collections.abc import Callable
from typing import Any

__test__: dict[str, Any]

def encode(value: object, other: Callable[[object], bytes]) -> bytes: ...
def decode(data: bytes, other: Callable[[bytes], object]) -> Any: ...
