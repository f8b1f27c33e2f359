from typing import Any

from typing_extensions import Buffer

__test__: dict[str, Any]

def is_noise(data: Buffer) -> bool: ...
