"""CUDA kernels against their references, simulated on the host (csrc/simt): every case that a GPU takes.

The simulation runs the threads of a block in an order that a seed chooses, copies asynchronous data when somebody waits
for it and not before, and ends a barrier that not all reach in an error. It says nothing about speed.
"""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels.op import all_ops
from simplear_engine.kernels.quantization import QUANTIZED
from simplear_engine.testing.simt_trial import SimtTrial

OPS = all_ops()
SIMULATED = [name for name, impls in _C.cuda_op_impls().items() if "simt" in impls]


def cases(name):
    return [case for case in OPS[name].test_cases if case.dtypes.get("weight") not in QUANTIZED]


@pytest.fixture(scope="module")
def pool():
    return _C.ThreadPool(1)


@pytest.mark.parametrize(
    "name, case", [pytest.param(name, case, id=f"{name}-{case.id}") for name in SIMULATED for case in cases(name)]
)
def test_kernel_matches_reference(name, case, pool):
    trial = SimtTrial(OPS[name], case, pool)
    trial.run()
    trial.check()
