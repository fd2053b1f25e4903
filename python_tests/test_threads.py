"""How many threads an engine takes, and that they cost nothing while there is nothing to do."""

import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from simplear_engine import _C


class Machine:
    """A folder that looks like / to whoever asks how many cores there are."""

    def __init__(self, root):
        self.root = root

    def write(self, path: str, text: str) -> "Machine":
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def cores(self, *siblings: str) -> "Machine":
        """One line of thread_siblings_list for each processor, in order."""
        for cpu, line in enumerate(siblings):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", line + "\n")
        self.processors = list(range(len(siblings)))
        return self

    def cgroup2(self, group: str, mounted_root: str = "/", mount: str = "/sys/fs/cgroup") -> "Machine":
        self.write("proc/self/cgroup", f"0::{group}\n")
        return self.write(
            "proc/self/mountinfo", f"30 23 0:26 {mounted_root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
        )

    def threads(self, processors: list[int] | None = None) -> int:
        return _C.default_num_threads(str(self.root), processors or self.processors)


@pytest.fixture
def eight_cores(tmp_path):
    return Machine(tmp_path).cores(*map(str, range(8)))


def test_two_hardware_threads_of_one_core_count_once(tmp_path):
    assert Machine(tmp_path).cores("0,2", "1,3", "0,2", "1,3").threads() == 2


def test_processors_outside_the_affinity_mask_do_not_count(tmp_path):
    machine = Machine(tmp_path).cores("0-1", "0-1", "2-3", "2-3", "4-5", "4-5")
    assert machine.threads([0, 1]) == 1
    assert machine.threads([1, 2, 3]) == 2


def test_a_machine_without_sysfs_has_as_many_cores_as_processors(tmp_path):
    assert Machine(tmp_path).threads([0, 1, 5]) == 3


def test_without_limits_every_core_counts(eight_cores):
    assert eight_cores.threads() == 8
    assert eight_cores.cgroup2("/").write("sys/fs/cgroup/cpu.max", "max 100000\n").threads() == 8


def test_quota_of_the_own_group_counts_and_not_only_that_of_the_root(eight_cores):
    eight_cores.cgroup2("/user.slice/work").write("sys/fs/cgroup/user.slice/work/cpu.max", "300000 100000\n")
    assert eight_cores.threads() == 3


def test_smallest_quota_on_the_way_to_the_root_counts(eight_cores):
    eight_cores.cgroup2("/pod/a/b").write("sys/fs/cgroup/pod/a/b/cpu.max", "600000 100000\n")
    eight_cores.write("sys/fs/cgroup/pod/cpu.max", "100000 50000\n").write(
        "sys/fs/cgroup/pod/a/cpu.max", "max 100000\n"
    )
    assert eight_cores.threads() == 2


def test_part_of_a_core_is_worth_a_thread(eight_cores):
    eight_cores.cgroup2("/").write("sys/fs/cgroup/cpu.max", "250000 100000\n")
    assert eight_cores.threads() == 3
    assert eight_cores.write("sys/fs/cgroup/cpu.max", "10000 100000\n").threads() == 1


def test_a_container_finds_its_group_at_the_mounts_root(eight_cores):
    eight_cores.cgroup2("/docker/abc", mounted_root="/docker/abc").write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert eight_cores.threads() == 2


def test_a_group_outside_of_what_is_mounted_is_not_looked_for(eight_cores):
    eight_cores.cgroup2("/../other").write("sys/fs/cgroup/cpu.max", "500000 100000\n")
    eight_cores.write("sys/fs/other/cpu.max", "100000 100000\n")
    assert eight_cores.threads() == 5


def test_a_group_whose_name_begins_like_the_mounts_root_is_another(eight_cores):
    eight_cores.cgroup2("/lxc/web-1", mounted_root="/lxc/web").write("sys/fs/cgroup/cpu.max", "300000 100000\n")
    assert eight_cores.threads() == 3


def test_version_1_quota_counts(eight_cores):
    eight_cores.write("proc/self/cgroup", "9:name=systemd:/\n4:cpuset:/x\n3:cpu,cpuacct:/batch/job\n0::/\n")
    eight_cores.write(
        "proc/self/mountinfo",
        "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
    )
    folder = "sys/fs/cgroup/cpu,cpuacct/batch"
    eight_cores.write(f"{folder}/cpu.cfs_quota_us", "400000\n").write(f"{folder}/cpu.cfs_period_us", "100000\n")
    assert eight_cores.threads() == 4
    eight_cores.write(f"{folder}/job/cpu.cfs_quota_us", "-1\n").write(f"{folder}/job/cpu.cfs_period_us", "100000\n")
    assert eight_cores.threads() == 4


def test_files_that_hold_nonsense_limit_nothing(eight_cores):
    eight_cores.cgroup2("/").write("sys/fs/cgroup/cpu.max", "many\n")
    assert eight_cores.threads() == 8
    assert eight_cores.write("proc/self/mountinfo", "\n- cgroup2\n1 2 3\n").threads() == 8


def test_this_process_gets_at_least_one_thread():
    assert _C.default_num_threads() >= 1


def test_threads_that_the_system_refuses_are_an_error_and_no_end_of_the_process():
    code = textwrap.dedent("""
        import resource
        from simplear_engine import CapacityError, _C

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)
        try:
            _C.ThreadPool(1024)
        except CapacityError as error:
            print(error)
    """)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "threads: the system refuses to start 1024" in found.stdout, found.stderr


def test_threads_of_an_idle_engine_use_no_processor_time(tiny_checkpoint):
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=4) as engine:
        engine.generate("x", seed=1)[0].pixels  # noqa: B018  both pools have worked
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        used = time.process_time() - before
    # One thread that spins would have used 0.5 s; what else lives in this process may use a little.
    assert used < 0.3


def test_waiting_for_a_request_uses_no_processor_time(tiny_checkpoint):
    """Whoever waits leaves the cores to the engine, and to torch in a process that also trains."""
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=1) as engine:
        with engine._core.pause(weights_change=False):
            request = engine._request(_prompt(), 1, _greedy(engine))
            engine._core.submit(request)
            before = time.process_time()
            assert not request.wait(0.5)
            assert time.process_time() - before < 0.3
        assert request.wait(60.0)
        assert np.all(request.codes >= 0)


def _prompt():
    from simplear_engine.engine import _Prompt

    return _Prompt([1, 2, 3], [1, 2])


def _greedy(engine):
    return engine._check(
        height=64, width=64, num_images=1, guidance_scale=None, temperature=0.0, top_k=None, top_p=1.0, seed=1,
        speculation=None, draft_window=None,
    )  # fmt: skip


def _long_request(engine, seed: int):
    """A picture of 1,024 codes, submitted."""
    sampling = engine._check(
        height=512, width=512, num_images=1, guidance_scale=None, temperature=1.0, top_k=None, top_p=1.0, seed=seed,
        speculation=None, draft_window=None,
    )  # fmt: skip
    request = engine._request(_prompt(), seed, sampling)
    engine._core.submit(request)
    return request


def test_steps_go_on_while_a_large_picture_is_decoded(tiny_checkpoint):
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=2) as engine:
        codes = np.zeros((32, 32), np.int32)
        engine._pixels.start(codes, {}).result()
        request = _long_request(engine, 1)
        while request.num_done == 0:
            assert not request.wait(0.001)
        before = request.num_done
        engine._pixels.start(codes, {}).result()
        # A step fits between any two ops, and the network has dozens.
        assert request.num_done >= before + 10
        engine._core.cancel(request)
        assert request.wait(60.0)


def test_pixels_do_not_wait_until_nobody_draws(tiny_checkpoint):
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=2) as engine:
        codes = np.zeros((2, 2), np.int32)
        engine._pixels.start(codes, {}).result()
        request = _long_request(engine, 1)
        while request.num_done == 0:
            assert not request.wait(0.001)
        engine._pixels.start(codes, {}).result()
        assert request.num_done < request.num_image_tokens
        engine._core.cancel(request)
        assert request.wait(60.0)


def test_picture_drawn_beside_pixels_is_the_picture_drawn_alone(tiny_checkpoint):
    from simplear_engine import Engine

    with Engine.from_pretrained(tiny_checkpoint, threads=2) as engine:
        alone = _long_request(engine, 7)
        assert alone.wait(120.0)
        beside = _long_request(engine, 7)
        codes = np.arange(32 * 32, dtype=np.int32).reshape(32, 32) % engine.model.num_codes
        pixels = [engine._pixels.start(codes, {}).result() for _ in range(3)]
        assert beside.wait(120.0)
    np.testing.assert_array_equal(beside.codes, alone.codes)
    np.testing.assert_array_equal(pixels[0], pixels[2])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("grain", [1, 7, 1000])
def test_shared_items_are_done_once_each_in_whatever_order_threads_ask(threads, grain):
    pool = _C.ThreadPool(threads)
    for items in [0, 1, 2, threads, 10, 97, 4096]:
        for _ in range(20):
            done_by = pool.share_out(items=items, grain=grain)
            assert len(done_by) == items and all(0 <= thread < threads for thread in done_by)


@pytest.mark.parametrize("slow", [0, 1, 3])
def test_a_slow_thread_is_relieved_of_most_of_its_part(slow):
    done_by = np.array(_C.ThreadPool(4).share_out(items=800, grain=1, slow=slow, seconds=0.005))
    own = np.arange(slow * 200, slow * 200 + 200)
    assert (done_by == slow).sum() <= 110  # half its part is what it takes at first, which lasts half a second
    assert done_by[own[0]] == slow and done_by[own[-1]] != slow  # it goes on from the front, others from the end
