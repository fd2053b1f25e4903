"""The safetensors reader and writer: exact on good files, one typed error on all others."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simplear_engine.dtypes import STORAGE, decode_bfloat16, encode_bfloat16
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.safetensors_file import (
    StreamedTensor,
    read_safetensors,
    read_safetensors_shards,
    write_safetensors,
)

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_raw(path, header, data: bytes, header_bytes: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data)
    return path


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def good_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": FLOATS, "b": ("bfloat16", encode_bfloat16(FLOATS)), "c": np.int64([7])}, {"k": "v"})
    return path


# Good files


@pytest.mark.parametrize("dtype", sorted(STORAGE))
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 1, 3)])
def test_what_is_written_is_read_back(tmp_path, dtype, shape):
    values = np.random.default_rng(0).integers(0, 2, shape).astype(STORAGE[dtype])
    write_safetensors(tmp_path / "x.safetensors", {"t": (dtype, values)}, {"who": "tëst"})
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert (tensors["t"].dtype, tensors["t"].shape, metadata) == (dtype, shape, {"who": "tëst"})
    np.testing.assert_array_equal(tensors["t"].data, values)


def test_arrays_are_read_only_views_of_the_mapping(good_file):
    data = read_safetensors(good_file)[0]["a"].data
    assert not data.flags.writeable and not data.flags.owndata
    with pytest.raises(ValueError):
        data[0] = 1


def test_to_float32_widens_bfloat16_exactly_and_refuses_integers(good_file):
    tensors, _ = read_safetensors(good_file)
    np.testing.assert_array_equal(tensors["b"].to_float32(), FLOATS)
    assert tensors["a"].to_float32() is tensors["a"].data
    with pytest.raises(TypeError, match="int64"):
        tensors["c"].to_float32()


def test_every_tensor_is_aligned_for_its_dtype(tmp_path):
    tensors = {"a": np.uint8([1, 2, 3]), "b": np.float64([1.5]), "c": np.float16([2]), "d": np.int32([4])}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    for name, tensor in read_safetensors(tmp_path / "x.safetensors")[0].items():
        assert tensor.data.flags.aligned and not tensor.data.flags.owndata
        np.testing.assert_array_equal(tensor.data, tensors[name])


def test_misaligned_tensor_is_copied(tmp_path):
    header = {"t": entry()}
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)  # an odd length
    tensor = read_safetensors(write_raw(tmp_path / "x", text, FLOATS.tobytes()))[0]["t"]
    assert tensor.data.flags.aligned and not tensor.data.flags.writeable
    np.testing.assert_array_equal(tensor.data, FLOATS)


def test_zero_size_tensor_at_the_end_is_read(tmp_path):
    header = {"a": entry(), "b": entry(shape=(0, 3), offsets=(24, 24))}
    assert read_safetensors(write_raw(tmp_path / "x", header, bytes(24)))[0]["b"].shape == (0, 3)


def test_a_file_without_tensors_is_valid(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {})
    assert read_safetensors(tmp_path / "x.safetensors") == ({}, {})


def test_agrees_with_the_reference_library(tmp_path):
    import safetensors.numpy as library

    rng = np.random.default_rng(1)
    tensors = {f"t{i}": rng.standard_normal((i + 1, 3)).astype(dtype) for i, dtype in enumerate(["f2", "f4", "f8"])}
    library.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"a": "b"})
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"a": "b"})
    read, metadata = read_safetensors(tmp_path / "theirs.safetensors")
    assert metadata == {"a": "b"} and read.keys() == tensors.keys()
    theirs = library.load_file(tmp_path / "ours.safetensors")
    for name, values in tensors.items():
        np.testing.assert_array_equal(read[name].data, values)
        np.testing.assert_array_equal(theirs[name], values)


def test_streamed_tensor_may_come_in_pieces(tmp_path):
    pieces = StreamedTensor("float32", (2, 3), lambda: iter([FLOATS[0], FLOATS[1, :1], FLOATS[1, 1:]]))
    write_safetensors(tmp_path / "x.safetensors", {"t": pieces})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "x.safetensors")[0]["t"].data, FLOATS)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_rounds_to_the_nearest_even(values):
    values = np.float32(values)
    rounded = decode_bfloat16(encode_bfloat16(values))
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(values))
    bits = values.view(np.uint32).astype(np.int64)
    low, high = bits & ~0xFFFF, (bits & ~0xFFFF) + 0x10000
    nearest = np.where((bits & 0xFFFF) + ((bits >> 16) & 1) > 0x8000, high, low)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(rounded.view(np.uint32)[finite], nearest[finite])


# Writing


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"t": FLOATS})

    def broken():
        yield FLOATS[0]
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_safetensors(path, {"t": StreamedTensor("float32", (2, 3), broken)})
    np.testing.assert_array_equal(read_safetensors(path)[0]["t"].data, FLOATS)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_overwriting_a_mapped_file_leaves_the_mapping_intact(good_file):
    before = read_safetensors(good_file)[0]["a"].data
    write_safetensors(good_file, {"a": np.float32([9])})
    np.testing.assert_array_equal(before, FLOATS)


@pytest.mark.parametrize(
    "value",
    [("bfloat16", FLOATS), ("float8", FLOATS), StreamedTensor("float32", (7,), lambda: [FLOATS]), np.complex64([1])],
)
def test_data_that_contradict_their_dtype_or_shape_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="t: "):
        write_safetensors(tmp_path / "x.safetensors", {"t": value})
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidRequestError, match="nowhere does not exist"):
        write_safetensors(tmp_path / "nowhere" / "x.safetensors", {})


# Damaged and hostile files


def test_file_truncated_anywhere_is_refused(good_file, tmp_path):
    whole = good_file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut.safetensors"):
            read_safetensors(cut)


def test_appended_bytes_are_refused(good_file):
    good_file.write_bytes(good_file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="bytes that no tensor owns"):
        read_safetensors(good_file)


@pytest.mark.parametrize("length", [0, 7, 1 << 63, (1 << 64) - 1, 100_000_001, 99_999_999, 1000])
def test_wrong_header_length_is_refused(tmp_path, length):
    path = write_raw(tmp_path / "x", {"t": entry()}, FLOATS.tobytes(), header_bytes=length)
    with pytest.raises(CheckpointError, match="x"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\xff\xfe{}", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"t":NaN}', "NaN"),
        (b'{"a":1,"a":1}', "occurs twice"),
        (b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"t":' + b'{"t":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
        (b'{"t":' + b"1" * 10_000 + b"}", "not valid JSON"),
        ({"t": 3}, "dtype, shape and data_offsets"),
        ({"t": {"dtype": "F32", "shape": [2, 3]}}, "dtype, shape and data_offsets"),
        ({"t": entry(dtype="F8_E4M3")}, "F8_E4M3"),
        ({"t": entry(dtype="F4")}, "F4"),
        ({"t": entry(dtype=5)}, "dtype 5"),
        ({"t": entry(shape=(2, -3))}, "shape"),
        ({"t": entry(shape=(2.0, 3))}, "shape"),
        ({"t": entry(shape=(True, 6))}, "shape"),
        ({"t": entry(shape=(1,) * 40 + (6,))}, "shape"),
        ({"t": entry(shape=(2, 4))}, "needs 32 bytes"),
        ({"t": entry(shape=(1 << 32, 1 << 32))}, "too large"),
        ({"t": entry(shape=(1 << 62, 1 << 62, 0), offsets=(0, 0))}, "too large"),
        ({"t": entry(shape=(1 << 200,))}, "shape"),
        ({"t": entry(offsets=(24, 0))}, "data_offsets"),
        ({"t": entry(offsets=(-24, 0))}, "data_offsets"),
        ({"t": entry(offsets=(0, 12, 24))}, "data_offsets"),
        ({"t": entry(offsets=(0.0, 24))}, "data_offsets"),
        ({"t": entry(offsets=(1 << 40, (1 << 40) + 24))}, "hole"),
        ({"t": entry(offsets=(8, 32))}, "hole of 8 bytes"),
        ({"t": entry(), "u": entry(offsets=(12, 36))}, "overlaps"),
        ({"t": entry(), "u": entry()}, "overlaps"),
        ({"t": entry(), "u": entry(offsets=(24, 48))}, "truncated"),
        ({"t": entry(), "__metadata__": {"a": 1}}, "__metadata__"),
        ({"t": entry(), "__metadata__": "a"}, "__metadata__"),
    ],
)
def test_bad_header_is_refused_with_its_reason(tmp_path, header, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_safetensors(write_raw(tmp_path / "bad.safetensors", header, FLOATS.tobytes()))
    assert "bad.safetensors" in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(tmp_path, position, byte):
    path = tmp_path / "fuzzed.safetensors"
    write_safetensors(path, {"a": FLOATS, "b": np.uint8([1, 2])}, {"k": "v"})
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(data)
    try:
        tensors, _ = read_safetensors(path)
    except CheckpointError:
        return
    for tensor in tensors.values():
        tensor.data.sum()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path, garbage):
    path = tmp_path / "garbage"
    path.write_bytes(struct.pack("<Q", len(garbage)) + garbage)
    try:
        assert read_safetensors(path)[0] == {}
    except CheckpointError:
        pass


def test_things_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [("", "not a regular file"), ("pipe", "not a regular file"), ("absent", "cannot be read")]:
        with pytest.raises(CheckpointError, match=reason):
            read_safetensors(tmp_path / name)


def test_huge_sparse_file_is_refused_at_once(tmp_path):
    path = write_raw(tmp_path / "sparse", {"t": entry()}, b"")
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match="no tensor owns"):
        read_safetensors(path)


# Shards


@pytest.fixture
def sharded(tmp_path):
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": FLOATS})
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"b": FLOATS + 1})
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return write_index(tmp_path, weight_map), weight_map


def write_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_shards_are_read_as_one(sharded):
    tensors = read_safetensors_shards(sharded[0])
    np.testing.assert_array_equal(tensors["b"].data, FLOATS + 1)
    assert sorted(tensors) == ["a", "b"]


def test_missing_shard_is_named(sharded, tmp_path):
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing: model-00002-of-00002"):
        read_safetensors_shards(sharded[0])


def test_shard_that_the_index_does_not_name_is_refused(sharded, tmp_path):
    write_safetensors(tmp_path / "model-00003-of-00003.safetensors", {"z": FLOATS})
    with pytest.raises(CheckpointError, match="not in the index: model-00003"):
        read_safetensors_shards(sharded[0])


def test_tensor_in_two_shards_is_refused(sharded, tmp_path):
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"a": FLOATS, "b": FLOATS})
    with pytest.raises(CheckpointError, match="'a', which model.safetensors.index.json puts in model-00001"):
        read_safetensors_shards(sharded[0])


def test_tensor_absent_from_its_shard_is_named(sharded, tmp_path):
    index = write_index(tmp_path, {**sharded[1], "ghost": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match="ghost"):
        read_safetensors_shards(index)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "x.bin", "a\0.safetensors", 5, None],
)
def test_shard_name_that_is_not_a_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="plain name"):
        read_safetensors_shards(write_index(tmp_path, {"a": name}))


@pytest.mark.parametrize(
    "name", ["loop.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"], ids=["loop", "surrogate", "long"]
)
def test_shard_that_cannot_be_a_file_is_named(tmp_path, name):
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_safetensors_shards(write_index(tmp_path, {"a": name}))
    assert ascii(name)[1:-1] in ascii(str(caught.value))


def test_shard_that_links_out_of_the_folder_is_refused(tmp_path):
    outside, folder = tmp_path / "outside.safetensors", tmp_path / "model"
    folder.mkdir()
    write_safetensors(outside, {"a": FLOATS})
    (folder / "x.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="leaves the folder"):
        read_safetensors_shards(write_index(folder, {"a": "x.safetensors"}))


def test_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_safetensors(blobs / "0123", {"a": FLOATS})
    (snapshot / "x.safetensors").symlink_to("../../blobs/0123")
    assert "a" in read_safetensors_shards(write_index(snapshot, {"a": "x.safetensors"}))


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_weight_map_is_refused(tmp_path, weight_map):
    with pytest.raises(CheckpointError, match="weight_map"):
        read_safetensors_shards(write_index(tmp_path, weight_map))
