"""A program whose ops run in Triton, started from Python: `_C.Program`'s interface for the Triton implementations.

For tests, measurements and picture decoding in a process that has torch; an engine's own loop replays compiled launches
without Python (triton_aot.py). Tensors are `_C.Tensor` in host memory. Under Triton's interpreter the kernels work on that
memory; on a GPU each tensor has a copy there, which is made when an op is added and brought back by `read_back`.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from simplear_engine import _C
from simplear_engine.errors import UnsupportedError
from simplear_engine.kernels.triton_launch import OPTIONS, Launch, launches_of


class TritonProgram:
    """Calls in order; `run` carries them out with the plan's counts of the moment."""

    def __init__(self):
        import torch
        import triton

        self._torch = torch
        self._device = "cpu" if triton.knobs.runtime.interpret else "cuda"
        self._calls: list[tuple[Any, dict[str, Any]]] = []
        self._views: dict[tuple, tuple[_C.Tensor, Any]] = {}  # of each tensor: itself, and torch's view or copy of it

    def add(self, op: str, impl: str, fields: dict[str, Any]) -> None:
        if impl != "triton":
            raise UnsupportedError(f"{op}: a TritonProgram runs the implementation triton, got {impl}")
        self._calls.append((launches_of(op), fields))
        for value in fields.values():
            if isinstance(value, _C.Tensor):
                self._native(value)

    def run(self, plan: _C.StepPlan | None = None, pool: Any = None) -> None:
        """`plan` gives the sizes that were bound to its counts; `pool` is not used."""
        for launches, fields in self._calls:
            sizes = {name: getattr(plan, value) for name, value in fields.items() if isinstance(value, str)}
            for launch in launches(SimpleNamespace(**{**fields, **sizes}), self._scratch):
                self._start(launch)

    def repeated(self, times: int) -> Callable[[], None]:
        """All calls, `times` over, in one CUDA graph: calling it launches that and waits. For measurements; `run` before."""
        if self._device == "cpu":
            raise UnsupportedError(
                "Triton interprets kernels here, which says nothing about their speed: that needs a GPU"
            )
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph):
            for _ in range(times):
                self.run()

        def replay() -> None:
            graph.replay()
            self._torch.cuda.synchronize()

        return replay

    def captured(self) -> Callable[[], None]:
        """What `run` does, as one CUDA graph where there is a GPU; `run` before."""
        return self.run if self._device == "cpu" else self.repeated(1)

    def write(self, tensor: _C.Tensor) -> None:
        """Lets the kernels see what the host has changed in `tensor`."""
        if self._device != "cpu":
            self._native(tensor).copy_(torch_view(tensor))

    def read_back(self, *tensors: _C.Tensor) -> None:
        """Lets the host see what the kernels wrote into these tensors, or into all."""
        if self._device != "cpu":
            for tensor in tensors or [tensor for tensor, _ in self._views.values()]:
                torch_view(tensor).copy_(self._native(tensor))

    def _start(self, launch: Launch) -> None:
        if 0 in launch.grid:
            return
        args = {name: self._native(arg) if isinstance(arg, _C.Tensor) else arg for name, arg in launch.args.items()}
        launch.kernel[launch.grid](
            **args, **launch.constants, num_warps=launch.num_warps, num_stages=launch.num_stages, **OPTIONS
        )

    def _native(self, tensor: _C.Tensor):
        key = (tensor.address, tensor.dtype, tuple(tensor.shape))
        if key not in self._views:
            self._views[key] = (tensor, torch_view(tensor).to(self._device))
        return self._views[key][1]

    def _scratch(self, shape: tuple[int, ...], dtype: str):
        memory = self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._device)
        if memory.is_floating_point() and self._device == "cpu":
            memory.fill_(float("nan"))
        return memory


def torch_view(tensor: _C.Tensor):
    """The same memory as a torch tensor."""
    import torch

    array = tensor.numpy()
    if tensor.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
