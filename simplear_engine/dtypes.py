"""Names of number formats, and bfloat16 for a NumPy that has none.

A dtype is a string ("float32", "bfloat16", ...) everywhere in Python; an array of bfloat16 is carried as uint16.
"""

import numpy as np

# What holds one element of each named dtype. Little-endian on every machine, as files are.
STORAGE: dict[str, np.dtype] = {
    name: np.dtype(code)
    for name, code in {
        "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2",
        "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1",
        "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "u1", "bool": "?",
    }.items()
}  # fmt: skip

FLOATING = ("float32", "bfloat16", "float16")


def decode_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bfloat16 bits of any shape -> float32 of that shape, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 of any shape -> uint16 bfloat16 bits, rounded to nearest even; NaN stays NaN, overflow becomes infinity."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        # Rounding could carry a NaN's payload into infinity or past the sign; the quiet bit keeps it a NaN.
        rounded[is_nan] = ((bits[is_nan] >> 16) | 0x40).astype(np.uint16)
    return rounded


def to_float32(data: np.ndarray, dtype: str) -> np.ndarray:
    """Elements of a named floating dtype as float32 (the array itself when it is float32 already)."""
    if dtype == "bfloat16":
        return decode_bfloat16(data)
    if dtype not in ("float16", "float32", "float64"):
        raise TypeError(f"expected a floating dtype, got {dtype}")
    return data.astype(np.float32, copy=False)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the storage of a named floating dtype (bfloat16 as uint16)."""
    if dtype == "bfloat16":
        return encode_bfloat16(values)
    if dtype not in ("float16", "float32", "float64"):
        raise TypeError(f"expected a floating dtype, got {dtype}")
    return values.astype(STORAGE[dtype], copy=False)
