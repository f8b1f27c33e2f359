from typing import Any

from typing_extensions import Buffer

__pyx_capi__: dict[str, Any]
__test__: dict[str, Any]

def decode_value(data: Buffer) -> Any: ...
