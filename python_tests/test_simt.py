"""The simulation of CUDA kernels finds what is wrong with a kernel: simt_faults.cc has one kernel for each mistake."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CXX = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

pytestmark = pytest.mark.skipif(
    CXX is None or not (ROOT / "csrc").is_dir(), reason="needs a compiler and the source tree"
)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    program = tmp_path_factory.mktemp("simt") / "faults"
    sources = [ROOT / "python_tests/simt_faults.cc", *sorted((ROOT / "csrc/simt").glob("[fg]*.cc"))]
    subprocess.run(
        [CXX, "-std=gnu++20", "-O1", "-g", "-fsanitize=address", "-Wno-unknown-pragmas", f"-I{ROOT}/csrc", f"-I{ROOT}",
         *map(str, sources), "-o", str(program)],
        check=True,
    )  # fmt: skip
    return program


def run(faults, kernel):
    # A kernel that is given up leaves behind what stood on the stacks of its threads.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([faults, kernel], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "kernel, finding",
    [
        ("reverse", "right"),
        (
            "barrier_that_not_all_reach",
            r"kernel barrier_that_not_all_reach, block \(0, 0, 0\), thread 1: waits at the barrier in simt_faults.cc:\d+ "
            r"for threads that never come \(63 of 64 wait, 1 have returned\)",
        ),
        ("different_barriers", r"thread 32: waits at the barrier in .* while thread 0 waits at the one in"),
        ("shuffle_that_not_all_reach", r"waits at the warp operation in .* \(31 of 32 wait, 2 have returned\)"),
        ("write_behind_shared_memory", "wrote behind its 256 bytes of shared memory"),
        (
            "one_thread_does_not_wait_for_the_previous_kernel",
            "thread 40: returned without having waited for the previous kernel",
        ),
        ("missing_barrier", "wrong numbers"),
        ("copy_without_wait", "wrong numbers"),
    ],
)
def test_mistake_is_found(faults, kernel, finding):
    ended = run(faults, kernel)
    assert re.search(finding, ended.stdout), ended.stdout + ended.stderr


def test_address_sanitizer_sees_what_a_kernel_does(faults):
    ended = run(faults, "write_behind_an_array")
    assert ended.returncode != 0
    assert "heap-buffer-overflow" in ended.stderr
    assert "write_behind_an_array" in ended.stderr
