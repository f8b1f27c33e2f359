"""Which reader this process is: rank among ranks, torch worker among workers, and how many machines there are.

Only asks, never imports torch and keeps nothing. Who reads what is order.py's business.

Ask in the training process: a DataLoader worker that was not forked knows nothing of the process group, so whoever
sends a dataset to workers must send the rank and world with it.
"""

from __future__ import annotations

import os
import sys

from lazystore.errors import ConfigError

__all__ = ["detect", "nodes", "worker"]

#: (rank, world) variables of launchers, the nearest to the process first: MPI starts its ranks below tasks of Slurm,
#: and torchrun its own below either.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_SLURM_STEP = "SLURM_STEP_ID"
#: Slurm numbers what is no srun from here: batch scripts, shells of `salloc`. Those see the variables of the whole
#: allocation, but they are one process.
_SLURM_FIRST_SPECIAL_STEP = 0xFFFFFFF0

#: Ranks on this machine, as launchers say it.
_LOCAL_WORLD = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")

_REMEDY = "set both, unset both, or pass rank= and world_size="


def detect(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """(rank, world) from the arguments, else torch.distributed once initialised, else the launcher's environment.

    The environment is RANK and WORLD_SIZE (torchrun), then Open MPI's, then PMI's, then a Slurm step's; a shell or
    script inside a Slurm allocation is no step and reads everything. (0, 1) where nothing says otherwise.

    Parameters:
        rank: 0..world_size-1, given together with world_size.
        world_size: number of ranks.

    Raises:
        ConfigError: only one of a pair is there, or they cannot be; it names them.

    Cost: microseconds. Any thread; the answer may change when a process group is initialised.
    """
    if rank is not None or world_size is not None:
        return _pair("rank", rank, "world_size", world_size, "give both or neither")
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for rank_name, world_name in (*_LAUNCHERS, *_slurm_step()):
        found, size = _number(rank_name), _number(world_name)
        if found is None and size == 1:
            continue  # a world of one says nothing
        if found is not None or size is not None:
            return _pair(rank_name, found, world_name, size, _REMEDY)
    return 0, 1


def worker() -> tuple[int, int]:
    """(worker, workers) in a DataLoader's worker process, (0, 1) anywhere else."""
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return (0, 1) if info is None else (info.id, info.num_workers)


def nodes(world: int) -> int:
    """Machines that the ranks are spread over: NNODES, else world // ranks on this machine, else 1.

    Raises:
        ConfigError: the variable does not divide the world; it names it.
    """
    count, name = _number("NNODES"), "NNODES"
    if count is None:
        for name in _LOCAL_WORLD:
            local = _number(name)
            if local is not None:
                count = world // local if local > 0 and world % local == 0 else 0
                break
        else:
            return 1
    if count < 1 or world % count:
        raise ConfigError(f"{name}={os.environ[name]} does not divide world_size={world}; correct or unset it")
    return count


def _slurm_step() -> tuple[tuple[str, str], ...]:
    """Slurm's variables, if this process belongs to a step that srun started."""
    step = _number(_SLURM_STEP)
    if step is None or step >= _SLURM_FIRST_SPECIAL_STEP:
        return ()
    # a step may have fewer tasks than its allocation
    return (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"),)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise ConfigError(f"environment variable {name}={text!r} is not a number; correct or unset it")
    return int(text)


def _pair(rank_name: str, rank: int | None, world_name: str, world: int | None, remedy: str) -> tuple[int, int]:
    if rank is None or world is None:
        there, missing = (rank_name, world_name) if world is None else (world_name, rank_name)
        raise ConfigError(f"{there}={world if rank is None else rank} is given without {missing}; {remedy}")
    if not 0 <= rank < world:
        raise ConfigError(f"{rank_name}={rank} is not one of the ranks of {world_name}={world}: 0..{world - 1}")
    return rank, world
