from array import array
from typing import Any

from typing_extensions import Buffer

__test__: dict[str, Any]

def scan_footer(
    footer: Buffer, *, end: int
) -> tuple[list[tuple[str, int, int, int]], array[int], array[int], array[int]]: ...
def longest_word(data: Buffer) -> int: ...
def scan_page(data: Buffer) -> tuple[int, int, int, bool, int, int, bool] | None: ...
