"""Garbage in any file of a checkpoint folder ends in a typed error that names the file; so do impossible options.

What each reader refuses in detail is tested beside it (test_safetensors_file.py, test_text.py, test_image_files.py,
test_config.py); here is the whole way through Engine.from_pretrained.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simplear_engine import CheckpointError, Engine, InvalidRequestError, SimplearError, UnsupportedError
from simplear_engine.errors import CapacityError
from simplear_engine.safetensors_file import read_safetensors, write_safetensors

WEIGHTS = "model.safetensors"
TOKENIZER_WEIGHTS = "vq/tokenizer.safetensors"
JSON_FILES = ["config.json", "generation_config.json", "simplear.json", "tokenizer.json"]
FILES = [*JSON_FILES, WEIGHTS, TOKENIZER_WEIGHTS]


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    return tmp_path / "model"


def load(folder, **options):
    with Engine.from_pretrained(folder, **{"threads": 1, "max_pairs": 1, **options}) as engine:
        return engine.generate("a", height=16, width=16, seed=1)[0].pixels


def refused(folder, name, error=CheckpointError) -> str:
    """The text of the error that loading ends in; it names the file."""
    with pytest.raises(error) as caught:
        load(folder)
    assert name in str(caught.value)
    return str(caught.value)


def edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(path: Path, change) -> None:
    """Rewrites a safetensors file after change({name: writable array})."""
    tensors, metadata = read_safetensors(path)
    arrays = {name: tensor.data.copy() for name, tensor in tensors.items()}
    change(arrays)
    write_safetensors(path, arrays, metadata)


def test_undamaged_copy_loads(folder):
    assert np.isfinite(load(folder)).all()


# Whole files

WHOLE_FILE_DAMAGE = {
    "empty": lambda data: b"",
    "one_byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "last_byte_missing": lambda data: data.rstrip(b"\n")[:-1],
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: random.Random(1).randbytes(len(data)),
    "text": lambda data: b"<!DOCTYPE html><title>404</title>",
    "byte_in_front": lambda data: b"\0" + data,
    "git_lfs_pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("damage", WHOLE_FILE_DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(folder, name, damage):
    path = folder / name
    path.write_bytes(WHOLE_FILE_DAMAGE[damage](path.read_bytes()))
    refused(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", FILES)
def test_pipe_in_place_of_a_file_is_named_and_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, name)


@pytest.mark.parametrize("target", ["nowhere", "itself"])
@pytest.mark.parametrize("name", [*FILES, "drafts.safetensors", "vq"])
def test_broken_link_is_named_and_not_taken_for_an_absent_file(folder, name, target):
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(path.name if target == "itself" else target)
    refused(folder, name)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", TOKENIZER_WEIGHTS])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, Path(name).name)


@pytest.mark.parametrize("name", FILES)
def test_random_damage_gives_a_typed_error_or_a_sound_engine(folder, name):
    path = folder / name
    sound = path.read_bytes()
    rng = random.Random(name)
    refusals = 0
    for _ in range(40):
        data = bytearray(sound)
        # Where the structure is, not somewhere in the numbers.
        reach = min(len(data), 2000)
        for _ in range(rng.choice([1, 1, 4])):
            place = rng.randrange(min(reach, len(data)))
            kind = rng.randrange(4)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                del data[place : place + rng.randrange(1, 20)]
            elif kind == 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 20))
            else:
                data[place : place + 1] = rng.choice([b"-1", b"1e999", b"null", b"[]", b'"', b"{", b"9" * 400, b"NaN"])
        path.write_bytes(data)
        try:
            load(folder)
        except SimplearError:
            refusals += 1
    assert refusals >= 20


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}'],
                         ids=["list", "null", "number", "string", "depth", "twice", "nan"])  # fmt: skip
def test_json_that_is_no_plain_object_is_named(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, name)


# What the files say


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", 0), ("hidden_size", -64), ("hidden_size", 64.0), ("hidden_size", "64"), ("hidden_size", 1 << 40),
        ("hidden_size", True), ("hidden_size", None), ("num_attention_heads", 5), ("num_key_value_heads", 3),
        ("num_hidden_layers", 0), ("num_hidden_layers", 10**400), ("rms_norm_eps", 0), ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", "small"), ("rope_theta", 0), ("rope_theta", [1e6]), ("vocab_size", 264), ("vocab_size", 0),
        ("head_dim", 15), ("model_type", "llama"), ("model_type", None), ("hidden_act", "gelu"),
        ("use_sliding_window", True), ("tie_word_embeddings", "yes"), ("max_position_embeddings", 0),
        ("rope_scaling", {"rope_type": "yarn"}), ("rope_scaling", 3), ("layer_types", ["sliding_attention"]),
        ("quantization_config", {"bits": 4}),
    ],
)  # fmt: skip
def test_impossible_configuration_is_named_with_its_key(folder, key, value):
    edit_json(folder / "config.json", lambda values: values.update({key: value}))
    assert key in refused(folder, "config.json")


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                 "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size", "model_type",
                                 "tie_word_embeddings", "max_position_embeddings"])  # fmt: skip
def test_missing_key_of_the_configuration_is_named(folder, key):
    edit_json(folder / "config.json", lambda values: values.pop(key))
    assert key in refused(folder, "config.json")


@pytest.mark.parametrize("key, value", [("hidden_size", 128), ("intermediate_size", 161), ("num_hidden_layers", 3),
                                        ("vocab_size", 777), ("num_key_value_heads", 4), ("head_dim", 8),
                                        ("tie_word_embeddings", False), ("hidden_size", 1 << 18),
                                        ("vocab_size", 1 << 29), ("num_hidden_layers", 4096)])  # fmt: skip
def test_configuration_of_another_network_is_told_from_the_weights(folder, key, value):
    edit_json(folder / "config.json", lambda values: values.update({key: value}))
    refused(folder, WEIGHTS)


@pytest.mark.parametrize(
    "key, value",
    [
        ("format", 2), ("format", None), ("guidance_scale", -1), ("guidance_scale", "3"), ("height", 65), ("width", 0),
        ("top_k", 0), ("compression", 0), ("negative_prompt", 5), ("prompt_prefix", None), ("colour", "red"),
    ],
)  # fmt: skip
def test_impossible_defaults_are_named_with_their_key(folder, key, value):
    edit_json(folder / "simplear.json", lambda values: values.update({key: value}))
    assert key in refused(folder, "simplear.json")


@pytest.mark.parametrize(
    "change, text",
    [
        ({"top_k": 513}, "top_k: expected at most 512, .* found 513"),
        ({"compression": 8, "height": 24}, "height and width: expected multiples of 16, .* found 24 x"),
        ({"width": 65552}, "width: expected an integer from 1 to 65536, found 65552"),
    ],
)
def test_defaults_that_the_model_cannot_do_are_named(folder, change, text):
    edit_json(folder / "simplear.json", lambda values: values.update(change))
    assert re.search(text, refused(folder, "simplear.json"))


@pytest.mark.parametrize("key", ["prompt_begin", "prompt_end"])
def test_wrapper_that_is_no_control_token_is_named(folder, key):
    edit_json(folder / "simplear.json", lambda values: values.update({key: "<|nobody|>"}))
    assert "<|nobody|>" in refused(folder, "tokenizer.json")


TOKENIZER_DAMAGE = {
    "no_model": lambda values: values.pop("model"),
    "unknown_model": lambda values: values["model"].update(type="Oracle"),
    "no_vocab": lambda values: values["model"].update(vocab={}),
    "vocab_list": lambda values: values["model"].update(vocab=["a", "b"]),
    "negative_id": lambda values: values["model"]["vocab"].update(a=-1),
    "huge_id": lambda values: values["model"]["vocab"].update(a=1 << 40),
    "gap": lambda values: values["model"]["vocab"].update(a=5000),
    "byte_missing": lambda values: values["model"]["vocab"].pop("a"),
    "unknown_merge": lambda values: values["model"].update(merges=[["xyzzy", "plugh"]]),
    "added_number": lambda values: values.update(added_tokens=[5]),
    "added_object": lambda values: values.update(added_tokens={"id": 1}),
    "added_without_id": lambda values: values["added_tokens"][0].pop("id"),
    "added_without_content": lambda values: values["added_tokens"][0].pop("content"),
    "added_id_taken": lambda values: values["added_tokens"][0].update(id=3),
    "pre_tokenizer_number": lambda values: values.update(pre_tokenizer=3),
    "bad_pattern": lambda values: values["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(("}),
}


@pytest.mark.parametrize("damage", TOKENIZER_DAMAGE)
def test_impossible_text_tokenizer_is_named(folder, damage):
    edit_json(folder / "tokenizer.json", TOKENIZER_DAMAGE[damage])
    refused(folder, "tokenizer.json")


# Weights


def fill(name, place, value):
    def change(arrays):
        arrays[name].reshape(-1)[place] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name, place",
    [
        ("model.embed_tokens.weight", 0),
        ("model.embed_tokens.weight", -1),
        ("model.layers.1.self_attn.k_proj.bias", 7),
        ("model.layers.0.mlp.down_proj.weight", 1001),
        ("model.norm.weight", 63),
    ],
)
def test_weights_that_are_not_numbers_are_named(folder, name, place, value):
    edit_tensors(folder / WEIGHTS, fill(name, place, value))
    assert name in refused(folder, WEIGHTS)


def test_weights_of_the_image_tokenizer_that_are_not_numbers_are_named(folder):
    names = []

    def change(arrays):
        names.append(sorted(arrays)[3])
        arrays[names[0]].reshape(-1)[-1] = np.nan

    edit_tensors(folder / TOKENIZER_WEIGHTS, change)
    assert names[0] in refused(folder, "vq")


WEIGHT_DAMAGE = {
    "missing": lambda arrays: [arrays.pop(name) for name in NAMED_WEIGHTS],
    "transposed": lambda arrays: arrays.update({name: arrays[name].T.copy() for name in NAMED_WEIGHTS}),
    "one_row_less": lambda arrays: arrays.update({name: arrays[name][:-1] for name in NAMED_WEIGHTS}),
    "flat": lambda arrays: arrays.update({name: arrays[name].reshape(-1) for name in NAMED_WEIGHTS}),
    "integers": lambda arrays: arrays.update({name: arrays[name].astype(np.int32) for name in NAMED_WEIGHTS}),
    "empty": lambda arrays: arrays.update({name: arrays[name][:0] for name in NAMED_WEIGHTS}),
}
NAMED_WEIGHTS = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("damage", WEIGHT_DAMAGE)
def test_weights_that_do_not_fit_are_all_named_at_once(folder, damage):
    edit_tensors(folder / WEIGHTS, WEIGHT_DAMAGE[damage])
    text = refused(folder, WEIGHTS)
    assert all(name in text for name in NAMED_WEIGHTS)


@pytest.mark.parametrize("damage", ["missing", "one_row_less", "integers"])
def test_image_tokenizer_that_does_not_fit_is_named(folder, damage):
    names = []

    def change(arrays):
        names.extend(name for name in sorted(arrays) if name.endswith("weight") and name.startswith("decoder"))
        first = names[0]
        if damage == "missing":
            del arrays[first]
        else:
            arrays[first] = arrays[first][:-1] if damage == "one_row_less" else arrays[first].astype(np.int32)

    edit_tensors(folder / TOKENIZER_WEIGHTS, change)
    assert names[0] in refused(folder, "vq")


def test_image_tokenizer_with_another_number_of_codes_is_named(tmp_path, folder):
    from simplear_engine.testing.random_checkpoint import write_random_checkpoint

    other = write_random_checkpoint(tmp_path / "other", num_codes=64, image_tokenizer=True)
    shutil.rmtree(folder / "vq")
    shutil.copytree(other / "vq", folder / "vq")
    assert "64 codes, the model draws 512" in refused(folder, "vq")


def test_overflowing_weights_end_the_request_and_not_the_engine(folder):
    edit_tensors(folder / WEIGHTS, lambda arrays: arrays["model.norm.weight"].fill(3e38))
    with Engine.from_pretrained(folder, threads=1) as engine:
        for _ in range(2):
            with pytest.raises(SimplearError, match="image token 0 hold NaN or infinity") as caught:
                engine.generate("a", height=16, width=16)
            assert caught.value.kind == "numerical"
        assert engine.stats()["num_free_blocks"] == engine.stats()["num_blocks"]


# Options


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"device": "cuda"}, UnsupportedError, "cuda"),
        ({"device": "cuda:1"}, UnsupportedError, "cuda:1"),
        ({"device": "tpu"}, InvalidRequestError, "device: .*'tpu'"),
        ({"device": 3}, InvalidRequestError, "device: .*3"),
        ({"device": None}, InvalidRequestError, "device: .*None"),
        ({"dtype": "float8"}, InvalidRequestError, "dtype: .*'float8'"),
        ({"dtype": "float16"}, InvalidRequestError, "dtype: .*'float16'"),
        ({"dtype": None}, InvalidRequestError, "dtype: .*None"),
        ({"dtype": np.float32}, InvalidRequestError, "dtype: "),
        ({"dtype": np.array(["float32", "int8"])}, InvalidRequestError, "dtype: "),
        ({"kv_dtype": np.array(["float32", "int8"])}, InvalidRequestError, "kv_dtype: "),
        *(({name: value}, InvalidRequestError, f"{name}: ")
          for name in ("threads", "max_pairs", "prefill_chunk", "max_queue", "kv_cache_bytes")
          for value in (0, -1, 1.5, "2", True, float("nan"), [2])),
        ({"threads": 100_000}, InvalidRequestError, "threads: "),
        ({"max_pairs": 1 << 30}, InvalidRequestError, "max_pairs: "),
        ({"prefill_chunk": 1 << 30}, InvalidRequestError, "prefill_chunk: "),
        ({"max_queue": 1 << 40}, InvalidRequestError, "max_queue: "),
        ({"kv_cache_bytes": 100}, CapacityError, "kv_cache_bytes: expected at least"),
        ({"image_tokenizer": "/nowhere"}, CheckpointError, "/nowhere"),
        ({"image_tokenizer": 3}, InvalidRequestError, "image_tokenizer: "),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_impossible_option_is_named(tiny_checkpoint, options, error, text):
    with pytest.raises(error, match=text):
        load(tiny_checkpoint, **options)


@pytest.mark.parametrize("model", ["", "no/such/folder/anywhere", "/nowhere", Path("/nowhere")], ids=repr)
def test_model_that_is_nowhere_is_named(model):
    with pytest.raises(CheckpointError) as caught:
        Engine.from_pretrained(model)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize("model", [None, 3, b"default", ["default"]], ids=repr)
def test_model_that_cannot_be_a_name_is_told_from_a_bad_checkpoint(model):
    with pytest.raises(InvalidRequestError, match="^model: "):
        Engine.from_pretrained(model)


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"SIMPLEAR_CPU_ISA": "neon"}, "SIMPLEAR_CPU_ISA=neon: expected one of baseline"),
        ({"SIMPLEAR_CPU_ISA": "AVX2"}, "SIMPLEAR_CPU_ISA=AVX2: expected one of baseline"),
        ({"SIMPLEAR_OPS": "linear"}, "SIMPLEAR_OPS=linear: expected op=implementation"),
        ({"SIMPLEAR_OPS": "linear="}, "SIMPLEAR_OPS=linear="),
        ({"SIMPLEAR_OPS": "=baseline"}, "SIMPLEAR_OPS==baseline: expected op=implementation"),
        ({"SIMPLEAR_OPS": "linear=baseline,nothing=baseline"}, "SIMPLEAR_OPS=nothing=baseline: .*linear"),
        ({"SIMPLEAR_OPS": "linear=triton"}, "SIMPLEAR_OPS=linear=triton: here linear runs with .*baseline"),
        ({"SIMPLEAR_OPS": "conv2d=baseline"}, "SIMPLEAR_OPS=conv2d=baseline: .*op one of embed, gate_up_silu"),
    ],
    ids=str,
)
def test_nonsense_in_an_environment_variable_is_named(tiny_checkpoint, variables, text):
    code = f"""
from simplear_engine import Engine, UnsupportedError
import re
try:
    Engine.from_pretrained({str(tiny_checkpoint)!r})
except UnsupportedError as error:
    assert re.match({text!r}, str(error)), error
else:
    raise AssertionError("nothing was raised")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )
    assert ended.returncode == 0, ended.stderr


def test_environment_variables_choose_the_kernels(tiny_checkpoint):
    code = f"""
from simplear_engine import Engine
engine = Engine.from_pretrained({str(tiny_checkpoint)!r})
print(engine, engine._backend.implementation("linear"), engine._backend.implementation("embed"))
engine.generate("a", height=16, width=16)
"""
    environment = {**os.environ, "SIMPLEAR_CPU_ISA": "baseline", "SIMPLEAR_OPS": " linear=baseline, embed=baseline"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "isa='baseline'" in ended.stdout and ended.stdout.endswith("baseline baseline\n")
