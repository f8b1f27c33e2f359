"""Rank, world and workers: from arguments, a real process group, launchers' variables, real DataLoader workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazystore.errors import ConfigError
from lazystore.streaming.topology import detect, nodes, worker

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "NNODES", "SLURM_", "OMPI_", "PMI_")

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "5"}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "6"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_NTASKS": "7"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, *variables: dict[str, str]) -> None:
    for some in variables:
        for name, value in some.items():
            monkeypatch.setenv(name, value)


def run(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**kept, **environment},
        cwd=os.path.dirname(__file__),  # not the sources' folder: what is installed is tested
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.strip()


def test_a_process_on_its_own_is_the_only_reader() -> None:
    assert detect() == (0, 1)
    assert worker() == (0, 1)
    assert nodes(1) == nodes(6) == 1


@pytest.mark.parametrize(
    ("environment", "expected"), [(TORCHRUN, (3, 8)), (OPEN_MPI, (2, 5)), (PMI, (1, 6)), (SRUN, (4, 7))]
)
def test_each_launchers_variables_are_understood(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]
) -> None:
    set_environment(monkeypatch, environment)
    assert detect() == expected


def test_the_launcher_nearest_to_the_process_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    for environment, answer in ((SRUN, (4, 7)), (PMI, (1, 6)), (OPEN_MPI, (2, 5)), (TORCHRUN, (3, 8))):
        set_environment(monkeypatch, environment)
        expected.append(detect() == answer)
    assert all(expected)


def test_arguments_are_believed_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TORCHRUN, {"SLURM_STEP_ID": "nonsense"})
    assert detect(1, 2) == (1, 2)


@pytest.mark.parametrize(
    "shell",
    [
        {},  # an sbatch script, or a shell of salloc on the submitting machine
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc with its own interactive step
        {"SLURM_STEP_ID": "4294967291"},  # the step of the batch script
    ],
)
def test_a_shell_inside_a_slurm_allocation_reads_everything(
    monkeypatch: pytest.MonkeyPatch, shell: dict[str, str]
) -> None:
    set_environment(monkeypatch, {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, shell)
    assert detect() == (0, 1)


def test_a_slurm_step_smaller_than_its_allocation_counts_its_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SRUN, {"SLURM_STEP_NUM_TASKS": "5"})
    assert detect() == (4, 5)


@pytest.mark.parametrize("environment", [TORCHRUN, OPEN_MPI, PMI, SRUN])
@pytest.mark.parametrize("lost", ["rank", "world"])
def test_half_a_pair_of_variables_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], lost: str
) -> None:
    set_environment(monkeypatch, environment)
    rank_name, world_name = [name for name in environment if name != "SLURM_STEP_ID"]
    monkeypatch.delenv(rank_name if lost == "rank" else world_name)
    with pytest.raises(ConfigError, match=rf"(?s)(?=.*\b{rank_name}\b)(?=.*\b{world_name}\b)"):
        detect()


def test_a_world_of_one_needs_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"WORLD_SIZE": "1"})
    assert detect() == (0, 1)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"RANK": "", "WORLD_SIZE": " "})
    assert detect() == (0, 1)


@pytest.mark.parametrize(("rank", "world"), [("8", "8"), ("-1", "8"), ("0", "0"), ("0", "-3")])
def test_a_rank_outside_its_world_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    set_environment(monkeypatch, {"RANK": rank, "WORLD_SIZE": world})
    with pytest.raises(ConfigError, match=rf"RANK={rank}.*WORLD_SIZE={world}"):
        detect()
    with pytest.raises(ConfigError, match=rf"rank={rank}.*world_size={world}"):
        detect(int(rank), int(world))


@pytest.mark.parametrize("value", ["two", "1.0", "0x1", "²", "--1"])
def test_a_variable_that_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    set_environment(monkeypatch, {"RANK": value, "WORLD_SIZE": "8"})
    with pytest.raises(ConfigError, match="RANK="):
        detect()


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"world_size": 2}])
def test_half_a_pair_of_arguments_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, int]) -> None:
    set_environment(monkeypatch, TORCHRUN)
    with pytest.raises(ConfigError, match=r"(?s)(?=.*\brank\b)(?=.*\bworld_size\b)"):
        detect(**arguments)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NNODES": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, 1),
        ({"NNODES": "4", "LOCAL_WORLD_SIZE": "8"}, 4),
    ],
)
def test_machines_are_counted_from_the_ranks_on_this_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    set_environment(monkeypatch, environment)
    assert nodes(8) == expected


@pytest.mark.parametrize("environment", [{"NNODES": "3"}, {"NNODES": "0"}, {"LOCAL_WORLD_SIZE": "16"}])
def test_machines_that_do_not_divide_the_world_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(ConfigError, match=next(iter(environment))):
        nodes(8)


def test_asking_does_not_load_torch() -> None:
    code = (
        "import sys; from lazystore.streaming.topology import detect, nodes, worker\n"
        "print(detect(), worker(), nodes(4), 'torch' in sys.modules)"
    )
    assert output(run(code, RANK="1", WORLD_SIZE="4")) == "(1, 4) (0, 1) 1 False"


GROUP = """
import sys
import torch.distributed as dist
from lazystore.streaming.topology import detect
before = detect()
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
print(before, detect(), detect(5, 9))
dist.barrier()
dist.destroy_process_group()
"""


def test_an_initialised_process_group_is_believed_before_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    group = str(tmp_path / "group")
    ranks = [run(GROUP, group, str(rank), RANK="6", WORLD_SIZE="7") for rank in range(2)]
    assert [output(rank) for rank in ranks] == [f"(6, 7) ({rank}, 2) (5, 9)" for rank in range(2)]


WORKERS = """
import sys
from torch.utils.data import DataLoader, IterableDataset
from lazystore.streaming.topology import worker

class Asking(IterableDataset):
    def __iter__(self):
        yield worker()

if __name__ == "__main__":
    loader = DataLoader(Asking(), batch_size=None, num_workers=3, multiprocessing_context="fork")
    print(sorted(map(tuple, loader)), tuple(next(iter(DataLoader(Asking(), batch_size=None)))))
"""


def test_each_dataloader_worker_knows_its_number() -> None:
    pytest.importorskip("torch")
    assert output(run(WORKERS)) == "[(0, 3), (1, 3), (2, 3)] (0, 1)"
