"""A trial of the Triton implementation of an op: as op_trial.Trial, with weights in the layout of the GPU kernels."""

from simplear_engine.image.packing import plain_kernels
from simplear_engine.kernels.op import Case, Op
from simplear_engine.testing.op_trial import Trial
from simplear_engine.testing.simt_trial import SimtTrial
from simplear_engine.triton_program import TritonProgram


class TritonTrial(SimtTrial):
    def __init__(self, op: Op, case: Case):
        Trial.__init__(self, op, "triton", case, pool=None)
        self._program = TritonProgram()
        op.record(self._program, "triton", self._args, **case.scalars)

    def run(self) -> None:
        self._program.run()

    def rewind(self) -> None:
        super().rewind()
        for name, spec in self.op.args.items():
            if spec.role == "inout" and name in self._args:
                self._program.write(self._args[name])

    def repeated(self, times: int):
        """TritonProgram.repeated"""
        return self._program.repeated(times)

    def check(self) -> None:
        self._program.read_back()
        super().check()

    def _given(self, name: str):
        array, dtype = self._arrays[name], self._dtype(name)
        if name not in self.op.layouts or array.ndim == 2:
            return super()._given(name)
        return plain_kernels(array, dtype)
