"""2-D convolution of channel-last images, plain, strided or as corners of a nearest-neighbour upsampling; see conv2d.h."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels.op import F32, FLOAT, Case, In, Op, Out

_PANEL_ROWS = 64
_MAX_KERNEL = 4  # conv2d.cc keeps that many rows and columns of pointers


@dataclass(frozen=True)
class PackedKernels:
    """Weights in panels: `shape` is the logical [N, M, R, R, C], `storage` the packed `_C.Tensor`."""

    storage: Any
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.storage.dtype


def pack(weight: np.ndarray, dtype: str, pool) -> PackedKernels:
    """Packs a float32 array [N, M, R, R, C] as `dtype`: one matrix [M, (row, column, channel)] for each corner."""
    from simplear_engine import _C

    corners, out, size, _, channels = weight.shape
    if size > _MAX_KERNEL:
        raise UnsupportedError(f"conv2d: kernels of at most {_MAX_KERNEL} x {_MAX_KERNEL}, got {size}")
    # Corners begin at whole panels; bfloat16 takes channels in pairs.
    rows = -(-out // _PANEL_ROWS) * _PANEL_ROWS if corners > 1 else out
    even = -(-channels // 2) * 2 if dtype == "bfloat16" else channels
    if (rows, even) != (out, channels):
        padded = np.zeros((corners, rows, size, size, even), np.float32)
        padded[:, :out, ..., :channels] = weight
    else:
        padded = np.ascontiguousarray(weight)
    matrix = padded.reshape(corners * rows, size * size * even)
    storage = _C.Tensor.zeros([_C.packed_size(*matrix.shape, dtype)], dtype)
    _C.pack_panels([_C.Tensor.from_numpy(matrix)], storage, False, pool)
    return PackedKernels(storage, weight.shape)


def reference(x, weight, bias, stride, pad, residual=None, **_):
    """H and W are multiples of the stride."""
    batch, height, width, _ = x.shape
    corners, out, size = weight.shape[:3]
    step = 2 if corners == 4 else 1
    rows, columns = height // stride, width // stride
    y = np.empty((batch, rows * step, columns * step, out), np.float32)
    for corner in range(corners):
        row, column = divmod(corner, 2)
        before = (1 - row, 1 - column) if corners == 4 else (pad, pad)
        behind = [
            max((count - 1) * stride + size - front - extent, 0)
            for count, front, extent in zip((rows, columns), before, (height, width), strict=True)
        ]
        padded = np.pad(x, ((0, 0), (before[0], behind[0]), (before[1], behind[1]), (0, 0)))
        sums = np.zeros((batch, rows, columns, out), np.float32)
        for u in range(size):
            for v in range(size):
                seen = padded[:, u : u + rows * stride : stride, v : v + columns * stride : stride]
                sums += seen @ weight[corner, :, u, v].T
        y[:, row::step, column::step] = sums + bias
    return {"y": y if residual is None else y + residual}


def make_inputs(case, rng):
    a = case.axes
    shapes = {
        "x": (a["B"], a["H"], a["W"], a["C"]),
        "weight": (a["N"], a["M"], a["R"], a["R"], a["C"]),
        "bias": (a["M"],),
    }
    if "residual" in case.dtypes:
        shapes["residual"] = (a["B"], a["P"], a["Q"], a["M"])
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["weight"] /= np.sqrt(a["R"] ** 2 * a["C"]).astype(np.float32)
    return inputs


def case(
    batch, height, width, channels, out, kernel, stride=1, pad=0, corners=1, dtype="float32", y=None, residual=False
):
    step = 2 if corners == 4 else 1
    axes = {"B": batch, "H": height, "W": width, "C": channels, "M": out, "R": kernel, "N": corners}
    axes |= {"P": height // stride * step, "Q": width // stride * step}
    dtypes = {"x": dtype, "weight": dtype, "y": y or dtype} | ({"residual": y or dtype} if residual else {})
    return Case(axes, dtypes, {"stride": stride, "pad": pad})


def cases():
    for dtype in FLOAT:
        yield case(1, 1, 1, 4, 4, 1, dtype=dtype)
        yield case(2, 5, 7, 6, 37, 1, dtype=dtype, residual=True)
        yield case(2, 5, 7, 33, 100, 3, pad=1, dtype=dtype)  # odd channels, partial panel
        yield case(1, 9, 13, 64, 64, 3, pad=1, dtype=dtype, residual=True)
        yield case(3, 1, 3, 10, 16, 3, pad=1, dtype=dtype, residual=True)  # narrower than the kernel
        yield case(2, 6, 4, 16, 20, 3, stride=2, dtype=dtype)
        yield case(1, 2, 2, 7, 129, 3, stride=2, dtype=dtype)
        yield case(2, 3, 5, 12, 33, 2, corners=4, dtype=dtype)
        yield case(1, 4, 6, 64, 144, 2, corners=4, dtype=dtype)
        yield case(1, 5, 5, 700, 80, 3, pad=1, dtype=dtype)  # more weights than the cache keeps at once
        yield case(1, 5, 21, 704, 144, 3, pad=1, dtype=dtype)
        yield case(3, 1, 19, 96, 16, 3, pad=1, dtype=dtype, residual=True)
        yield case(2, 5, 37, 32, 100, 1, dtype=dtype, residual=True)
        yield case(2, 3, 33, 32, 8, 4, pad=1, dtype=dtype)
        yield case(2, 3, 17, 32, 33, 2, corners=4, dtype=dtype, residual=True)
        yield case(1, 3, 4, 48, 24, 3, pad=1, dtype=dtype, y="bfloat16" if dtype == "float32" else "float32")


def tolerance(case):
    """The rounding of a running float32 sum grows with the square root of its length."""
    if case.dtypes["y"] == "bfloat16":
        return 8e-3, 1e-4
    return 1e-5, 4e-7 * case.axes["R"] * np.sqrt(case.axes["C"])


OP = Op(
    name="conv2d",
    axes={
        "B": "batch",
        "H": "height",
        "W": "width",
        "C": "in_channels",
        "P": "out_height",
        "Q": "out_width",
        "M": "out_channels",
        "R": "kernel",
        "N": "corners",
    },
    args={
        "x": In("B, H, W, C", FLOAT),
        "weight": In("N, M, R, R, C", FLOAT),
        "bias": In("M", F32),
        "residual": In("B, P, Q, M", FLOAT, optional=True),
        "y": Out("B, P, Q, M", FLOAT),
    },
    scalars={"stride": 1, "pad": None},
    layouts={"weight": pack},
    reference=reference,
    make_inputs=make_inputs,
    test_cases=list(cases()),
    bench_cases=[
        case(1, h, h, c, m, r, pad=r // 2 if n == 1 else 0, corners=n, dtype=dtype)
        for dtype in ("bfloat16", "float32")
        for h, c, m, r, n in [
            (32, 512, 512, 3, 1),
            (64, 512, 512, 3, 1),
            (128, 256, 256, 3, 1),
            (64, 512, 512, 2, 4),
            (128, 512, 256, 1, 1),
            (128, 256, 48, 3, 1),
            (8, 128, 128, 3, 1),
        ]
    ],
    tolerance=tolerance,
    bytes_moved=lambda a, dtypes: (
        (2 if dtypes["x"] == "bfloat16" else 4)
        * (a["B"] * (a["H"] * a["W"] * a["C"] + a["P"] * a["Q"] * a["M"]) + a["N"] * a["M"] * a["R"] ** 2 * a["C"])
    ),
    flops=lambda a: 2 * a["B"] * a["P"] * a["Q"] * a["M"] * a["R"] ** 2 * a["C"],
    multiplies="weight",
)
