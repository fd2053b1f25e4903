"""The `simplear` command as people use it: files appear, errors are one line, help is instant."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from simplear_engine import cli
from simplear_engine.checkpoint import load_checkpoint
from simplear_engine.errors import CapacityError, InvalidRequestError
from simplear_engine.png import metadata_for, save_png
from simplear_engine.testing.random_checkpoint import write_random_checkpoint


def simplear(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "simplear_engine", *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables)


class EngineDouble:
    """Stands in for the engine where only the command itself is under test; remembers what it was asked."""

    loaded: dict
    asked: dict
    closed: bool
    error: Exception | None = None
    has_image_tokenizer = True

    @classmethod
    def from_pretrained(cls, model, **options):
        cls.loaded = {"model": model, **options}
        return cls()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        type(self).closed = True

    def generate(self, prompts, *, on_progress, num_images, seed, **options):
        type(self).asked = {"prompts": prompts, "num_images": num_images, "seed": seed, **options}
        if self.error is not None:
            raise self.error
        for done in (0, 3, 8):
            on_progress(done, 8)
        return [self._image(prompt, (seed or 0) + index) for prompt in prompts for index in range(num_images)]

    @staticmethod
    def _image(prompt, seed):
        image = SimpleNamespace(
            prompt=prompt, negative_prompt="", seed=seed, height=32, width=64, tokens=np.zeros((2, 4), np.int32),
            guidance_scale=3.0, temperature=1.0, top_k=None, top_p=1.0, inexact=None, model="double",
            pil=Image.new("RGB", (64, 32), (seed % 256, 0, 0)),
        )  # fmt: skip
        image.accepted_lens = [1, 3, 1]
        image.draft_counts = [3, 2], [1, 1]
        image.save = lambda path: save_png(image.pil, path, metadata_for(image))
        return image


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_import_engine", lambda: EngineDouble)
    monkeypatch.setattr(EngineDouble, "error", None)
    monkeypatch.chdir(tmp_path)
    return EngineDouble


def one_line_error(capsys) -> str:
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("error: ")
    return printed.err


# generate


def test_one_prompt_makes_one_file_and_says_where(engine, tmp_path, capsys):
    assert cli.main(["generate", "a red apple", "-o", "apple.png", "--seed", "7"]) == 0
    assert os.listdir(tmp_path) == ["apple.png"]
    assert Image.open("apple.png").size == (64, 32)
    assert capsys.readouterr().out.startswith("apple.png  seed 7  ")


def test_several_images_are_numbered_and_the_named_file_shows_them_all(engine, tmp_path, capsys):
    assert cli.main(["generate", "a cat", "a dog", "-o", "pets.png", "--seed", "3", "--num-images", "2"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["pets-1.png", "pets-2.png", "pets-3.png", "pets-4.png", "pets.png"]
    stories = [json.loads(Image.open(f"pets-{index}.png").text["simplear"]) for index in (1, 2, 3, 4)]
    assert [(story["prompt"], story["seed"]) for story in stories] == [
        ("a cat", 3),
        ("a cat", 4),
        ("a dog", 3),
        ("a dog", 4),
    ]
    assert Image.open("pets.png").size[0] > 128
    assert capsys.readouterr().out.startswith("pets.png  sheet of 4: pets-1.png to pets-4.png, first seed 3  ")


def test_every_option_reaches_the_engine(engine):
    arguments = [
        "generate", "p", "-o", "x.png", "--seed", "5", "--negative-prompt", "n", "--height", "96", "--width", "32",
        "--guidance-scale", "2.5", "--temperature", "0.5", "--top-k", "9", "--top-p", "0.9", "--model", "folder",
        "--image-tokenizer", "vq", "--device", "cpu", "--dtype", "float32", "--kv-dtype", "int8",
        "--threads", "2", "--kv-cache-bytes", "1000", "--speculation", "jacobi", "--draft-window", "4",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    assert engine.loaded == {
        "model": "folder", "device": "cpu", "dtype": "float32", "kv_dtype": "int8", "image_tokenizer": "vq",
        "threads": 2, "kv_cache_bytes": 1000,
    }  # fmt: skip
    assert engine.asked == {
        "prompts": ["p"], "num_images": 1, "seed": 5, "negative_prompt": "n", "height": 96, "width": 32,
        "guidance_scale": 2.5, "temperature": 0.5, "top_k": 9, "top_p": 0.9,
        "speculation": "jacobi", "draft_window": 4,
    }  # fmt: skip


def test_speculation_is_reported(engine, capsys):
    assert cli.main(["generate", "p", "-o", "x.png", "--speculation", "jacobi"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "1.67 codes a step (5 in 3 steps); by length 1:2 3:1",
        "drafts kept, by place in the window: 33% 50%",
    ]


def test_model_without_image_tokenizer_is_refused_before_anything_is_drawn(engine, monkeypatch, capsys):
    engine.asked = None
    monkeypatch.setattr(engine, "has_image_tokenizer", False)
    assert cli.main(["generate", "p", "-o", "x.png"]) == 2
    assert "name one with --image-tokenizer" in one_line_error(capsys)
    assert engine.asked is None


@pytest.mark.parametrize("error", [None, CapacityError("needs 5 blocks")])
def test_engine_is_closed_in_the_end(engine, monkeypatch, error):
    engine.closed = False
    monkeypatch.setattr(engine, "error", error)
    cli.main(["generate", "p", "-o", "x.png"])
    assert engine.closed


def test_options_left_out_leave_the_choice_to_the_model(engine):
    assert cli.main(["generate", "p", "-o", "x.png"]) == 0
    names = ("seed", "negative_prompt", "height", "width", "guidance_scale", "top_k")
    assert [engine.asked[name] for name in names] == [None] * 6


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple!", "a-red-apple.png"), ("../../etc/passwd", "etc-passwd.png"), ("", "image.png"), ("/", "image.png"),
        ("x" * 300, "x" * 50 + ".png"), ("名前", "名前.png"), ("-rf\n\0~", "rf.png"),
    ],
)  # fmt: skip
def test_file_is_named_after_the_prompt_and_stays_in_the_folder(engine, tmp_path, prompt, name):
    assert cli.main(["generate", "--", prompt]) == 0
    assert os.listdir(tmp_path) == [name]


def test_named_after_the_prompt_never_overwrites(engine, tmp_path):
    for _ in range(3):
        assert cli.main(["generate", "apple"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["apple.png", "apple_2.png", "apple_3.png"]
    # Several images have names of their own.
    (tmp_path / "pear-2.png").write_bytes(b"somebody's")
    assert cli.main(["generate", "pear", "--num-images", "2"]) == 0
    assert (tmp_path / "pear-2.png").read_bytes() == b"somebody's" and (tmp_path / "pear_2-2.png").exists()


def test_runs_at_the_same_time_do_not_choose_the_same_names(engine, tmp_path, monkeypatch):
    draw = engine.generate

    def draw_while_another_run_does(self, prompts, **options):
        monkeypatch.setattr(engine, "generate", draw)
        assert cli.main(["generate", "a cat", "--seed", "2", "--num-images", "2"]) == 0
        return draw(self, prompts, **options)

    monkeypatch.setattr(engine, "generate", draw_while_another_run_does)
    assert cli.main(["generate", "a cat", "--seed", "1"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["a-cat.png", "a-cat_2-1.png", "a-cat_2-2.png", "a-cat_2.png"]
    assert json.loads(Image.open("a-cat.png").text["simplear"])["seed"] == 1


def test_folder_in_the_way_of_any_picture_is_found_before_generating(engine, tmp_path, capsys):
    engine.loaded = None
    (tmp_path / "p-1.png").mkdir()
    assert cli.main(["generate", "p", "-o", "p.png", "--num-images", "3"]) == 2
    assert "cannot write p-1.png: it is a folder" in one_line_error(capsys)
    assert engine.loaded is None


@pytest.mark.parametrize("output", ["no/folder/x.png", "x.jpg", "."])
def test_output_that_cannot_be_written_is_refused_before_generating(engine, capsys, output):
    engine.loaded = None
    assert cli.main(["generate", "p", "-o", output]) == 2
    assert "cannot write" in one_line_error(capsys)
    assert engine.loaded is None


@pytest.mark.parametrize(
    "error", [InvalidRequestError("height: expected"), CapacityError("needs 5 blocks"), OSError(28, "No space left")]
)
def test_an_error_is_one_line_and_exit_code_2(engine, capsys, monkeypatch, error):
    monkeypatch.setattr(engine, "error", error)
    for arguments in (["-o", "x.png"], [], ["--num-images", "3"]):
        assert cli.main(["generate", "p", *arguments]) == 2
        assert str(error) in one_line_error(capsys)
        assert os.listdir() == []


def test_progress_is_drawn_on_a_terminal_only(engine, capsys, monkeypatch):
    assert cli.main(["generate", "p", "-o", "x.png"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["generate", "p", "-o", "x.png"]) == 0
    assert "token" in capsys.readouterr().err


def test_nobody_needs_to_listen_to_progress(engine, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as where it was closed
    assert cli.main(["generate", "p", "-o", "x.png"]) == 0


def test_interrupt_is_no_traceback(engine, capsys, monkeypatch):
    monkeypatch.setattr(engine, "error", KeyboardInterrupt())
    assert cli.main(["generate", "p", "-o", "x.png"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


# The other commands


def test_help_teaches():
    run = simplear("generate", "--help")
    assert run.returncode == 0 and 'simplear generate "a red apple" -o apple.png --seed 7' in run.stdout


def test_help_loads_nothing_but_numpy():
    code = (
        "import sys, contextlib\nfrom simplear_engine import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['generate', '--help'])\n"
        "print(sorted({'torch', 'PIL', 'tokenizers', 'tqdm', 'simplear_engine._C'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate"], ["generate", "p", "--seed", "x"], ["convert", "a"]])
def test_wrong_usage_exits_with_2(arguments):
    run = simplear(*arguments)
    assert run.returncode == 2 and "usage: simplear" in run.stderr and "Traceback" not in run.stderr


def test_convert_writes_a_folder_with_the_given_defaults(tmp_path, capsys):
    source = write_random_checkpoint(tmp_path / "in", shards=2, image_tokenizer=True)
    options = [
        "--dtype",
        "float32",
        "--prompt-prefix",
        "",
        "--negative-prompt",
        "no",
        "--guidance-scale",
        "4",
        "--height",
        "32",
    ]
    assert cli.main(["convert", str(source), str(tmp_path / "out"), *options]) == 0
    checkpoint = load_checkpoint(tmp_path / "out")
    assert (checkpoint.stored_dtype, checkpoint.image_tokenizer_path) == ("float32", tmp_path / "out" / "vq")
    assert (checkpoint.defaults.negative_prompt, checkpoint.defaults.guidance_scale) == ("no", 4.0)
    assert (checkpoint.defaults.prompt_prefix, checkpoint.defaults.height) == ("", 32)
    assert capsys.readouterr().out.startswith(str(tmp_path / "out"))


def test_converting_what_is_not_there_is_one_line(tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert "no such folder" in one_line_error(capsys)


@pytest.mark.parametrize(
    "missing, arguments",
    [
        ("simplear_engine._C", ["generate", "p", "-o", "x.png"]),
        ("tokenizers", ["generate", "p"]),
        ("PIL", ["generate", "p"]),
        ("tokenizers", ["convert", "default", "out"]),
    ],
)
def test_unusable_installation_is_one_line_and_leaves_no_file(monkeypatch, capsys, tmp_path, missing, arguments):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    told = one_line_error(capsys)
    assert missing in told and "`simplear doctor` says what to do" in told
    assert os.listdir() == []


def test_doctor_describes_the_machine_even_where_the_engine_is_not_built(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "simplear_engine._C", None)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    for word in ("Python", "CPU", "Cores", "Memory", "GPU", "Default model", "numpy", "Engine           not usable"):
        assert word in out
    assert "to do: the compiled engine cannot be loaded" in out


# The whole way, with the real engine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("cli") / "model", image_tokenizer=True, dtype="float32")


def test_doctor_names_the_kernels():
    from simplear_engine import _C

    run = simplear("doctor")
    assert run.returncode in (0, 1) and "Traceback" not in run.stderr
    assert f"Kernels chosen   {_C.chosen_isa()}" in run.stdout
    assert all(isa in run.stdout for isa in _C.available_isas())


def test_doctor_says_when_the_forced_kernels_do_not_exist():
    run = simplear("doctor", SIMPLEAR_CPU_ISA="neon")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert any(line.startswith("to do: ") and "SIMPLEAR_CPU_ISA" in line for line in run.stdout.splitlines())


def test_prompt_becomes_a_picture_that_tells_its_story(model, tmp_path):
    run = simplear("generate", "a red <|soi|> apple", "--model", model, "--seed", 7, "-o", "apple.png", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1].startswith("apple.png  seed 7  ")
    image = Image.open(tmp_path / "apple.png")
    assert image.size == (64, 64)
    story = json.loads(image.text["simplear"])
    assert (story["prompt"], story["seed"], story["steps"]) == ("a red <|soi|> apple", 7, 16)


def test_same_seed_gives_the_same_file_and_numbered_files_continue_the_seed(model, tmp_path):
    arguments = ["generate", "a cat", "--model", model, "--height", 32]
    assert simplear(*arguments, "--seed", 5, "--num-images", 3, "-o", "cats.png", cwd=tmp_path).returncode == 0
    assert simplear(*arguments, "--seed", 6, "-o", "one.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "cats-2.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert (tmp_path / "cats-1.png").read_bytes() != (tmp_path / "one.png").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--height", "100"], ["--height", "0"], ["--width", "-16"], ["--height", "1000000"], ["--num-images", "0"],
        ["--num-images", "1000000000000"],
        ["--guidance-scale", "nan"], ["--guidance-scale", "-1"], ["--temperature", "inf"], ["--temperature", "-1"],
        ["--top-k", "0"], ["--top-p", "0"], ["--top-p", "1.5"], ["--seed", "-1"], ["--dtype", "int3"],
        ["--device", "abacus"], ["--threads", "0"], ["--kv-cache-bytes", "9"], ["--model", "/nowhere"], ["--image-tokenizer", "/nowhere"],
    ],
)  # fmt: skip
def test_unusable_request_is_one_line_and_leaves_no_file(model, tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "p", "--model", str(model), "-o", "x.png", *arguments]) == 2
    assert "cannot be loaded" not in one_line_error(capsys)
    assert os.listdir(tmp_path) == []
