"""The library's own orders written down item by item: the oracle of ``streaming.order`` and ``streaming.windows``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from models.permute import PermutationModel, derive_key, shuffled

from lazystore.streaming.order import OrderSpec, Topology

Item = tuple[int, int]  # chunk, number in the chunk
Block = tuple[int, int, int]  # chunk, first, last


def reader_items(
    spec: OrderSpec, counts: Sequence[int], nbytes: Sequence[int], topology: Topology, epoch: int
) -> list[Item]:
    """What the reader visits, in order."""
    chunks = list(range(len(counts)))
    if spec.kind == "window" and chunks:
        chunks = PermutationModel(len(counts), derive_key(spec.seed, epoch, 1)).all()
    sequence = [(chunk, number) for chunk in chunks for number in range(counts[chunk])]
    if spec.kind == "global" and sequence:
        permutation = PermutationModel(len(sequence), derive_key(spec.seed, epoch, 2)).all()
        sequence = [sequence[k] for k in permutation]
    part = share(len(sequence), topology, spec.drop_last)
    items = [sequence[k] for k in part]
    if spec.kind != "window" or not items:
        return items
    return _window(spec, counts, nbytes, items, derive_key(spec.seed, epoch, 3, part[0]))


def share(total: int, topology: Topology, drop_last: bool) -> list[int]:
    """Positions of the reader's items: ranks side by side, batches dealt to the workers in turn."""
    each, over = divmod(total, topology.world)
    sizes = [each + (rank < over and not drop_last) for rank in range(topology.world)]
    begin = sum(sizes[: topology.rank])
    left = sizes[topology.rank]
    batches: list[list[int]] = [[] for _ in range(topology.workers)]
    turn = 0
    while left:
        batches[turn % topology.workers].append(min(left, topology.batch_size))
        left -= batches[turn % topology.workers][-1]
        turn += 1
    begin += sum(sum(sizes) for sizes in batches[: topology.worker])
    return list(range(begin, begin + sum(batches[topology.worker])))


def _window(spec: OrderSpec, counts: Sequence[int], nbytes: Sequence[int], items: list[Item], key: int) -> list[Item]:
    blocks, total_bytes = _cut(counts, nbytes, items, spec.block_bytes)
    if total_bytes <= spec.window_bytes:
        return [items[k] for k in PermutationModel(len(items), derive_key(key, 5)).all()]
    window = min(max(1, spec.window_bytes // spec.block_bytes), 1024)
    mean = max(1, total_bytes // len(blocks))
    largest = max(last - first for _, first, last in blocks)
    together = max(1, min(spec.block_bytes // mean, 16384 // largest, 16384 // window))
    steps = -(-len(blocks) // together)
    rounds: defaultdict[int, list[Item]] = defaultdict(list)
    for position, block in enumerate(PermutationModel(len(blocks), derive_key(key, 1)).all()):
        step = position // together
        for due, numbers in _dealt(blocks[block], block, key, window, step, steps).items():
            rounds[due] += [(blocks[block][0], number) for number in numbers]
    emitted: list[Item] = []
    for number in sorted(rounds):
        places = shuffled(0, len(rounds[number]), derive_key(key, 4, number))
        row = dict(zip(places, rounds[number], strict=True))
        emitted += [row[place] for place in range(len(row))]
    return emitted


def _dealt(span: Block, block: int, key: int, window: int, step: int, steps: int) -> dict[int, list[int]]:
    """The block's numbers by the round they come in."""
    _, first, last = span
    draw = derive_key(key, 3, block)
    numbers = shuffled(first, last - first, derive_key(key, 2, block))
    dealt, at = {}, 0
    for after in range(min(window, steps - step)):
        part = (after + draw % window) % window
        size = len(numbers) * (part + 1) // window - len(numbers) * part // window
        dealt[step + after] = numbers[at : at + size]
        at += size
    late = numbers[at:]
    for after in range(window - 1 if late else 0):
        part = (after + draw % (window - 1)) % (window - 1)
        size = len(late) * (part + 1) // (window - 1) - len(late) * part // (window - 1)
        dealt[steps + after] = numbers[at : at + size]
        at += size
    return dealt


def _cut(counts: Sequence[int], nbytes: Sequence[int], items: list[Item], block_bytes: int) -> tuple[list[Block], int]:
    """Blocks of the part, and its bytes."""
    ranges: list[Block] = []
    for chunk in dict.fromkeys(chunk for chunk, _ in items):
        numbers = [number for held, number in items if held == chunk]
        ranges.append((chunk, min(numbers), max(numbers) + 1))
    blocks, total = [], 0
    for chunk, first, last in ranges:
        n = last - first
        mean, rest = divmod(nbytes[chunk], counts[chunk])
        size = mean * n + rest * n // counts[chunk] if nbytes[chunk] else 4096 * n
        pieces = min(n, max(1, -(-size // block_bytes), -(-n // 16384)))
        blocks += [(chunk, first + n * k // pieces, first + n * (k + 1) // pieces) for k in range(pieces)]
        total += size
    return blocks, total
