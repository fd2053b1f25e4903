"""A trial of an op's CUDA kernel, simulated on the host: as op_trial.Trial, with weights in tiles."""

import numpy as np

from simplear_engine.kernels.weight_tiles import pack_tiles
from simplear_engine.testing.op_trial import Trial

# Ops whose matrix is two of one shape, packed by turns.
_HALVES = ("gate_up_silu",)


class SimtTrial(Trial):
    def __init__(self, op, case, pool):
        super().__init__(op, "simt", case, pool)

    def _given(self, name: str):
        if name not in self.op.layouts:
            return super()._given(name)
        array = self._arrays[name]
        parts = np.split(array, 2) if self.op.name in _HALVES else [array]
        return pack_tiles(parts, self._dtype(name))
