"""Checkpoint folders: published forms load, every fault is one typed error that names it."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simplear_engine import checkpoint as checkpoint_module
from simplear_engine.checkpoint import load_checkpoint, resolve
from simplear_engine.config import GenerationDefaults
from simplear_engine.convert import convert_checkpoint
from simplear_engine.draft_file import read_drafts, write_drafts
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.safetensors_file import read_safetensors, write_safetensors
from simplear_engine.testing.random_checkpoint import TINY_DEFAULTS, random_weight, write_random_checkpoint
from simplear_engine.weights import weight_specs


@pytest.fixture
def folder(tmp_path):
    return write_random_checkpoint(tmp_path / "model")


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_weights(folder, **changes):
    """Replaces tensors (None removes one); names with dots are spelled with two underscores."""
    path = folder / "model.safetensors"
    tensors = dict(read_safetensors(path)[0])
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    write_safetensors(path, {name: value for name, value in tensors.items() if value is not None})


# What loads


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_back_in_canonical_order(tmp_path, dtype, shards):
    folder = write_random_checkpoint(tmp_path / "model", dtype=dtype, shards=shards, seed=5)
    checkpoint = load_checkpoint(folder)
    specs = weight_specs(checkpoint.model)
    assert list(checkpoint.tensors) == list(specs)
    assert checkpoint.stored_dtype == dtype
    for name, tensor in checkpoint.tensors.items():
        assert (tensor.dtype, tensor.shape) == (dtype, specs[name].shape)
        np.testing.assert_allclose(
            tensor.to_float32(), random_weight(name, tensor.shape, seed=5), rtol=2**-8, atol=1e-4
        )


def test_weights_are_mapped_and_not_copied(folder):
    assert not any(tensor.data.flags.owndata for tensor in load_checkpoint(folder).tensors.values())


def test_visual_codes_begin_behind_the_tokenizer(folder):
    checkpoint = load_checkpoint(folder)
    assert (len(checkpoint.text), checkpoint.model.visual_offset, checkpoint.model.num_codes) == (264, 264, 512)


def test_head_is_loaded_when_untied_and_ignored_when_tied(tmp_path):
    untied = write_random_checkpoint(tmp_path / "untied", tie_word_embeddings=False)
    assert "lm_head.weight" in load_checkpoint(untied).tensors
    edit_json(untied / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_checkpoint(untied).tensors


def test_folder_saved_by_transformers_loads(tmp_path):
    from transformers import Qwen2ForCausalLM

    source = write_random_checkpoint(tmp_path / "source", dtype="float32", head_dim=32, tie_word_embeddings=False)
    Qwen2ForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    shutil.copy(source / "tokenizer.json", tmp_path / "saved")
    ours, theirs = load_checkpoint(source), load_checkpoint(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    assert theirs.model == ours.model
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(theirs.tensors[name].data, tensor.data)


def test_tokenizer_length_is_that_of_transformers(folder):
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(folder)) == len(load_checkpoint(folder).text)


def test_image_tokenizer_is_found_where_there_is_one(folder):
    assert load_checkpoint(folder).image_tokenizer_path is None
    (folder / "vq").mkdir()
    assert load_checkpoint(folder).image_tokenizer_path == folder / "vq"


def test_defaults_belong_to_the_folder(folder):
    assert load_checkpoint(folder).defaults == TINY_DEFAULTS
    (folder / "simplear.json").unlink()
    assert load_checkpoint(folder).defaults == GenerationDefaults()


def test_inherited_repetition_penalty_is_reported(folder, caplog):
    with caplog.at_level(logging.WARNING, "simplear_engine"):
        load_checkpoint(folder)
        assert not caplog.records
        edit_json(folder / "generation_config.json", repetition_penalty=1.1)
        load_checkpoint(folder)
    assert "repetition_penalty 1.1 is not applied" in caplog.text


def test_unknown_tensors_are_ignored_and_reported(folder, caplog):
    edit_weights(
        folder, vision__weight=np.float32([1]), model__layers__0__self_attn__rotary_emb__inv_freq=np.float32([1])
    )
    with caplog.at_level(logging.WARNING, "simplear_engine"):
        load_checkpoint(folder)
    assert "vision.weight" in caplog.text and "inv_freq" not in caplog.text


# What does not


def test_all_faulty_weights_stand_in_one_error(folder):
    edit_weights(
        folder,
        model__norm__weight=None,
        model__layers__1__self_attn__q_proj__bias=np.float32([1, 2]),
        model__layers__0__mlp__up_proj__weight=np.zeros((160, 64), np.int64),
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    text = str(caught.value)
    assert "model.safetensors: 3 weights" in text
    assert "model.norm.weight: missing, expected [64]" in text
    assert "model.layers.1.self_attn.q_proj.bias: expected shape [64], found [2]" in text
    assert "model.layers.0.mlp.up_proj.weight: expected dtype float32 or bfloat16 or float16, found int64" in text


def test_untied_checkpoint_without_head_is_refused(folder):
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="lm_head.weight: missing"):
        load_checkpoint(folder)


def test_tokenizer_as_long_as_the_vocabulary_is_refused(folder):
    edit_json(folder / "config.json", vocab_size=264)
    with pytest.raises(CheckpointError, match="config.json: vocab_size: expected more than the tokenizer's 264"):
        load_checkpoint(folder)


def test_wrapper_that_the_tokenizer_does_not_know_is_refused(folder):
    edit_json(folder / "simplear.json", prompt_end="<|go|>")
    with pytest.raises(CheckpointError, match="no added token '<|go|>'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "simplear.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "folder"])
def test_damaged_file_is_named(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\x93NUMPY" * 50}[damage])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_pickled_weights_are_refused_and_never_run(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pytorch_model.bin.*save_pretrained"):
        load_checkpoint(folder)
    assert not (tmp_path / "exploded").exists()


def test_folder_of_a_training_run_points_at_the_model_in_it(folder):
    (folder.parent / "checkpoint.pt").touch()
    with pytest.raises(CheckpointError, match=f"holds no weights; did you mean {folder}?"):
        load_checkpoint(folder.parent)


# Names


def test_existing_folder_resolves_to_itself(folder, monkeypatch):
    assert resolve(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("model").samefile(folder)


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "nothing", "../x", "a b/c", "", "/etc/nothing"])
def test_name_that_is_neither_folder_nor_hub_id_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        resolve(name)


def test_file_instead_of_a_folder_is_refused(folder):
    with pytest.raises(CheckpointError, match="found a file"):
        resolve(folder / "config.json")


def test_broken_link_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="owner/name: expected a checkpoint folder, found a broken link"):
        resolve("owner/name")


def test_missing_default_model_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint_module, "DEFAULT_MODEL_FOLDER", tmp_path / "none")
    with pytest.raises(CheckpointError, match="name a folder or a hub id"):
        resolve("default")


def test_folder_named_default_is_reached_by_its_path(folder, monkeypatch):
    monkeypatch.chdir(folder.rename(folder.parent / "default").parent)
    assert resolve(Path("default")) == resolve("./default") == Path("default")
    assert resolve("default") == checkpoint_module.DEFAULT_MODEL_FOLDER


def test_revision_of_what_is_not_on_the_hub_is_refused(folder):
    for name in ("default", folder):
        with pytest.raises(InvalidRequestError, match=f"^revision: expected None for {name}, .* got 'v7'"):
            resolve(name, "v7")


def test_hub_ids_fetch_only_what_is_needed_and_no_pickle(monkeypatch, folder):
    import huggingface_hub

    asked = {}

    def fake_download(repo_id, revision, allow_patterns):
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_download)
    assert resolve("Daniel0724/SimpleAR-0.5B-RL", revision="abc") == folder
    assert (asked["repo_id"], asked["revision"]) == ("Daniel0724/SimpleAR-0.5B-RL", "abc")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(asked["patterns"])
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["patterns"])


def test_offline_hub_id_that_is_not_cached_says_what_to_do(tmp_path):
    code = (
        "from simplear_engine.checkpoint import resolve\n"
        "from simplear_engine.errors import CheckpointError\n"
        "try: resolve('nobody/nothing')\n"
        "except CheckpointError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "nobody/nothing: neither a folder here nor obtainable" in run.stdout
    assert "unset HF_HUB_OFFLINE" in run.stdout


def test_hub_snapshot_of_links_loads(folder, tmp_path):
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_checkpoint(snapshot).model == load_checkpoint(folder).model


# Converting


def test_converted_folder_has_the_same_weights_and_the_new_defaults(tmp_path):
    source = write_random_checkpoint(tmp_path / "in", dtype="float32", shards=4)
    convert_checkpoint(source, tmp_path / "out", dtype="bfloat16", prompt_prefix="Emoji of ", height=32)
    before, after = load_checkpoint(source), load_checkpoint(tmp_path / "out")
    assert after.model == before.model and after.stored_dtype == "bfloat16"
    assert (after.defaults.prompt_prefix, after.defaults.height, after.defaults.width) == ("Emoji of ", 32, 64)
    assert after.text.encode_text("a <|soi|> b") == before.text.encode_text("a <|soi|> b")
    for name, tensor in after.tensors.items():
        np.testing.assert_allclose(tensor.to_float32(), before.tensors[name].data, rtol=2**-8)


def test_converting_without_a_new_dtype_keeps_every_bit(folder, tmp_path):
    convert_checkpoint(folder, tmp_path / "out")
    after = load_checkpoint(tmp_path / "out")
    for name, tensor in load_checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(after.tensors[name].data, tensor.data)


def test_converting_without_a_new_dtype_keeps_that_of_each_tensor(folder, tmp_path):
    norm = np.full(64, 1.001, np.float32)  # which bfloat16 would round
    edit_weights(folder, model__norm__weight=norm)
    convert_checkpoint(folder, tmp_path / "out")
    after = load_checkpoint(tmp_path / "out")
    assert after.stored_dtype == "bfloat16"
    np.testing.assert_array_equal(after.tensors["model.norm.weight"].data, norm)


@pytest.mark.parametrize("dtype, value", [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_number_that_the_new_dtype_cannot_hold_is_named(tmp_path, dtype, value):
    source = write_random_checkpoint(tmp_path / "in", dtype="float32")
    edit_weights(source, model__norm__weight=np.full(64, value, np.float32))
    with pytest.raises(CheckpointError, match=f"model.norm.weight: holds .*, which is not finite as {dtype}"):
        convert_checkpoint(source, tmp_path / "out", dtype=dtype)
    assert os.listdir(tmp_path) == ["in"]


def test_converting_damaged_drafts_is_refused(folder, tmp_path):
    (folder / "drafts.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="drafts.safetensors"):
        convert_checkpoint(folder, tmp_path / "out")


def test_converting_takes_what_speculation_learnt_along(folder, tmp_path):
    write_drafts(folder / "drafts.safetensors", np.array([[7, -8], [3, 2], [1, 1], [1, 2]], np.int32))
    convert_checkpoint(folder, tmp_path / "out")
    before, after = (read_drafts(path / "drafts.safetensors", 64) for path in (folder, tmp_path / "out"))
    np.testing.assert_array_equal(after, before)


def test_converting_takes_the_image_tokenizer_along(tmp_path):
    source = write_random_checkpoint(tmp_path / "in", image_tokenizer=True)
    convert_checkpoint(source, tmp_path / "out")
    before, _ = read_safetensors(source / "vq" / "tokenizer.safetensors")
    after, _ = read_safetensors(tmp_path / "out" / "vq" / "tokenizer.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(tensor.data, after[name].data) for name, tensor in before.items())


def test_failed_conversion_leaves_nothing_behind(folder, tmp_path):
    (folder / "vq").mkdir()
    for options in ({"dtype": "int3"}, {"height": 33}, {"top_k": 513}, {"colour": 1}, {"prompt_begin": "<|go|>"}):
        with pytest.raises(InvalidRequestError):
            convert_checkpoint(folder, tmp_path / "out", **options)
    for options in ({}, {"image_tokenizer": ""}):
        with pytest.raises(CheckpointError):
            convert_checkpoint(folder, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_conversion_never_overwrites(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InvalidRequestError, match="not an empty folder"):
        convert_checkpoint(folder, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(InvalidRequestError, match="not an empty folder"):
        convert_checkpoint(folder, tmp_path / "link")
    with pytest.raises(InvalidRequestError, match="does not exist"):
        convert_checkpoint(folder, tmp_path / "no" / "out")


# Random checkpoints


def test_random_checkpoints_are_reproducible_and_seeds_differ(tmp_path):
    files = [
        (write_random_checkpoint(tmp_path / str(i), seed=seed) / "model.safetensors").read_bytes()
        for i, seed in enumerate([1, 1, 2])
    ]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_heads": 7, "num_kv_heads": 1, "head_dim": 64},
        {"num_heads": 6, "num_kv_heads": 1, "hidden_size": 96},
        {"num_heads": 4, "num_kv_heads": 4, "head_dim": 128, "tie_word_embeddings": False},
        {"num_text_tokens": 307, "num_codes": 7, "num_layers": 1},
    ],
)
def test_random_checkpoint_takes_any_sizes(tmp_path, overrides):
    model = load_checkpoint(write_random_checkpoint(tmp_path / "model", **overrides)).model
    for name, value in overrides.items():
        assert getattr(model, "visual_offset" if name == "num_text_tokens" else name) == value


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_large_sizes_have_simplears_vocabulary(size, tmp_path):
    folder = write_random_checkpoint(tmp_path, size, hidden_size=24, intermediate_size=8, head_dim=2, num_layers=1)
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.model.visual_offset, checkpoint.model.vocab_size) == (151672, 215672)
    assert checkpoint.text.control_id("<|soi|>") == 151667 and checkpoint.text.control_id("<|t2i|>") == 151665


def test_loading_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import simplear_engine.cli, simplear_engine.convert, simplear_engine.doctor, simplear_engine.png\n"
        "import simplear_engine.checkpoint\n"
        "heavy = {'tokenizers', 'PIL', 'huggingface_hub', 'transformers', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
