"""Reading tokenizers from files: the published layout, and everything that can be wrong with one."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jit_writer
import numpy as np
import pytest

from simplear_engine import dtypes
from simplear_engine.errors import CheckpointError
from simplear_engine.image import CosmosTokenizer, fsq
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.jit_file import read_jit
from simplear_engine.safetensors_file import read_safetensors, write_safetensors

MINI = Path(__file__).parent / "data" / "cosmos_dv_mini.safetensors"
OPTIONAL = ["encoder.down.1.downsample.conv2.conv3d", "decoder.up.2.upsample.conv1.conv3d"]


@pytest.fixture(scope="module")
def mini():
    return read_safetensors(MINI)


def half_of(tensors, decoder: bool, dtype="float32"):
    """Tensors of one published file: learned ones without the unused convolutions, and its constants."""
    keep = ("decoder.", "post_quant_conv.") if decoder else ("encoder.", "quant_conv.")
    half = {
        name: (dtype, dtypes.from_float32(t.to_float32(), dtype))
        for name, t in tensors.items()
        if name.startswith(keep) and not name.startswith(tuple(OPTIONAL))
    }
    patcher, quantizer = (
        ("decoder.unpatcher3d.", "inv_quant.quantizer.") if decoder else ("encoder.patcher3d.", "quantizer.")
    )
    levels = (8, 8, 8, 5, 5, 5)
    half[patcher + "wavelets"] = ("float32", np.full(2, 0.70710678, np.float32))
    half[patcher + "_arange"] = ("int64", np.arange(2))
    half[quantizer + "_levels"] = ("int32", np.array(levels, np.int32))
    half[quantizer + "_basis"] = ("int32", fsq.basis(levels).astype(np.int32))
    half[quantizer + "implicit_codebook"] = (dtype, dtypes.from_float32(fsq.decode(np.arange(64000), levels), dtype))
    return half


def write_folder(folder: Path, tensors, dtype="float32"):
    jit_writer.write_jit(folder / "encoder.jit", half_of(tensors, False, dtype), root="any_name")
    jit_writer.write_jit(folder / "decoder.jit", half_of(tensors, True, dtype), root="decoder")
    return folder


def assert_same_network(a: CosmosTokenizer, b: CosmosTokenizer):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, a.num_codes, (1, 2, 3))
    image = a.decode(indices)
    np.testing.assert_array_equal(b.decode(indices), image)
    np.testing.assert_array_equal(b.encode(image), a.encode(image))


def test_jit_folder_equals_safetensors(tmp_path, mini):
    t = CosmosTokenizer.from_pretrained(write_folder(tmp_path, mini[0]))
    assert t.config == TokenizerConfig.from_json(mini[1]["config"], "mini")
    assert_same_network(t, CosmosTokenizer.from_pretrained(MINI))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_jit_equals_half_precision_safetensors(tmp_path, mini, dtype):
    tensors = {name: (dtype, dtypes.from_float32(t.to_float32(), dtype)) for name, t in mini[0].items()}
    write_safetensors(tmp_path / "x.safetensors", tensors, mini[1])
    t = CosmosTokenizer.from_pretrained(write_folder(tmp_path, mini[0], dtype))
    assert_same_network(t, CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_of_the_real_writer_equals_safetensors(tmp_path, mini):
    torch = pytest.importorskip("torch")

    class Node(torch.nn.Module):
        def forward(self, x):
            return x

    for file, decoder in (("encoder.jit", False), ("decoder.jit", True)):
        root = Node()
        for name, (_, array) in half_of(mini[0], decoder).items():
            node = root
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in node._modules:
                    node.add_module(parent, Node())
                node = node._modules[parent]
            node.register_buffer(leaf, torch.from_numpy(array.copy()))
        torch.jit.trace(root, torch.zeros(1)).save(str(tmp_path / file))
    assert_same_network(CosmosTokenizer.from_pretrained(tmp_path), CosmosTokenizer.from_pretrained(MINI))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_transposed_and_offset_tensors_of_a_jit_are_read_right(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Conv2d(5, 6, 3).to(memory_format=torch.channels_last)
    module.register_buffer("slice", torch.arange(20.0).reshape(4, 5)[1:3, 2:])
    torch.jit.trace(module, torch.zeros(1, 5, 4, 4)).save(str(tmp_path / "x.jit"))
    tensors = read_jit(tmp_path / "x.jit")
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(tensors[name].to_float32(), expected.numpy())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_attributes_that_are_no_tensors_are_passed_over(tmp_path):
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ints, self.floats, self.tensors = [1, 2], [0.5], [torch.zeros(2)]
            self.table, self.pair, self.text, self.big, self.nothing = {"a": 1}, (1, "b"), "c", 1 << 40, None
            self.weight = torch.nn.Parameter(torch.ones(2, 3))

        def forward(self, x):
            x = x + self.ints[0] + self.floats[0] + self.tensors[0].sum() + self.table["a"] + self.pair[0]
            return x + len(self.text) + self.big + self.weight.sum()

    torch.jit.script(Module()).save(str(tmp_path / "x.jit"))
    assert list(read_jit(tmp_path / "x.jit")) == ["weight"]


def test_decoder_jit_alone_is_enough_to_decode(tmp_path, mini):
    jit_writer.write_jit(tmp_path / "decoder.jit", half_of(mini[0], True))
    indices = np.arange(6).reshape(1, 2, 3)
    expected = CosmosTokenizer.from_pretrained(MINI).decode(indices)
    for path in (tmp_path, tmp_path / "decoder.jit"):
        np.testing.assert_array_equal(CosmosTokenizer.from_pretrained(path).decode(indices), expected)


def test_unused_convolutions_may_be_absent_or_present(tmp_path, mini):
    tensors = {name: t for name, t in mini[0].items() if not name.startswith(tuple(OPTIONAL))}
    assert len(tensors) == len(mini[0]) - 4
    write_safetensors(tmp_path / "x.safetensors", tensors, mini[1])
    assert_same_network(
        CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors"), CosmosTokenizer.from_pretrained(MINI)
    )


def test_all_wrong_tensors_are_listed_at_once(tmp_path, mini):
    tensors = dict(mini[0])
    del tensors["decoder.norm_out.norm.bias"], tensors["quant_conv.conv3d.weight"]
    tensors["encoder.extra.weight"] = np.zeros(3, np.float32)
    tensors["decoder.conv_in.0.conv3d.bias"] = np.zeros(7, np.float32)
    tensors["encoder.conv_in.0.conv3d.bias"] = np.zeros(8, np.int32)
    write_safetensors(tmp_path / "x.safetensors", tensors, mini[1])
    with pytest.raises(CheckpointError) as error:
        CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors")
    for part in (
        "x.safetensors",
        "5 faults",
        "missing decoder.norm_out.norm.bias [16]",
        "missing quant_conv.conv3d.weight",
        "unknown tensor encoder.extra.weight [3]",
        "decoder.conv_in.0.conv3d.bias: expected [32], got [7]",
        "encoder.conv_in.0.conv3d.bias: expected floating numbers, got int32",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, mini, dtype, value):
    tensors = dict(mini[0])
    for name in ("encoder.mid.block_1.norm1.norm.weight", "decoder.conv_out.1.conv3d.bias"):
        data = tensors[name].to_float32().copy()
        data[3] = value
        tensors[name] = (dtype, dtypes.from_float32(data, dtype))
    write_safetensors(tmp_path / "x.safetensors", tensors, mini[1])
    with pytest.raises(
        CheckpointError, match="x.safetensors.*not finite.*decoder.conv_out.1.*encoder.mid.block_1.norm1"
    ):
        CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"name": "XX"}, "name: expected DV or DI"),
        ({"channels": 0}, "channels: expected a whole number"),
        ({"channels": 10**9}, "channels: expected a whole number"),
        ({"num_res_blocks": 10**9}, "num_res_blocks"),
        ({"channels_mult": []}, "channels_mult"),
        ({"channels_mult": [1] * 1000}, "channels_mult"),
        ({"patch_size": 3}, "power of two"),
        ({"spatial_compression": 64}, "needs 4 resamplings"),
        ({"levels": [8, 8]}, "embedding_dim = 6"),
        ({"levels": [65536] * 6}, "codes"),
        ({"z_channels": True}, "z_channels"),
        ({"patch_method": "rearrange"}, "patch_method"),
        ({"attn_resolutions": [128]}, "attn_resolutions"),
        ({"legacy_mode": True}, "legacy_mode"),
        ({"name": "DI", "num_groups": 3}, "does not divide"),
        ({"temporal_compression": 1}, "temporal_compression"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, mini, changes, text):
    config = json.dumps(json.loads(mini[1]["config"]) | changes)
    write_safetensors(tmp_path / "x.safetensors", {}, {"config": config})
    with pytest.raises(CheckpointError, match=text) as error:
        CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(error.value)


def test_safetensors_without_or_with_a_broken_configuration(tmp_path, mini):
    for metadata, text in (({}, "no key `config`"), ({"config": "{"}, "not valid JSON"), ({"config": "[]"}, "object")):
        write_safetensors(tmp_path / "x.safetensors", mini[0], metadata)
        with pytest.raises(CheckpointError, match=text):
            CosmosTokenizer.from_pretrained(tmp_path / "x.safetensors")


def test_absent_paths_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "dir.jit").mkdir()
    for path, text in (
        (tmp_path / "no", "no such"),
        ("", "no such"),
        (tmp_path, "neither"),
        (tmp_path / "x.bin", "expected a folder"),
        (tmp_path / "dir.jit", "neither"),
    ):
        with pytest.raises(CheckpointError, match=text):
            CosmosTokenizer.from_pretrained(path)


def test_jit_without_a_tokenizer_in_it_is_refused(tmp_path):
    jit_writer.write_jit(tmp_path / "decoder.jit", {"fc.weight": ("float32", np.zeros((2, 2), np.float32))})
    with pytest.raises(CheckpointError, match="cannot be deduced"):
        CosmosTokenizer.from_pretrained(tmp_path)


def test_jit_with_a_foreign_codebook_is_refused(tmp_path, mini):
    half = half_of(mini[0], True)
    half["inv_quant.quantizer.implicit_codebook"] = ("float32", np.zeros((64000, 6), np.float32))
    jit_writer.write_jit(tmp_path / "decoder.jit", half)
    with pytest.raises(CheckpointError, match="implicit_codebook"):
        CosmosTokenizer.from_pretrained(tmp_path)


ONE = {"a.weight": ("float32", np.arange(6, dtype=np.float32).reshape(2, 3))}


def test_hostile_pickle_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    for pickle_bytes in (
        jit_writer.evil_pickle(f"touch {marker}"),
        b"\x80\x02cbuiltins\neval\n(" + jit_writer.text(f"open({str(marker)!r}, 'w')") + b"tR.",
        b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
    ):
        jit_writer.write_jit(tmp_path / "decoder.jit", ONE, pickle_bytes=pickle_bytes)
        with pytest.raises(CheckpointError, match="decoder.jit: data.pkl: .*(global|opcode)"):
            CosmosTokenizer.from_pretrained(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "code, text",
    [
        (jit_writer.tensor_code("0", "float32", (2, 4)), "elements|bytes"),
        (jit_writer.tensor_code("9", "float32", (2, 3)), "not in the archive"),
        (jit_writer.tensor_code("0", "float32", (2, 3), elements=60), "24 bytes"),
        (jit_writer.tensor_code("0", "float32", (2, 3), strides=(30, 1), elements=6), "reaches past"),
        (jit_writer.tensor_code("0", "float32", (2, 3), offset=1, elements=6), "reaches past"),
        (jit_writer.tensor_code("0", "float32", (1 << 40, 1), strides=(0, 0), elements=6), "more elements"),
        (jit_writer.tensor_code("0", "float32", (-1, -6), elements=6), "described wrongly"),
        (jit_writer.tensor_code("../0", "float32", (2, 3), elements=6), "described wrongly"),
    ],
)
def test_lying_tensor_descriptions_are_refused(tmp_path, code, text):
    body = b"\x80\x02c__torch__.M\nM\n)\x81}" + jit_writer.text("a") + code + b"sb."
    jit_writer.write_jit(tmp_path / "x.jit", ONE, pickle_bytes=body)
    with pytest.raises(CheckpointError, match=text):
        read_jit(tmp_path / "x.jit")


def test_module_that_contains_itself_ends_in_an_error(tmp_path):
    body = b"\x80\x02c__torch__.M\nM\n)\x81q\x00}" + jit_writer.text("a") + b"h\x00sb."
    jit_writer.write_jit(tmp_path / "x.jit", ONE, pickle_bytes=body)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_jit(tmp_path / "x.jit")


def test_a_long_name_shared_by_many_modules_costs_no_memory(tmp_path):
    name = jit_writer.text("x" * 100_000) + b"q\x01"
    items = b"".join(jit_writer.text(f"m{i}") + b"c__torch__.M\nM\n)\x81}h\x01h\x02sb" for i in range(1000))
    tensor = jit_writer.tensor_code("0", "float32", (2, 3)) + b"q\x02"
    body = b"\x80\x02c__torch__.M\nM\n)\x81}(" + name + tensor + items + b"ub."
    jit_writer.write_jit(tmp_path / "x.jit", ONE, pickle_bytes=body)
    with pytest.raises(CheckpointError, match="names too long"):
        read_jit(tmp_path / "x.jit")


def test_archive_names_that_leave_the_folder_are_refused(tmp_path):
    for name in ("../evil", "/etc/evil", "a/../../b", "a\\b"):
        with zipfile.ZipFile(tmp_path / "x.jit", "w") as archive:
            archive.writestr(name, b"")
        with pytest.raises(CheckpointError, match="stay inside"):
            read_jit(tmp_path / "x.jit")


def test_compressed_storages_and_encryption_are_refused(tmp_path):
    path = jit_writer.write_jit(tmp_path / "x.jit", ONE, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_jit(path)
    data = bytearray(jit_writer.write_jit(path, ONE).read_bytes())
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted"):
        read_jit(path)


def test_decompression_bomb_is_refused_in_little_memory(tmp_path):
    """A pickle that inflates to half a gigabyte, honestly declared or not, must cost less than that to refuse."""
    path = tmp_path / "x.jit"
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("x/data.pkl", "w") as file:
        for _ in range(128):
            file.write(bytes(1 << 22))
    lying = bytearray(path.read_bytes())
    at = lying.find(b"PK\1\2") + 24
    lying[at : at + 4] = struct.pack("<L", 1000)
    (tmp_path / "y.jit").write_bytes(lying)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\n"
        "from simplear_engine.image.jit_file import read_jit\n"
        "from simplear_engine.errors import CheckpointError\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_jit(path)\n"
        "    except CheckpointError as error: print(error)\n"
    )
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-O", "-c", script, str(path), str(tmp_path / "y.jit")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "x.jit" in first and "declares 536870912 bytes" in first
    assert "y.jit" in second and "does not hold the 1000 bytes" in second


def test_every_truncation_and_single_byte_damage_gives_a_typed_error_or_a_sound_file(tmp_path):
    path = tmp_path / "x.jit"
    whole = jit_writer.write_jit(path, ONE).read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="x.jit"):
            read_jit(path)
    rng = np.random.default_rng(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            for tensor in read_jit(path).values():
                assert tensor.to_float32().size <= 6
        except CheckpointError as error:
            assert "x.jit" in str(error)


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("inv_quant.quantizer._levels", ("float32", np.full(6, np.inf, np.float32))),
        ("inv_quant.quantizer._levels", ("int32", np.array([8, 8, 8, 5, 5, 6], np.int32))),
        ("inv_quant.quantizer._levels", ("int64", np.zeros(0, np.int64))),
        ("inv_quant.quantizer.implicit_codebook", ("int64", np.zeros((64000, 6), np.int64))),
        ("inv_quant.quantizer.implicit_codebook", ("float32", np.full((64000, 6), np.nan, np.float32))),
    ],
)
def test_constants_of_any_kind_end_in_a_typed_error(tmp_path, mini, name, tensor):
    jit_writer.write_jit(tmp_path / "decoder.jit", half_of(mini[0], True) | {name: tensor})
    with pytest.raises(CheckpointError, match="decoder.jit|levels"):
        CosmosTokenizer.from_pretrained(tmp_path / "decoder.jit")
