from typing import Any

__test__: dict[str, Any]

def capsules() -> tuple[object, object, object]: ...
