"""Several processes that train one model: who this one is, sums over all, what only the first does, shards."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from onpath.types import Denoiser

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]

_LOST = re.compile(r"gloo|nccl|connection|broken pipe|peer|timed out", re.IGNORECASE)


class FailedElsewhere(ValueError):
    """What the first process raises as well, so that it alone need say it."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as ``torchrun`` starts them; by default this one alone.

    rank: of this process, 0 … count-1; only rank 0 writes and speaks. All that involves several of them is a
    collective: every process has to call it, in the same order.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Processes]:
        """Joins those that torchrun started (gloo between CPUs, NCCL between GPUs); alone without torchrun.

        ConnectionError where another process was lost on the way.
        """
        if not is_launched():
            yield cls()
            return
        gpu = local_gpu()
        if gpu is not None:
            torch.cuda.set_device(gpu)
        dist.init_process_group("gloo" if gpu is None else "cpu:gloo,cuda:nccl")
        processes = cls(dist.get_rank(), dist.get_world_size())
        try:
            yield processes
        except RuntimeError as error:
            if processes.count == 1 or not _LOST.search(str(error)):
                raise
            raise ConnectionError(
                f"training: rank {processes.rank} of {processes.count} lost another process of this run "
                f"({str(error).splitlines()[0]}). See what that process said; then start all of them again with "
                "--resume, which goes on from the newest whole checkpoint"
            ) from error
        # not after an error, where this would wait for the lost process
        dist.barrier()
        gc.collect()  # what still holds a group would end its threads too late
        dist.destroy_process_group()

    def first(self, action: Callable[[], T]) -> T:
        """Runs `action` in the first process alone; its result, or its ValueError, is that of every process."""
        if self.count == 1:
            return action()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = action()
            except ValueError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise ValueError(box[1]) if self.rank == 0 else FailedElsewhere(box[1])
        return box[0]

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over all processes; the host does not wait for a GPU."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; on the hosts alone, so that no GPU is waited for."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; anything that can be pickled."""
        if self.count == 1:
            return [value]
        box: list[Any] = [None] * self.count
        dist.all_gather_object(box, value)
        return box

    def each(self, action: Callable[[], T]) -> list[T]:
        """What `action` gives in every process, by rank; a ValueError in any of them is that of every process."""
        if self.count == 1:
            return [action()]
        value: Any = None
        failure: ValueError | None = None
        try:
            value = action()
        except ValueError as error:
            failure = error
        found = self.gather((value, None if failure is None else str(failure)))
        said = [message for _, message in found if message is not None]
        if not said:
            return [value for value, _ in found]
        if self.rank == 0:  # which speaks
            raise failure or ValueError(said[0])
        raise FailedElsewhere(said[0])

    def shards(self, *networks: nn.Module) -> None:
        """Cuts each network into shards in place (FSDP2): every member of its `blocks`, and the rest as one unit.

        So a member of `blocks` has to be called as a whole, within the forward of the network.
        """
        if self.count == 1:
            return
        for network in networks:
            for block in blocks_of(network):
                fully_shard(block)
            fully_shard(network)
            register_fsdp_forward_method(network, "encode")

    def replicated(self, network: nn.Module) -> Denoiser:
        """The network, its gradients averaged over the processes in every backward (DDP)."""
        if self.count == 1:
            return cast(Denoiser, network)
        with warnings.catch_warnings():
            # torch 2.13 calls broadcast_buffers by another name, which older versions do not know
            warnings.simplefilter("ignore", FutureWarning)
            # a learned null condition has no gradient in a step that drops no condition
            return Replica(DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that are alike, its list `blocks`; none where it has no such list."""
    blocks = getattr(network, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


ALONE = Processes()


@dataclass(frozen=True)
class Replica:
    """A denoiser whose forward and backward go through DDP; what `encode` does is part of the same graph."""

    network: DistributedDataParallel

    def encode(self, **cond: Tensor) -> Any:
        return self.network.module.encode(**cond)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Any:
        return self.network(x, t, memo, **options)

    def unsynced(self) -> AbstractContextManager[Any]:
        return self.network.no_sync()


def unsynced(denoiser: Denoiser) -> AbstractContextManager[Any]:
    """Within it, backward adds up gradients without averaging them over processes: all micro-batches but the last."""
    return denoiser.unsynced() if isinstance(denoiser, Replica) else nullcontext()


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_gpu() -> int | None:
    """The GPU of this process, None where there is none; ValueError where torchrun started more than it has GPUs."""
    if not torch.cuda.is_available():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun: it started process {index} on a machine with {torch.cuda.device_count()} GPUs; set "
            "--nproc-per-node to their number"
        )
    return index


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The part of each tensor that this process holds: the shard, or all of it."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of which this process holds a shard; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_host(value: Any, keep: bool) -> Any:
    """`value`, a tree of dicts and lists, with every tensor whole and on the CPU, or None unless `keep`; a collective.

    Tensors are put together one by one, so no device ever holds more than one of them whole.
    """
    if isinstance(value, Tensor):
        tensor = whole(value.detach())
        return tensor.cpu() if keep else None
    if isinstance(value, dict):
        return {name: on_host(item, keep) for name, item in value.items()}
    return [on_host(item, keep) for item in value] if isinstance(value, list) else value


def sharded_like(value: Tensor, reference: Tensor) -> Tensor:
    """The whole tensor `value`, the same in every process, cut as `reference` is."""
    if not isinstance(reference, DTensor):
        return value
    value = value.to(reference.device)
    return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)
