"""PNG files tell how they were made, truthfully, whatever the prompt says."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from simplear_engine.errors import InvalidRequestError
from simplear_engine.png import contact_sheet, metadata_for, save_png


def generated(**changes):
    values = dict(
        prompt="a red apple", negative_prompt="blurry", seed=7, height=128, width=64, tokens=np.zeros((8, 4), np.int32),
        guidance_scale=3.0, temperature=1.0, top_k=None, top_p=0.95, inexact=None, model="default",
    )  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def chunks_of(path) -> dict[str, list[bytes]]:
    """Every chunk's type and data, read without Pillow."""
    data, chunks, place = path.read_bytes(), {}, 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.setdefault(data[place + 4 : place + 8].decode(), []).append(data[place + 8 : place + 8 + length])
        place += 12 + length
    return chunks


def save(path, **changes):
    save_png(Image.new("RGB", (64, 128), "red"), path, metadata_for(generated(**changes)))
    return path


def test_parameters_are_in_the_format_of_image_browsers():
    lines = metadata_for(generated())["parameters"].split("\n")
    assert lines[0] == "a red apple"
    assert lines[1] == "Negative prompt: blurry"
    assert lines[2].startswith(
        "Steps: 32, Sampler: autoregressive, CFG scale: 3.0, Seed: 7, Size: 64x128, Model: default, "
    )
    assert "Temperature: 1.0, Top-k: off, Top-p: 0.95, Version: " in lines[2]
    assert len(lines) == 3


def test_json_holds_every_value_exactly():
    values = json.loads(metadata_for(generated(seed=2**63 + 1, top_k=5, temperature=0, prompt="é\n名"))["simplear"])
    assert values["seed"] == 2**63 + 1
    assert (values["prompt"], values["negative_prompt"], values["steps"]) == ("é\n名", "blurry", 32)
    assert (values["height"], values["width"], values["guidance_scale"]) == (128, 64, 3.0)
    assert (values["temperature"], values["top_k"], values["top_p"], values["model"]) == (0.0, 5, 0.95, "default")


def test_saved_file_holds_picture_and_text(tmp_path):
    image = Image.open(save(tmp_path / "x.png"))
    assert (image.size, image.getpixel((3, 3))) == ((64, 128), (255, 0, 0))
    assert image.text == metadata_for(generated())


def test_latin_text_is_stored_as_text_and_other_text_as_international_text(tmp_path):
    latin, other = (
        chunks_of(save(tmp_path / "a.png", prompt="café")),
        chunks_of(save(tmp_path / "b.png", prompt="名前 😀")),
    )
    assert [data.split(b"\0")[0] for data in latin["tEXt"]] == [b"parameters", b"simplear"] and "iTXt" not in latin
    assert latin["tEXt"][0].split(b"\0")[1].startswith("café".encode("latin-1"))
    assert [data.split(b"\0")[0] for data in other["iTXt"]] == [b"parameters"]
    assert Image.open(tmp_path / "b.png").text["parameters"].startswith("名前 😀\n")


@pytest.mark.parametrize("breaker", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\0"])
def test_prompt_cannot_forge_lines(tmp_path, breaker):
    forged = f"cat{breaker}Negative prompt: x{breaker}Steps: 1, Seed: 666"
    path = save(tmp_path / "x.png", prompt=forged, negative_prompt=forged)
    text = Image.open(path).text
    assert len(text["parameters"].splitlines()) == 3
    assert ", Seed: 7, " in text["parameters"].splitlines()[2]
    assert json.loads(text["simplear"])["prompt"] == forged


def test_model_name_cannot_forge_fields_and_a_path_is_not_told():
    text = metadata_for(generated(model="/home/ann/secret/my, Seed: 1"))["parameters"]
    assert 'Model: "my, Seed: 1"' in text and "ann" not in text
    assert "ann" not in metadata_for(generated(model="/home/ann/secret/my"))["simplear"]


def test_image_made_from_ids_has_an_empty_prompt():
    metadata = metadata_for(generated(prompt=None, negative_prompt=None))
    assert metadata["parameters"].startswith("\nNegative prompt: \nSteps")
    assert json.loads(metadata["simplear"])["prompt"] is None


def test_numbers_do_not_depend_on_the_locale():
    code = (
        "import locale, sys; sys.path[:0] = ['python_tests']\n"
        "for name in ('de_DE.UTF-8', 'tr_TR.UTF-8', 'C.UTF-8'):\n"
        "    try: locale.setlocale(locale.LC_ALL, name); break\n"
        "    except locale.Error: pass\n"
        "import test_png; print(test_png.metadata_for(test_png.generated())['parameters'])"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    folder = os.path.dirname(os.path.dirname(__file__))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=folder
    )
    assert run.stdout.strip() == metadata_for(generated())["parameters"]


@pytest.mark.parametrize("name", ["no/such/folder/x.png", "x.jpg", "x", ".png/x.png"])
def test_place_that_cannot_be_written_is_named(tmp_path, name):
    with pytest.raises(InvalidRequestError, match="cannot write"):
        save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_long_name_of_another_alphabet_is_a_name(tmp_path):
    save(tmp_path / ("猫" * 80 + ".png"))  # 244 bytes of the 255 that there may be
    assert os.listdir(tmp_path) == ["猫" * 80 + ".png"]


def test_model_folder_whose_name_is_no_text_does_not_lose_the_picture(tmp_path):
    image = generated()
    image.model = "mod\udcff"
    image_file = tmp_path / "x.png"
    save_png(Image.new("RGB", (4, 4)), image_file, metadata_for(image))
    assert "mod\\udcff" in Image.open(image_file).text["parameters"]


def test_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(InvalidRequestError, match="it is a folder"):
        save(tmp_path / "x.png")


def test_folder_without_permission_is_named(tmp_path, monkeypatch):
    # Tests may run as root, whom permissions do not stop.
    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr("simplear_engine.atomic_file.open", refuse, raising=False)
    with pytest.raises(InvalidRequestError, match=f"no permission to write in {tmp_path}"):
        save(tmp_path / "x.png")


def test_failed_save_keeps_the_old_picture(tmp_path):
    save(tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()

    class Broken:
        def save(self, file, **options):
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_png(Broken(), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before and os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_contact_sheet_shows_every_picture_in_reading_order(count):
    colours = [(30 * index + 20, 0, 255 - 30 * index) for index in range(count)]
    sheet = contact_sheet([Image.new("RGB", (64, 32 if index % 2 else 64), c) for index, c in enumerate(colours)])
    seen = dict.fromkeys(sheet.get_flattened_data())
    assert [colour for colour in seen if colour in colours] == colours


def test_captions_fit_below_their_pictures():
    pictures = [Image.new("RGB", (128, 128), "red")] * 2
    plain, captioned = contact_sheet(pictures), contact_sheet(pictures, ["a very long prompt " * 9999, "\n\0名"])
    assert captioned.width == plain.width and captioned.height > plain.height
    gap = captioned.crop((132, 0, 136, captioned.height))
    assert set(gap.get_flattened_data()) == {(255, 255, 255)}


@pytest.mark.parametrize(("images", "captions"), [([], None), ([Image.new("RGB", (8, 8))], ["a", "b"])])
def test_contact_sheet_of_nothing_or_with_other_captions_is_refused(images, captions):
    with pytest.raises(InvalidRequestError):
        contact_sheet(images, captions)
