"""Several processes that train as one, on one machine or many, started by torchrun::

    torchrun --nproc-per-node 2 -m train --preset person-pose --data coco --out runs/people

Every process runs the same program on its share of each batch. The first one alone reads and writes files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sdk.errors import ConfigError, SdkError

# A process that waits longer than this for the others gives up. Loading data and judging weights take less.
TIMEOUT = timedelta(minutes=10)

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. Each method is a meeting: all have to call it.

    Attributes:
        rank: of this process, from 0.
        world: how many there are.
        local_rank: of this process on its machine; the number of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reads and writes files, shows progress and decides which weights are best."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's value."""
        if self.world == 1:
            return value
        out = value.detach().clone()
        dist.all_reduce(out)
        return out

    def largest(self, value: int) -> int:
        """The largest of every process's value."""
        if self.world == 1:
            return value
        out = torch.tensor(value)
        dist.all_reduce(out, dist.ReduceOp.MAX)
        return int(out)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def share(self, value: T) -> T:
        """The first process's value; what the others pass is ignored."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the first process's."""
        if self.world > 1:
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0)
                tensor.detach().copy_(whole)


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Meet the other processes that torchrun started, over gloo on CPUs and NCCL on GPUs; without torchrun, be alone.

    When one process fails, all stop, and one of them says why: it leaves its number in the store that they share,
    the others lose the connection to it, see the number and exit without a word, with code 1. A process that was
    killed, or a machine that is gone, leaves nothing; whoever notices first says that.

    Args:
        device: of the run, "cpu" or "cuda".

    Raises:
        SdkError: another process was lost.
        SystemExit: another process failed, and says why.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    processes = Processes(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(own_device(device, processes))
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    notes = PrefixStore("centeredge", store)
    dist.init_process_group(
        # Counts and messages stay on the CPU, where reading them does not wait for the GPU.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=processes.rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    try:
        yield processes
    except Exception as err:
        # The group is left as it is: taking it down in order needs the others.
        if _first_to_fail(notes, processes.rank) != str(processes.rank):
            raise SystemExit(1) from err
        if _is_lost_connection(err):
            raise SdkError(
                f"another process of this run was killed or cannot be reached ({_reason(err)}); "
                "start all of them again with --resume"
            ) from err
        raise
    dist.barrier()  # nobody takes the group down while another is still at work in it
    dist.destroy_process_group()


def own_device(name: str, processes: Processes) -> torch.device:
    """The device of this process: with several, "cuda" means the GPU of its local rank.

    Raises:
        ConfigError: one GPU for several processes, or a device that cannot be used.
    """
    try:
        device = torch.device(name)
        if processes.world > 1 and device.type == "cuda":
            if device.index is not None:
                raise ConfigError(f"device={name!r} is one GPU for {processes.world} processes; set device=cuda")
            device = torch.device("cuda", processes.local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:  # AssertionError: this PyTorch was built without CUDA
        reason = str(err).strip().splitlines()[0]
        raise ConfigError(f"device={name!r} cannot be used ({reason}); set device=cpu, or leave it out") from err
    return device


def synchronise_batch_norm(network: nn.Module, processes: Processes, device: torch.device) -> None:
    """Take the statistics of a batch over all processes, where PyTorch has that: on GPUs.

    On CPUs each process normalises by the statistics of its own pictures, and the first one's running averages
    are evaluated and shipped.
    """
    if processes.world > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # in place


def parallel(network: nn.Module, processes: Processes, probe: Tensor) -> nn.Module:
    """The network with gradients averaged over the processes.

    Args:
        network: takes `probe` and gives heads, one dictionary a stack.
        processes: of the run.
        probe: a small input, to find parameters that influence no output (the official DLA has some): the
            exchange would wait for their gradients.
    """
    if processes.world == 1:
        return network
    was_training = network.training
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    outputs = [head.sum() for heads in network.eval()(probe) for head in heads.values()]
    gradients = torch.autograd.grad(torch.stack(outputs).sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    network.train(was_training)
    devices = None if probe.device.type == "cpu" else [probe.device.index]
    return DistributedDataParallel(network, device_ids=devices)


def _first_to_fail(notes: Store, rank: int) -> str:
    """The process that failed first; this one, where nobody can be asked any more."""
    try:
        return str(notes.compare_set("failed", "", str(rank)).decode())
    except RuntimeError:
        return str(rank)


def _is_lost_connection(err: Exception) -> bool:
    text = str(err).lower()
    return isinstance(err, dist.DistError) or (
        isinstance(err, RuntimeError) and ("gloo" in text or "nccl" in text or "connection" in text)
    )


def _reason(err: Exception) -> str:
    """The first sentence, without the place in PyTorch's source that it starts with."""
    return re.sub(r"^\[[^]]*\]\s*", "", str(err).strip()).split(". ")[0].splitlines()[0]
