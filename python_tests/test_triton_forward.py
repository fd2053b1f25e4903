"""Whole steps on the Triton ops: the one recording of the forward pass, under plans of a real scheduler, beside the CPU's."""

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.backend import ACTIVATION_DTYPES, CACHE_DTYPES, CpuBackend
from simplear_engine.config import ModelConfig
from simplear_engine.forward import Activations, forward, make_cache
from simplear_engine.kernels.weight_tiles import pack_tiles
from simplear_engine.model_weights import ModelWeights
from simplear_engine.testing import triton_interpreter
from simplear_engine.weights import weight_specs

pytest.importorskip("triton")
triton_interpreter.mend()

from simplear_engine.triton_program import TritonProgram  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

CONFIG = ModelConfig(
    hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, vocab_size=120, tie_word_embeddings=False, max_position_embeddings=96, visual_offset=60,
)  # fmt: skip


class TritonBackend(CpuBackend):
    """Triton's implementations on memory of the host."""

    def implementation(self, op):
        return "triton"

    def pack(self, *arguments):
        parts, dtype, interleaved = arguments[-3:]
        matrices = [part.numpy() for part in parts]
        return pack_tiles(matrices if interleaved else [np.concatenate(matrices)], dtype)


class Side:
    def __init__(self, backend, program, tensors, dtype):
        self.program, self.backend = program, backend
        self.plan = _C.StepPlan(max_tokens=9, max_pairs=2, max_logit_rows=8, max_draws=4, max_blocks_per_seq=6)
        self.activations = Activations(CONFIG, self.plan, ACTIVATION_DTYPES[dtype], backend)
        weights, cache = ModelWeights(CONFIG, tensors, dtype, backend), make_cache(CONFIG, 12, CACHE_DTYPES[dtype])
        forward(backend.recorder(program), weights, self.plan, cache, self.activations)
        self.scheduler = _C.Scheduler(
            plan=self.plan, num_blocks=12, block_size=16, max_queue=4, max_positions=96, num_codes=60, visual_offset=60
        )
        for seed, (prompt, negative) in enumerate([([1, 2, 3] * 6, [5] * 12), ([9, 8], [])]):
            request = _C.Request()
            request.prompt, request.negative, request.num_image_tokens, request.seed = prompt, negative, 9, seed
            request.guidance_scale, request.top_k, request.draft_window = 2.5, 55 + 5 * seed, 1 + seed
            self.scheduler.enqueue(request)

    def step(self):
        """Codes and log-probabilities that a step drew."""
        assert self.scheduler.next(self.plan)
        self.program.run(self.plan, self.backend.pool)
        if isinstance(self.program, TritonProgram):
            self.program.read_back()
        draws = self.plan.num_draws
        drawn = self.plan.token.numpy()[:draws].copy(), self.plan.log_prob.numpy()[:draws].copy()
        self.scheduler.commit(self.plan, self.activations.logits.storage)
        return drawn


@pytest.mark.skipif(not triton_interpreter.is_interpreting(), reason="the plan is changed by the host between steps")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.02)])
def test_steps_draw_what_the_cpu_draws(dtype, tolerance):
    """Prompts in chunks, guidance, a window of drafts and top-k in one batch."""
    rng = np.random.default_rng(0)
    tensors = {
        name: _C.Tensor.from_numpy((1 + 0.2 * rng.standard_normal(spec.shape)).astype(np.float32)
                                   if "norm" in name else (rng.standard_normal(spec.shape) * 0.25).astype(np.float32))
        for name, spec in weight_specs(CONFIG).items()
    }  # fmt: skip
    cpu, triton = (
        Side(CpuBackend(1), _C.Program(), tensors, dtype),
        Side(TritonBackend(1), TritonProgram(), tensors, dtype),
    )
    draws = 0
    for _ in range(6):
        (want, want_log_prob), (got, got_log_prob) = cpu.step(), triton.step()
        np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(got_log_prob, want_log_prob, atol=tolerance)
        draws += len(got)
    assert draws > 5
