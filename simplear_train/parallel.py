"""Data parallelism by torchrun: every process takes its share of each batch, gradients are averaged once a step.

    torchrun --standalone --nproc-per-node 2 -m simplear_train.pretrain ...       two processes
    python -m simplear_train.pretrain ...                                         one process, same code

On a busy CPU, one single-threaded process per core is about three times faster than one process with as many threads:
threads meet at every operation and wait for whichever is not scheduled, processes meet once a step. On GPUs the
same lines mean one process per device. (Sharded models need FSDP instead; nothing here is large enough.)
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


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
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Share(dist.get_rank(), world_size)


@torch.no_grad()
def average_gradients(module: nn.Module, share: Share) -> None:
    """One all-reduce over all gradients laid end to end."""
    if share.world_size == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= share.world_size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))
