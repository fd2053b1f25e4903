"""What `make cuda-check` reports of a kernel, and that it stops at a spill."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not (ROOT / ".ci/cuda-check").exists(), reason="needs the source tree")

# Sixty-four numbers that are all needed at the end, and room for a few.
SPILLING = """
__global__ void __launch_bounds__(1024, 2) spilling(float* x) {
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = held[i] * held[63 - i] + held[(i + 7) % 64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = held[i];
}
"""


def check(source, **environment):
    return subprocess.run(
        ["bash", str(ROOT / ".ci/cuda-check"), str(source)], capture_output=True, text=True, timeout=600,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_every_kernel_of_a_file_is_listed_for_both_architectures():
    ended = check("kernels/embed/embed.cu")
    assert ended.returncode == 0, ended.stdout
    for arch in ("sm_80", "sm_90a"):
        for kernel in ("embed_tokens<float>", "embed_tokens<unsigned short>"):
            assert any(
                line.startswith(f"compiled {arch}") and kernel in line and "0 spilled" in line
                for line in ended.stdout.splitlines()
            ), ended.stdout


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_spilled_registers_fail(tmp_path):
    (tmp_path / "spilling.cu").write_text(SPILLING)
    ended = check(tmp_path / "spilling.cu")
    assert ended.returncode == 1
    assert "FAILED   sm_90a spilling" in ended.stdout


def test_missing_compiler_is_not_taken_for_success_of_anything(tmp_path):
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("the script would find this nvcc")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    ended = check("kernels/embed/embed.cu", PATH=str(tools), CUDACXX="")
    assert ended.returncode == 0
    assert "no nvcc found" in ended.stdout
    assert "1 files were NOT compiled" in ended.stdout
