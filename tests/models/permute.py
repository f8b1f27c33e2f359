"""Keyed permutations in plain integers: the oracle of ``_core.permute``."""

from __future__ import annotations

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * FIRST & MASK
    x = (x ^ (x >> 27)) * SECOND & MASK
    return x ^ (x >> 31)


def derive_key(seed: int, *numbers: int) -> int:
    key = mix((seed + GOLDEN) & MASK)
    for number in numbers:
        key = mix(((key ^ mix(number)) + GOLDEN) & MASK)
    return key


class PermutationModel:
    """A Feistel network of alternating halves, and cycle walking."""

    def __init__(self, n: int, key: int) -> None:
        bits = (n - 1).bit_length()
        self.n = n
        self.right_bits = bits // 2
        self.left_bits = bits - self.right_bits
        rounds = 32 if bits <= 8 else 12 if bits <= 16 else 6
        self.keys = [mix((key + r * GOLDEN) & MASK) for r in range(1, rounds + 1)]

    def through(self, x: int) -> int:
        left, right = x >> self.right_bits, x % (1 << self.right_bits)
        for r, key in enumerate(self.keys):
            half = right if r % 2 == 0 else left
            hashed = (half ^ key) * FIRST & MASK
            hashed = ((hashed ^ (hashed >> 32)) * SECOND & MASK) >> 33
            if r % 2 == 0:
                left ^= hashed % (1 << self.left_bits)
            else:
                right ^= hashed % (1 << self.right_bits)
        return left << self.right_bits | right

    def forward(self, position: int) -> int:
        x = self.through(position)
        while x >= self.n:
            x = self.through(x)
        return x

    def all(self) -> list[int]:
        return [self.forward(position) for position in range(self.n)]


def shuffled(first: int, count: int, key: int) -> list[int]:
    """Fisher-Yates from the end; bounded draws by multiplication, with rejection."""
    numbers = list(range(first, first + count))
    state = key
    for i in range(count - 1, 0, -1):
        bound = i + 1
        while True:
            state = (state + GOLDEN) & MASK
            product = (mix(state) >> 32) * bound
            if product % 2**32 >= 2**32 % bound:
                break
        k = product >> 32
        numbers[i], numbers[k] = numbers[k], numbers[i]
    return numbers
