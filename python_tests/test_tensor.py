"""The engine's tensors: borrowed, not copied, and readable by everybody who speaks DLPack."""

import gc
import os

import numpy as np
import pytest

from simplear_engine import _C
from simplear_engine.dtypes import decode_bfloat16, encode_bfloat16
from simplear_engine.errors import CapacityError, InvalidRequestError


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "uint64", "uint8", "float16"])
def test_array_is_borrowed_both_ways(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    tensor = _C.Tensor.from_numpy(array)
    assert (tensor.shape, tensor.dtype, tensor.address) == ((3, 4), dtype, array.ctypes.data)
    array[1, 2] = 77
    view = tensor.numpy()
    del tensor, array
    gc.collect()
    assert view[1, 2] == 77 and view.dtype == dtype


def test_memory_outlives_the_lender():
    tensor = _C.Tensor.from_numpy(np.full(1 << 20, 3.0, np.float32))
    gc.collect()
    assert (tensor.numpy() == 3).all()


def test_read_only_memory_stays_read_only():
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    assert not _C.Tensor.from_numpy(array).numpy().flags.writeable


def test_bfloat16_travels_through_torch_without_a_copy():
    torch = pytest.importorskip("torch")
    source = torch.randn(5, 7).to(torch.bfloat16)
    tensor = _C.Tensor.from_dlpack(source)
    assert (tensor.dtype, tensor.address) == ("bfloat16", source.data_ptr())
    np.testing.assert_array_equal(decode_bfloat16(tensor.numpy()), source.float().numpy())
    back = torch.from_dlpack(tensor)
    back[2, 3] = 9.5
    assert source[2, 3] == 9.5 and back.dtype == torch.bfloat16


def test_numpy_reads_a_tensor_through_dlpack():
    tensor = _C.Tensor.zeros([2, 3], "float32")
    array = np.from_dlpack(tensor)
    tensor.numpy()[1, 1] = 4
    del tensor
    gc.collect()
    assert array[1, 1] == 4


def test_unused_capsule_lets_go_of_its_memory():
    tensor = _C.Tensor.zeros([4], "int32")
    tensor.__dlpack__()
    gc.collect()
    assert tensor.numpy().sum() == 0


def test_rows_are_a_view():
    tensor = _C.Tensor.from_numpy(np.arange(12, dtype=np.int32).reshape(4, 3))
    part = tensor.rows(1, 3)
    assert part.shape == (2, 3) and part.address == tensor.address + 12
    with pytest.raises(InvalidRequestError, match="rows: expected 0 <= begin <= end <= 4, got 3, 5"):
        tensor.rows(3, 5)


@pytest.mark.parametrize(
    "array, dtype, message",
    [
        (np.zeros((4, 4), np.float32).T[1:, :], None, "C-contiguous"),
        (np.zeros(3, np.float32), "bfloat16", "expected NumPy uint16, got float32"),
        (np.zeros(3, np.complex64), None, "dtype: expected float32"),
    ],
)
def test_unsuitable_array_is_refused_with_its_reason(array, dtype, message):
    with pytest.raises(InvalidRequestError, match=message):
        _C.Tensor.from_numpy(array, dtype)


def test_strided_torch_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidRequestError, match="contiguous"):
        _C.Tensor.from_dlpack(torch.zeros(4, 6)[:, ::2])


def test_object_without_dlpack_is_refused():
    with pytest.raises(InvalidRequestError, match="__dlpack__"):
        _C.Tensor.from_dlpack([1, 2, 3])


def test_capsule_that_somebody_has_taken_over_is_refused():
    class Lender:
        def __init__(self, array):
            self.capsule = array.__dlpack__()

        def __dlpack__(self, **how):
            return self.capsule

    lender = Lender(np.arange(6, dtype=np.float32))
    tensor = _C.Tensor.from_dlpack(lender)
    with pytest.raises(InvalidRequestError, match="a capsule that nobody has taken over yet, got .*used_dltensor"):
        _C.Tensor.from_dlpack(lender)
    assert tensor.numpy().sum() == 15
    lender.capsule = 5
    with pytest.raises(InvalidRequestError, match="expected __dlpack__ to give a capsule"):
        _C.Tensor.from_dlpack(lender)


def test_what_dlpack_cannot_say_is_not_lent():
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        np.from_dlpack(_C.Tensor.from_numpy(array))
    with pytest.raises(BufferError, match="int4"):
        _C.Tensor.zeros([4], "int4").__dlpack__()
    with pytest.raises(BufferError, match="copy=True"):
        _C.Tensor.zeros([4], "float32").__dlpack__(copy=True)
    with pytest.raises(BufferError, match="on cpu"):
        _C.Tensor.zeros([4], "float32").__dlpack__(dl_device=(2, 0))


@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [1 << 62], [(1 << 62) - 1]])
def test_impossible_shape_is_refused(shape):
    with pytest.raises(CapacityError, match="overflows|refused"):
        _C.Tensor.zeros(shape, "float32")


@pytest.mark.parametrize("isa", _C.available_isas())
def test_bfloat16_rounds_like_numpy(isa):
    """Kernels write bfloat16 through their own vector code; here a product with the identity."""
    from simplear_engine.kernels.packed_weight import pack_array
    from simplear_engine.kernels.op import all_ops

    pool = _C.ThreadPool(1)
    values = np.array([[1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-9, -(1 + 2**-8 + 2**-20), 3e38, 1e-30, 0, -0.0]], np.float32)
    y = _C.Tensor.zeros(values.shape, "bfloat16")
    weight = pack_array(np.eye(8, dtype=np.float32), "float32", pool)
    all_ops()["linear"].run(isa, pool, {"x": _C.Tensor.from_numpy(values), "weight": weight, "y": y})
    np.testing.assert_array_equal(decode_bfloat16(y.numpy()), decode_bfloat16(encode_bfloat16(values)))


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("megabytes", [0.0625, 0.7, 1, 3, 17])
def test_memory_is_zero_and_returns_to_the_system_while_neighbours_live(megabytes):
    count = int(96 / megabytes)
    before = resident_bytes()
    tensors = [_C.Tensor.zeros([int(megabytes * (1 << 20))], "uint8") for _ in range(count)]
    arrays = [tensor.numpy() for tensor in tensors]
    for array in arrays:
        assert not array.any()
        array[:] = 255
    assert resident_bytes() - before > 80 << 20
    survivor = arrays[count // 2]
    del tensors, arrays, array
    gc.collect()
    assert resident_bytes() - before < (8 << 20) + survivor.nbytes
    assert (survivor == 255).all()
    assert not _C.Tensor.zeros([survivor.nbytes], "uint8").numpy().any()
