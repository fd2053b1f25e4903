"""A trial of an op on a device: as op_trial.Trial, with the arguments in the device's memory."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from simplear_engine.device_backend import DeviceBackend
from simplear_engine.kernels import float8
from simplear_engine.kernels.op import FLOAT, GPU_IMPLS, Case, Op
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.kernels.weight_tiles import pack_tiles
from simplear_engine.testing.op_trial import Trial


def cases_of(cases: Iterable[Case]) -> Iterator[Case]:
    """What a GPU takes of an op's cases; those with bfloat16 weights or an int8 cache once more in float8."""
    for case in cases:
        weight = case.dtypes.get("weight")
        if weight in (None, *FLOAT):
            yield case
        if weight == "bfloat16":
            yield replace(case, dtypes={**case.dtypes, "weight": float8.NAME})
        if case.dtypes.get("k_cache") == "int8":
            yield replace(case, dtypes={**case.dtypes, "k_cache": float8.NAME, "v_cache": float8.NAME})


class DeviceTrial(Trial):
    """`copies`: calls in the program, each with arguments of its own: in turn they come from memory and not from cache."""

    def __init__(self, op: Op, impl: str, case: Case, backend: DeviceBackend, copies: int = 1):
        self._backend, self._copies = backend, copies
        super().__init__(op, impl, case, backend.pool)
        self._on_host = self._args
        self._program = backend.new_program()
        for _ in range(copies):
            self._args = {name: self._uploaded(arg) for name, arg in self._on_host.items()}
            backend.add(self._program, op.name, op.fields(self._args, case.scalars, impl), impl)

    def run(self) -> None:
        self._program.run()

    def seconds(self, repeats: int) -> float:
        """Of one call, when all follow one another in a graph, `repeats` times over."""
        return self._program.time(repeats) / (repeats * self._copies)

    def check(self) -> None:
        for name, arg in self._on_host.items():
            if not isinstance(arg, PackedWeight):
                self._backend.copy(self._args[name], arg)
        on_device, self._args = self._args, self._on_host
        try:
            super().check()
        finally:
            self._args = on_device

    def _given(self, name: str):
        if name not in self.op.layouts or self.impl not in GPU_IMPLS:
            return super()._given(name)
        array = self._arrays[name]
        parts = np.split(array, 2) if self.op.name == "gate_up_silu" else [array]
        return pack_tiles(parts, self._dtype(name))

    def _uploaded(self, arg):
        if isinstance(arg, PackedWeight):
            return PackedWeight(self._backend.upload(arg.storage), arg.shape)
        return self._backend.upload(arg)
