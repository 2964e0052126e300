"""Real processes over gloo on this machine: they do what one process does, and none waits for one that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdk.errors import ConfigError, InputError
from tests.train.test_loop import SMALL, failing_data, tiny_config
from train.checkpoint import read_checkpoint
from train.config import TrainConfig
from train.data import open_data
from train.distributed import Processes, joined_processes, own_device
from train.loop import Trainer, train

# Batch norm over two halves of a batch is not that over the whole; frozen, it does not tell them apart.
EXACT = {
    "freeze_batch_norm": "true",
    "optimizer": "sgd",
    "learning_rate": "0.01",
    "warmup_steps": "0",
    "precision": "fp32",
}
WEIGHTS = Path(__file__).parents[2] / "train" / "weights" / "person-pose.pth"


def run_together(world: int, work: Callable[..., None], *args: object) -> list[int | None]:
    """Run `work(rank, *args)` in that many processes that know of each other; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # PyTorch is imported once
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [context.Process(target=_in_group, args=(rank, world, port, work, args)) for rank in range(world)]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout=240)
    hung = [process for process in group if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "processes wait for each other"
    return [process.exitcode for process in group]


def _in_group(rank: int, world: int, port: int, work: Callable[..., None], args: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    work(rank, *args)


def one_step(rank: int, config: TrainConfig, out: Path) -> None:
    """One step from given weights, and what they detect; the first process writes down what came of it."""
    with joined_processes("cpu") as processes:
        trainer = Trainer(config, open_data("synthetic", config), out, processes)
        trainer.begin(resume=False, init=WEIGHTS if processes.is_first else Path("not read"))
        figures = trainer.evaluate()
        items = range(config.accumulate)
        terms = trainer.train_step([trainer.batches[item] for item in items])
        terms = {name: processes.sum(term) for name, term in terms.items()}
        result = {
            "figures": figures,
            "terms": terms,
            "gradients": {name: value.grad for name, value in trainer.model.named_parameters()},
            "weights": trainer.model.state_dict(),
        }
        torch.save(result, out / f"rank{rank}of{processes.world}.pt")


def step_config(**changes: str) -> TrainConfig:
    return tiny_config(
        **{**EXACT, "architecture": "edge_s", "size": "128x128", "batch": "5", "held_back": "3", **changes}
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return _alone(tmp_path_factory.mktemp("alone"))


def _alone(out: Path) -> dict[str, Any]:
    one_step(0, step_config(), out)
    return _read(out / "rank0of1.pt")


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(path, weights_only=True)
    return result


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value of the tensor."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_two_processes_are_one_with_twice_the_batch(accumulate: str, alone: dict[str, Any], tmp_path: Path) -> None:
    assert run_together(2, one_step, step_config(accumulate=accumulate), tmp_path) == [0, 0]
    together, other = _read(tmp_path / "rank0of2.pt"), _read(tmp_path / "rank1of2.pt")
    for kind in ("gradients", "terms", "weights"):
        for name, expected in alone[kind].items():
            assert largest_difference(together[kind][name], expected) < 1e-5, (kind, name)
    # Both processes go on with the same weights, to the bit.
    assert all(torch.equal(other["weights"][name], value) for name, value in together["weights"].items())
    # Each has looked at some of the held-back pictures, and both know what came of all.
    assert together["figures"] == other["figures"] == alone["figures"]
    assert alone["figures"]["AP50"] > 0.05, "nothing is found; equal figures would say nothing"
    # The first alone writes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "rank0of2.pt", "rank1of2.pt"]


def test_torchrun_trains_as_one_process_does(tmp_path: Path) -> None:
    config = tiny_config(**EXACT, max_steps="4", evaluate_every="2", batch="4")
    changes = [
        f"{name}={value}"
        for name, value in {**SMALL, **EXACT, "max_steps": "4", "evaluate_every": "2", "batch": "4"}.items()
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    options = ["--preset", "synthetic-pose", "--data", "synthetic", "--out", str(tmp_path / "together")]
    run = subprocess.run(
        [*command, *options, "--set", *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("step 4: ") == 1, "one process alone speaks"
    train(config, open_data("synthetic", config), tmp_path / "alone")
    assert sorted(os.listdir(tmp_path / "together")) == sorted(os.listdir(tmp_path / "alone"))
    found, expected = (read_checkpoint(tmp_path / name / "last.pth") for name in ("together", "alone"))
    for name, value in expected.weights.items():
        if value.is_floating_point():
            assert largest_difference(found.weights[name], value) < 1e-4, name
    assert found.training is not None and found.training["step"] == 4


def failing(rank: int, config: TrainConfig, out: Path, how: str) -> None:
    """Process 1 fails in the second step; what each process ends with is written down."""

    def fault() -> None:
        if rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1:
            raise InputError("street.jpg is not a picture that can be decoded")

    try:
        train(config, failing_data(config, 3, fault) if rank == 1 else open_data("synthetic", config), out)
    except BaseException as err:
        (out / f"{rank}.txt").write_text(f"{type(err).__name__}: {err}")
        os._exit(1)


def test_when_one_process_fails_all_stop_and_one_says_why(tmp_path: Path) -> None:
    config = tiny_config(batch="4", task="detection")
    assert run_together(2, failing, config, tmp_path, "fails") == [1, 1]
    assert (tmp_path / "1.txt").read_text() == "InputError: street.jpg is not a picture that can be decoded"
    # Where the first process stays alive, as under torchrun, the other leaves without a word; here it may only be
    # that the connection broke before it could ask why.
    assert (tmp_path / "0.txt").read_text() == "SystemExit: 1"


def test_a_killed_process_is_missed(tmp_path: Path) -> None:
    config = tiny_config(batch="4", task="detection")
    assert run_together(2, failing, config, tmp_path, "killed") == [1, -signal.SIGKILL]
    said = (tmp_path / "0.txt").read_text()
    assert said.startswith("SdkError: another process of this run was killed or cannot be reached (")
    assert said.endswith("start all of them again with --resume")


def stopping(rank: int, config: TrainConfig, out: Path) -> None:
    """Process 1 alone is asked to stop."""
    data = open_data("synthetic", config)
    if rank == 1:
        data = failing_data(config, 3, lambda: signal.raise_signal(signal.SIGTERM))
    train(config, data, out)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    config = tiny_config(batch="4", task="detection")
    assert run_together(2, stopping, config, tmp_path) == [143, 143]
    training = read_checkpoint(tmp_path / "last.pth").training
    assert training is not None and training["step"] == 2


def test_alone_every_meeting_is_with_oneself() -> None:
    alone = Processes()
    tensor = torch.arange(3.0)
    assert alone.is_first and alone.largest(4) == 4 and alone.gather("a") == ["a"] and alone.share("a") == "a"
    assert torch.equal(alone.sum(tensor), tensor)
    alone.share_tensors([tensor])
    with joined_processes("cpu") as processes:
        assert processes == alone


def test_one_gpu_is_not_for_several_processes() -> None:
    with pytest.raises(ConfigError, match=r"device='cuda:0' is one GPU for 2 processes; set device=cuda"):
        own_device("cuda:0", Processes(rank=1, world=2, local_rank=1))


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path: Path) -> None:
    config = tiny_config(batch="2", accumulate="2")
    with pytest.raises(ConfigError, match=r"batch=2 cannot be shared by 2 processes with accumulate=2; set batch to 4"):
        Trainer(config, open_data("synthetic", config), tmp_path, Processes(rank=0, world=2))
