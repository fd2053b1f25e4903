"""Triton without a GPU: its interpreter, mended where it does not do what a GPU does.

Triton decides when it is imported whether it compiles or interprets, so `choose()` comes before that: it asks for the
interpreter where there is no GPU. The interpreter of Triton 3.6 keeps bfloat16 as uint16 and gets two things wrong with it:
it cuts float32 off instead of rounding it, and multiplies matrices of bits as if they were numbers. And it leaves products
to a library that adds in an order of its own for each shape, where a tensor core goes up k: contract C2 would not show.
"""

import os

import numpy as np

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16


def choose() -> None:
    """Asks for the interpreter, unless there is a GPU or somebody has decided already."""
    if not _C.cuda_devices()[0]:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def is_interpreting() -> bool:
    import triton

    return triton.knobs.runtime.interpret


def mend() -> None:
    """Mends the interpreter; may be called again."""
    import triton.language as tl
    from triton.runtime import interpreter

    if getattr(interpreter, "_is_mended", False):
        return
    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding_mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return encode_bfloat16(values)
        if (source, target) == (tl.bfloat16, tl.float32):
            return decode_bfloat16(values.view(np.uint16)).view(np.uint32)
        return convert(values, source, target, rounding_mode)

    def dot(self, a, b, acc, *options):
        wide = [decode_bfloat16(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)]
        total, product = acc.data.copy(), np.empty_like(acc.data)
        for k in range(wide[0].shape[1]):
            total += np.multiply(wide[0][:, k, None], wide[1][None, k], out=product)
        return interpreter.TensorHandle(total, acc.dtype.scalar)

    interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = convert_float, dot
    interpreter._is_mended = True
