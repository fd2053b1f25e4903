"""Training on several processes, started by torchrun: every process takes its share of each batch.

    torchrun --standalone --nproc-per-node 2 -m simplear_train.pretrain ...       two processes
    python -m simplear_train.pretrain ...                                         one process, same code

Parameters are whole everywhere and gradients are averaged once a step, or (sharding "fsdp2") every process keeps a part of
each parameter, of its gradient and of the optimizer's state, and layers are put together while they are needed.

On a busy CPU, one single-threaded process per core is about three times faster than one process with as many threads:
threads meet at every operation and wait for whichever is not scheduled, processes meet once a step.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """This process's place among its peers."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def slice(self, begin: int, batch_size: int) -> range:
        """The sample numbers of this process in the batch [begin, begin + batch_size)."""
        return range(
            begin + self.rank * batch_size // self.world_size, begin + (self.rank + 1) * batch_size // self.world_size
        )


ALONE = Share()


def join_peers(device: str) -> Share:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Share(dist.get_rank(), world_size)


def threads_per_process() -> int | None:
    """For an engine: its part of the cores where the process has peers on this machine. None alone: all of them."""
    from simplear_engine import _C

    peers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None if peers == 1 else max(1, _C.default_num_threads() // peers)


@torch.no_grad()
def average_gradients(module: nn.Module, share: Share) -> None:
    """One all-reduce over all gradients laid end to end; sharded gradients are averaged already."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not is_sharded(p)]
    if share.world_size == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= share.world_size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def combine(values: list[float], share: Share, largest: bool = False) -> list[float]:
    """Sums (or maxima) over all processes; every process calls it with as many values."""
    if share.world_size == 1 or not values:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor.tolist()


def shard(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Spreads the parameters over all processes: float32 where they are kept, `compute_dtype` where layers compute."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    # The root is let go of after its forward pass, too: a pass without gradients would else leave a stale copy.
    fully_shard(model, mp_policy=policy, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every process has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process keeps of `like`."""
    if not is_sharded(like):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
