"""A trial of an op on a device: as op_trial.Trial, with the arguments in the device's memory."""

from simplear_engine.backend import DeviceBackend
from simplear_engine.kernels.op import Case, Op
from simplear_engine.kernels.packed_weight import PackedWeight
from simplear_engine.testing.op_trial import Trial


class DeviceTrial(Trial):
    def __init__(self, op: Op, impl: str, case: Case, backend: DeviceBackend):
        super().__init__(op, impl, case, backend.pool)
        self._backend, self._on_host = backend, self._args
        self._args = {name: self._uploaded(arg) for name, arg in self._on_host.items()}
        self._program = backend.new_program()
        op.record(self._program, impl, self._args, **case.scalars)

    def run(self) -> None:
        self._program.run()

    def seconds(self, repeats: int) -> float:
        """Of one call, when as many follow one another in a graph."""
        return self._program.time(repeats) / repeats

    def check(self) -> None:
        for name, arg in self._on_host.items():
            if not isinstance(arg, PackedWeight):
                self._backend.copy(self._args[name], arg)
        on_device, self._args = self._args, self._on_host
        try:
            super().check()
        finally:
            self._args = on_device

    def _uploaded(self, arg):
        if isinstance(arg, PackedWeight):
            return PackedWeight(self._backend.upload(arg.storage), arg.shape)
        return self._backend.upload(arg)
