"""Fixtures that several test files share, and the rule that no test reaches for the network."""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests are of the CPU wherever they run, but for those that ask for a GPU and say so (benchmarks/gpu.sh).
if "SIMPLEAR_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402

from simplear_engine.testing import triton_interpreter  # noqa: E402

# Before anything imports Triton, which decides then whether it compiles.
triton_interpreter.choose()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A folder as SimpleAR publishes them, two layers small, with a random image tokenizer. Nobody may write to it."""
    from simplear_engine.testing.random_checkpoint import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("tiny"), dtype="float32", image_tokenizer=True)


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint):
    """An engine on `tiny_checkpoint` that nobody may close."""
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        yield engine


@pytest.fixture
def quick_bench(monkeypatch):
    """Benchmarks that go through all their motions and measure next to nothing."""
    from simplear_engine.bench import machine, ops, own_kernel, step

    for module in (machine, ops, step):
        monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(machine, "READ_VALUES", 1 << 12)
    monkeypatch.setattr(machine, "GEMM_ROWS", 3)
    monkeypatch.setattr(machine, "GEMM_WEIGHTS", 896 * 896)
    monkeypatch.setattr(machine, "CONVOLUTION_FLOPS", 0)
    monkeypatch.setattr(machine, "BARRIERS", 10)
    monkeypatch.setattr(ops, "ROUNDS", 2)
    monkeypatch.setattr(own_kernel, "TURNS", 2)


@pytest.fixture
def one_thread():
    """torch on one thread: where a sum is cut among threads it rounds differently, so runs that must be equal use one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
