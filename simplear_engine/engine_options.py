"""How an engine is to be set up: its options checked, and what the automatic ones come to.

Every fault is a typed error that names the option, what was expected and what came. Nothing here makes anything but an
image tokenizer.
"""

import logging
import os

from simplear_engine.config import DEFAULTS_FILE, GenerationDefaults, ModelConfig
from simplear_engine.errors import CapacityError, CheckpointError, InvalidRequestError, UnsupportedError, shown

# Room for prompts when the KV cache is sized for the checkpoint's default picture.
PROMPT_ALLOWANCE = 128
# Kernels use bfloat16 and asynchronous copies, which Ampere brought.
MIN_CAPABILITY = (8, 0)

_log = logging.getLogger("simplear_engine")


def open_backend(device: str, threads: int | None):
    """Where to compute: "auto", "cpu", "cuda", "cuda:1", or the "simulated" device of the tests.

    "auto" takes the first GPU, and the CPU only where there is no GPU at all. A GPU that is there and does not do is an
    error that says why, whoever asked for it.
    """
    from simplear_engine import _C
    from simplear_engine.backend import CpuBackend
    from simplear_engine.device_backend import DeviceBackend

    kind, colon, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda", "simulated") or (
        colon and (kind not in ("cuda", "simulated") or not index.isdecimal() or len(index) > 4)
    ):
        raise InvalidRequestError(f'device: expected "auto", "cpu", "cuda" or "cuda:1", got {shown(device)}')
    if kind == "cpu":
        return CpuBackend(threads)
    if kind == "simulated":
        simulated = _C.Device("simulated", int(index or 0))
        check_gpu(simulated.name, simulated.properties)
        return DeviceBackend(simulated, threads)
    gpus, problem, is_out_of_order = _C.cuda_devices()
    if not gpus:
        if kind == "auto" and not is_out_of_order:
            _log.info("no GPU (%s): computing on the CPU", problem)
            return CpuBackend(threads)
        raise UnsupportedError(f'device={device!r}: no GPU was found ({problem}); use device="cpu"')
    index = int(index or 0)
    if index >= len(gpus):
        known = ", ".join(f"cuda:{i} ({gpu['name']})" for i, gpu in enumerate(gpus))
        raise UnsupportedError(f"device={device!r}: expected one of {known}")
    check_gpu(f"cuda:{index}", gpus[index])
    return DeviceBackend(_C.Device("cuda", index), threads)


def check_gpu(name: str, properties: dict) -> None:
    """Refuses a GPU that the kernels of this build cannot run on, and a driver that cannot run this build."""
    needed, found = properties["runtime_version"], properties["driver_version"]
    if found // 1000 < needed // 1000:
        raise UnsupportedError(
            f"{name}: the driver knows CUDA {_cuda_version(found)}, this engine was built with {_cuda_version(needed)}: "
            f'install a newer driver, or use device="cpu"'
        )
    if tuple(properties["capability"]) < MIN_CAPABILITY:
        expected, got = (".".join(map(str, version)) for version in (MIN_CAPABILITY, properties["capability"]))
        raise UnsupportedError(
            f"{name}: expected a GPU of compute capability {expected} or newer, got {properties['name']} with {got}; "
            f'use device="cpu"'
        )


def _cuda_version(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def check_dtype(dtype: str, stored: str, backend) -> str:
    """The dtype to compute in; "auto" follows what is stored, with bfloat16 for float16."""
    if not isinstance(dtype, str) or dtype not in ("auto", *backend.dtypes):
        expected = f"{', '.join(backend.dtypes[:-1])} or {backend.dtypes[-1]}"
        raise InvalidRequestError(f"dtype: expected auto, {expected} on {backend.device}, got {shown(dtype)}")
    if dtype == "auto":
        return "float32" if stored == "float32" else "bfloat16"
    return dtype


def check_kv_dtype(kv_dtype: str, dtype: str, backend) -> str:
    """The dtype of keys and values; "auto" follows that of the weights."""
    from simplear_engine.backend import CACHE_DTYPES

    if not isinstance(kv_dtype, str) or kv_dtype not in ("auto", *backend.kv_dtypes):
        expected = f"{', '.join(backend.kv_dtypes[:-1])} or {backend.kv_dtypes[-1]}"
        raise InvalidRequestError(f"kv_dtype: expected auto, {expected} on {backend.device}, got {shown(kv_dtype)}")
    return CACHE_DTYPES[dtype] if kv_dtype == "auto" else kv_dtype


def positive(name: str, value, high: int) -> int:
    """`value`, if it is an integer in 1..high."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise InvalidRequestError(f"{name}: expected an integer in 1..{high}, got {shown(value)}")
    return value


def open_image_tokenizer(path, dtype: str, checkpoint, backend):
    """The CosmosTokenizer at `path`, which takes turns with the engine on its threads; None for None."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidRequestError(f"image_tokenizer: expected a folder or a file, got {shown(path)}")
    from simplear_engine.backend import CACHE_DTYPES
    from simplear_engine.image import CosmosTokenizer
    from simplear_engine.image.backend import CpuBackend, DeviceBackend
    from simplear_engine.image.source import open_tokenizer

    decodes_on = "cpu" if backend.device == "cpu" else where_pixels_are_decoded(backend)
    network = (
        CpuBackend(CACHE_DTYPES[dtype], pool=backend.pool)
        if decodes_on == "cpu"
        else DeviceBackend(CACHE_DTYPES[dtype], backend.another())
    )
    tokenizer = CosmosTokenizer(open_tokenizer(path), network)
    if tokenizer.num_codes < checkpoint.model.num_codes:
        raise CheckpointError(
            f"{path}: the image tokenizer has {tokenizer.num_codes} codes, the model draws {checkpoint.model.num_codes}"
        )
    defaults = checkpoint.defaults
    if defaults.height % tokenizer.compression or defaults.width % tokenizer.compression:
        raise CheckpointError(
            f"{checkpoint.path / DEFAULTS_FILE}: height and width: expected multiples of {tokenizer.compression}, the "
            f"compression of {path}, found {defaults.height} x {defaults.width}"
        )
    return tokenizer


def where_pixels_are_decoded(backend) -> str:
    """The device's name, or "cpu" where it is a GPU and Triton, which compiles the decoder's kernels, is not installed."""
    from simplear_engine.device_backend import has_triton

    if backend.is_simulated or has_triton("conv2d"):
        return backend.device
    _log.warning("Triton is not installed: pictures are decoded on the CPU; pip install triton brings them to the GPU")
    return "cpu"


def num_cache_blocks(
    model: ModelConfig, defaults: GenerationDefaults, block_bytes: int, block_size: int, compression: int,
    max_pairs: int, kv_cache_bytes: int | None, free_bytes: int | None,
) -> int:  # fmt: skip
    """How many KV blocks to reserve. free_bytes: what is left on a device, or None for the host, where memory that no
    request touches is never taken from the system."""
    if kv_cache_bytes is not None:
        if isinstance(kv_cache_bytes, bool) or not isinstance(kv_cache_bytes, int) or kv_cache_bytes < 1:
            raise InvalidRequestError(f"kv_cache_bytes: expected a positive integer, got {shown(kv_cache_bytes)}")
        if kv_cache_bytes < 2 * block_bytes:
            raise CapacityError(
                f"kv_cache_bytes: expected at least {2 * block_bytes} for this model, got {kv_cache_bytes}"
            )
        return min(kv_cache_bytes // block_bytes, (1 << 31) // block_size - 1)
    image_tokens = (defaults.height // compression) * (defaults.width // compression)
    usual = -(-min(image_tokens + PROMPT_ALLOWANCE, model.max_position_embeddings) // block_size)
    longest = -(-model.max_position_embeddings // block_size)
    wanted = 2 * max(usual * max_pairs, longest)
    if free_bytes is None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(min(wanted, machine // 4 // block_bytes), 2 * usual)
    # The rest is for activations, graphs and whoever shares the device.
    room = int(0.8 * free_bytes)
    if room < 2 * usual * block_bytes:
        raise CapacityError(
            f"device memory: the keys and values of one picture take {2 * usual * block_bytes} bytes, and of the "
            f"{free_bytes} that are left {room} may be used; lower the resolution, or use a smaller dtype or kv_dtype"
        )
    return min(wanted, room // block_bytes)
