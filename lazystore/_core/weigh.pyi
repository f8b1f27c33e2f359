from typing import Any

__test__: dict[str, Any]

def weigh(obj: object, limit_objects: int = 10_000) -> int: ...
