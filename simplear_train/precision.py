"""What a device computes in."""

import torch


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether products of bfloat16 matrices are at least as fast as those of float32. On a processor without such
    instructions PyTorch emulates them, at a fortieth of the speed."""
    if torch.device(device).type != "cpu":
        return True
    from simplear_engine import _C

    return "avx512_bf16" in _C.available_isas()


def resolved(compute_dtype: str, device: torch.device | str) -> str:
    """ "bfloat16" or "float32", also for "auto"."""
    if compute_dtype != "auto":
        return compute_dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32"
