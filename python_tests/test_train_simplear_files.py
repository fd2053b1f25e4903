"""SimpleAR's own files are read and written, and what is damaged is counted."""

import io
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
from PIL import Image

from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_engine.image import CosmosTokenizer
from simplear_train.checkpoint import TrainingError
from simplear_train.extract_pictures import encoder_sha256, extract, load_picture
from simplear_train.import_tokens import export_files, import_files
from simplear_train.parallel import ALONE
from simplear_train.simplear_files import read_list, read_sample, write_sample
from simplear_train.token_shards import ShardWriter, TokenSet, begin_set


def write_files(folder, count=7):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 64000, (count, 3, 2))
    for i in range(count):
        write_sample(folder, 512, i, codes[i], [f"short {i}", f"long {i}\nover two lines"])
    return codes


def test_files_are_those_that_simplear_writes(tmp_path):
    codes = write_files(tmp_path)
    stored = np.load(tmp_path / "512_codes" / "4.npy")
    assert stored.dtype == np.int32 and stored.shape == (1, 1, 3, 2) and (stored[0, 0] == codes[4]).all()
    assert (tmp_path / "512_labels" / "4.npy").read_text() == "short 4\nlong 4 over two lines"


def test_files_to_shards_and_back_lose_nothing(tmp_path):
    codes = write_files(tmp_path / "files")
    import_files(tmp_path / "files", 512, 64000, tmp_path / "shards")
    tokens = TokenSet(tmp_path / "shards")
    assert all((tokens.codes(i) == codes[i]).all() for i in range(7))
    assert export_files(tmp_path / "shards", 512, tmp_path / "again") == 7
    for i in range(7):
        ours, theirs = read_sample(tmp_path / "again", 512, i), read_sample(tmp_path / "files", 512, i)
        assert (ours[0] == theirs[0]).all() and ours[1] == theirs[1] == [f"short {i}", f"long {i} over two lines"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda good: b"PK\x03\x04" + bytes(100), "BadZipFile"),
        (lambda good: good.replace(b"(1, 1, 3, 2)", b"(1, 1, 3, 2("), "expected an array, found none"),
        (lambda good: good.replace(b"{'descr'", b"['descr'"), "expected an array, found none"),
        (lambda good: good[:100], "expected an array, found none"),
        (lambda good: b"", "expected an array, found none"),
        (lambda good: array_file(np.full((1, 1, 3, 2), 2**32 + 5)), "expected codes of 31 bits, found 4294967301"),
        (lambda good: array_file(np.full((1, 1, 3, 2), -1)), "expected codes of 31 bits, found -1"),
        (lambda good: array_file(np.zeros((1, 1, 0, 2), np.int32)), r"expected codes int \[1, 1, h, w\]"),
        (lambda good: array_file(a=np.zeros((1, 1, 3, 2), np.int32)), "found an archive"),
    ],
)
def test_a_damaged_array_is_a_value_error_however_it_is_damaged(tmp_path, damage, message):
    write_files(tmp_path, 1)
    path = tmp_path / "512_codes" / "0.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_sample(tmp_path, 512, 0)


def array_file(*arrays, **named) -> bytes:
    file = io.BytesIO()
    np.savez(file, **named) if named else np.save(file, *arrays)
    return file.getvalue()


def test_only_a_line_feed_ends_a_wording(tmp_path):
    wordings = ["a cat\u2028on a mat", "one\x0btwo\x85three", "a\rb"]
    write_sample(tmp_path, 512, 0, np.zeros((2, 2), int), wordings)
    assert read_sample(tmp_path, 512, 0)[1] == wordings


def test_two_files_of_one_number_are_refused(tmp_path):
    write_files(tmp_path, 2)
    (tmp_path / "512_codes" / "00.npy").write_bytes((tmp_path / "512_codes" / "0.npy").read_bytes())
    with pytest.raises(InvalidRequestError, match="expected names such as 7.npy, found 00.npy"):
        import_files(tmp_path, 512, 64000, tmp_path / "shards")


def test_damaged_files_are_listed_counted_and_left_out(tmp_path):
    write_files(tmp_path / "files")
    (tmp_path / "files" / "512_codes" / "2.npy").write_bytes(b"no array")
    (tmp_path / "files" / "512_labels" / "5.npy").write_bytes(b"\xff\xfe")
    np.save(tmp_path / "files" / "512_codes" / "6.npy", np.full((1, 1, 3, 2), 64000, np.int32))
    rejects = import_files(tmp_path / "files", 512, 64000, tmp_path / "shards", limit=0.5)
    assert (rejects.num_seen, rejects.num_rejected) == (7, 3) and "3 rejected" in str(rejects)
    listed = [json.loads(line) for line in (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["sample"].split("/")[-1] for entry in listed] == ["2.npy", "5.npy", "6.npy"]
    tokens = TokenSet(tmp_path / "shards")
    assert [tokens.wordings(i)[0] for i in range(len(tokens))] == ["short 0", "short 1", "short 3", "short 4"]
    with pytest.raises(TrainingError, match="3 of 7 samples could not be used"):
        import_files(tmp_path / "files", 512, 64000, tmp_path / "strict")
    assert not (tmp_path / "strict" / "index.json").exists()


def test_lists_are_read_with_braces_and_mixtures(tmp_path):
    pytest.importorskip("yaml")
    for name in ("a", "b"):
        entries = [{"image_path": f"{name}{i}.png", "caption": f"{name} {i}" if i else ["x", "y"]} for i in range(10)]
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    assert [e["image_path"] for e in read_list(f"{tmp_path}/{{a,b}}.json")][8:12] == [
        "a8.png",
        "a9.png",
        "b0.png",
        "b1.png",
    ]
    assert read_list(f"{tmp_path}/a.json")[0]["caption"] == ["x", "y"]
    a, b = (
        f"{{json_path: {tmp_path}/{name}.json, sampling_strategy: '{s}'}}"
        for name, s in (("a", "end:2"), ("b", "first:30%"))
    )
    (tmp_path / "mix.yaml").write_text(f"datasets: [{a}, {b}]")
    assert [e["image_path"] for e in read_list(f"{tmp_path}/mix.yaml")] == [
        "a8.png",
        "a9.png",
        "b0.png",
        "b1.png",
        "b2.png",
    ]
    (tmp_path / "bad.json").write_text('[{"image_path": "x.png", "caption": "x"}, {"image": "y"}]')
    with pytest.raises(InvalidRequestError, match="entry 1: expected"):
        read_list(f"{tmp_path}/bad.json")
    for text in ("5", '{"a": 1}', "null", "[", "\udcff"):
        (tmp_path / "bad.json").write_text(text, errors="surrogateescape")
        with pytest.raises(InvalidRequestError, match="bad.json: expected a JSON list of pictures"):
            read_list(f"{tmp_path}/bad.json")
    for text in ("datasets: 5", "data: []", "datasets: [", "- a", "datasets: [{json_path: 5}]", "datasets: [a]", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InvalidRequestError, match=r"bad.yaml: expected datasets: \[{json_path"):
            read_list(f"{tmp_path}/bad.yaml")
    with pytest.raises(InvalidRequestError, match="none.yaml: expected datasets"):
        read_list(f"{tmp_path}/none.yaml")


def test_a_picture_is_halved_scaled_and_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[:, 68:132] = 255  # what a crop in the middle leaves
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    picture = load_picture(str(tmp_path / "wide.png"), 32)
    assert picture.shape == (3, 32, 32) and picture.dtype == np.float32
    assert (picture[:, :, 2:-2] == 1).all() and picture.min() >= -1


@pytest.mark.parametrize("layout", ["shards", "simplear"])
def test_extraction_encodes_every_readable_picture_and_lists_the_others(tmp_path, layout, monkeypatch):
    rng = np.random.default_rng(0)
    entries = []
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(tmp_path / f"{i}.png")
        entries.append({"image_path": str(tmp_path / f"{i}.png"), "caption": [f"noise {i}"]})
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "bomb.png")
    entries.append({"image_path": str(tmp_path / "bomb.png"), "caption": ["too large to be true"]})
    tokenizer = CosmosTokenizer.from_pretrained(DEFAULT_MODEL_FOLDER / "vq", threads=1)
    rejects = extract(entries, tokenizer, "first", 32, tmp_path / "out", layout, 0.5, ALONE)
    assert (rejects.num_seen, rejects.num_rejected) == (4, 2)
    expected = tokenizer.encode(load_picture(entries[2]["image_path"], 32)[None])[0]
    if layout == "shards":
        tokens = TokenSet(tmp_path / "out")
        assert len(tokens) == 2 and (tokens.codes(1) == expected).all() and tokens.wordings(1) == ["noise 2"]
    else:
        codes, wordings = read_sample(tmp_path / "out", 32, 2)
        assert (codes == expected).all() and wordings == ["noise 2"]
        assert not (tmp_path / "out" / "32_codes" / "1.npy").exists()
    # What is there is gone on with, and takes nothing of another tokenizer or list.
    extract(entries, tokenizer, "first", 32, tmp_path / "out", layout, 0.5, ALONE)
    for encoder, listed, other in (("second", entries, "encoder"), ("first", entries[2:], "entries")):
        with pytest.raises(InvalidRequestError, match=rf"origin.json: other {other}\); choose another folder"):
            extract(listed, tokenizer, encoder, 32, tmp_path / "out", layout, 0.5, ALONE)
    with pytest.raises(InvalidRequestError, match="--size: expected a multiple of 16, got 50"):
        extract(entries, tokenizer, "first", 50, tmp_path / "other", layout, 0.5, ALONE)
    if layout == "simplear":  # another size has its own place in the folder
        assert extract(entries, tokenizer, "first", 16, tmp_path / "out", layout, 0.5, ALONE).num_rejected == 2


def test_a_tokenizer_is_known_by_the_file_of_its_encoder(tmp_path):
    for name in ("tokenizer.safetensors", "encoder.jit"):
        (tmp_path / name).write_text(name)
    by_folder = encoder_sha256(tmp_path)
    assert by_folder == encoder_sha256(tmp_path / "tokenizer.safetensors") != encoder_sha256(tmp_path / "encoder.jit")
    (tmp_path / "tokenizer.safetensors").unlink()
    (tmp_path / "decoder.jit").write_text("not what makes tokens")
    assert encoder_sha256(tmp_path) == encoder_sha256(tmp_path / "encoder.jit")
    (tmp_path / "encoder.jit").unlink()
    with pytest.raises(CheckpointError, match="expected tokenizer.safetensors or encoder.jit, found neither"):
        encoder_sha256(tmp_path)


def test_whatever_a_damaged_picture_makes_its_reader_raise_is_a_reject(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to decode image")  # as Pillow's reader of AVIF does

    monkeypatch.setattr("simplear_train.extract_pictures.load_picture", fail)
    tokenizer = CosmosTokenizer.from_pretrained(DEFAULT_MODEL_FOLDER / "vq", threads=1)
    with pytest.raises(TrainingError, match="1 of 1 samples could not be used"):
        extract([{"image_path": "a.avif", "caption": ["a"]}], tokenizer, "first", 32, tmp_path, "shards", 0.5, ALONE)
    assert "RuntimeError: Failed" in (tmp_path / "rejected-0.jsonl").read_text()


def test_lines_that_say_nothing_are_no_captions(tmp_path):
    write_files(tmp_path / "files", 3)
    label = tmp_path / "files" / "512_labels"
    (label / "0.npy").write_text("a cat\n")
    (label / "1.npy").write_text("a cat\r\na cat on a mat \r\n\r\n")
    (label / "2.npy").write_text("\n")
    assert [read_sample(tmp_path / "files", 512, i)[1] for i in (0, 1)] == [["a cat"], ["a cat", "a cat on a mat"]]
    with pytest.raises(ValueError, match="expected a caption"):
        read_sample(tmp_path / "files", 512, 2)


def test_a_set_takes_no_shards_of_another(tmp_path):
    write_files(tmp_path / "files")
    import_files(tmp_path / "files", 512, 64000, tmp_path / "shards")
    with pytest.raises(InvalidRequestError, match="holds token shards already"):
        import_files(tmp_path / "files", 512, 64000, tmp_path / "shards")
    begin_set(tmp_path / "set", {"seed": 1})
    with ShardWriter(tmp_path / "set", 16) as writer:
        writer.add(np.zeros((2, 2), np.int32), ["nothing"])
    begin_set(tmp_path / "set", {"seed": 1})
    with pytest.raises(InvalidRequestError, match=r"holds tokens of something else \(origin.json: other seed\)"):
        begin_set(tmp_path / "set", {"seed": 2})
