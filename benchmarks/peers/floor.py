"""The floor: every weight of the step read once and multiplied with two rows, by floor.c, and nothing else.

    python -m peers.floor serve --work DIR --weights bf16

Not an engine: what the memory and the arithmetic of the machine allow at best in the minute of the measurement. Takes no
prompt and gives no tokens. Needs a C compiler.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peers import peer
from peers.peer import HEAD_DIM, SHAPE, VOCAB_SIZE, Variant

TITLE = "floor (weights streamed, nothing else)"
PACKAGE = None
REQUIREMENTS = None
_SPIN = (("OMP_WAIT_POLICY", "active"),)
VARIANTS = {
    "bf16": Variant("bf16", environment=_SPIN),
    "int8": Variant("int8, a scale an output", environment=_SPIN),
    "int4": Variant("int4, float16 scale for 32", environment=_SPIN),
}
_FORMATS = {"bf16": 0, "int8": 1, "int4": 2}
_SOURCE = Path(__file__).with_suffix(".c")


def unavailable() -> str | None:
    if compiler() is None:
        return "no C compiler"
    return None


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    """Nothing of the checkpoint: only its sizes count."""


def matrices() -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix of a step, in its order."""
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    query, kv = (HEAD_DIM * SHAPE[key] for key in ("num_attention_heads", "num_key_value_heads"))
    layer = [(query + 2 * kv, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner)]
    return layer * SHAPE["num_hidden_layers"] + [(VOCAB_SIZE, hidden)]


class Model(peer.Lockstep):
    def __init__(self, folder: Path, weights: str, context: int, steps: int, threads: int):
        library = folder / "libfloor.so"
        if not library.exists() or library.stat().st_mtime < _SOURCE.stat().st_mtime:
            build = [compiler(), "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", _SOURCE, "-o", library]
            done = subprocess.run(build, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(
                    f"{done.stderr}\nfloor.c does not compile for this processor (it needs AVX2, or AVX-512 BF16 and VNNI)"
                )
        self._library = ctypes.CDLL(str(library))
        self._library.floor_open.restype = ctypes.c_int64
        sizes = [size for matrix in matrices() for size in matrix]
        self._sizes = (ctypes.c_int32 * len(sizes))(*sizes)
        self.bytes = self._library.floor_open(_FORMATS[weights], self._sizes, len(sizes) // 2, threads)
        if self.bytes <= 0:
            sys.exit("out of memory" if self.bytes else "wrong: a product differs from its reference")

    def run(self, context: int, steps: int) -> dict:
        milliseconds = (ctypes.c_double * steps)()
        self._library.floor_run(steps, milliseconds)
        return {"ms": list(milliseconds), "tokens": None}


if __name__ == "__main__":
    peer.main(sys.modules[__name__])
