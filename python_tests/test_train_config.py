"""Configs say everything, and say it right."""

import json
import re
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")

from simplear_engine.errors import InvalidRequestError
from simplear_train.config_file import CONFIGS, config_path, from_dict, read_config, to_toml
from simplear_train.distil import DistilConfig
from simplear_train.grpo import GrpoConfig
from simplear_train.pretrain import PretrainConfig
from simplear_train.recipe import commands
from simplear_train.refine_decoder import DecoderConfig
from simplear_train.rewards import REWARDS, RewardConfig
from simplear_train.sft import SftConfig
from simplear_train.train_tokenizer import TokenizerTrainingConfig

SCHEMAS = {
    "pretrain": PretrainConfig, "sft": SftConfig, "grpo": GrpoConfig, "tokenizer": TokenizerTrainingConfig,
    "decoder": DecoderConfig, "distil": DistilConfig,
}  # fmt: skip


def schema_of(path):
    return next(schema for stage, schema in SCHEMAS.items() if f"-{stage}" in path.stem)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_of_the_package_is_valid_and_survives_being_written_out(path, tmp_path):
    config = read_config(schema_of(path), path)
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert read_config(schema_of(path), tmp_path / "again.toml") == config
    for reward in getattr(config, "rewards", ()):
        assert reward.name in REWARDS


@pytest.mark.parametrize("name", ["smoke", "small", "default"])
def test_recipes_train_with_configs_that_there_are_on_what_an_earlier_stage_wrote(name):
    written = set()
    for module, arguments in commands(name):
        assert find_spec(f"simplear_train.{module}")
        if module == "average":
            assert {path.split("/")[0] for path in arguments[1:3]} <= written
            written.add(arguments[-1].split("/")[0])
            continue
        pairs = [argument for argument in arguments if argument != "--resume"]
        named = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if "--config" in named:
            read_config(SCHEMAS[module.removeprefix("train_").removeprefix("refine_")], config_path(named["--config"]))
        if "--set" in named:
            assert named["--set"].removeprefix("start=").split("/")[0] in written
        written.add(named.get("--out"))
    assert {"pretrain", "sft", "grpo"} <= written


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_simplears_values_are_the_papers(size):
    pretrain = read_config(PretrainConfig, config_path(f"simplear-{size}-pretrain-512"))
    sft = read_config(SftConfig, config_path(f"simplear-{size}-sft-1024"))
    grpo = read_config(GrpoConfig, config_path(f"simplear-{size}-grpo-1024"))
    assert (pretrain.loop.learning_rate, sft.loop.learning_rate, grpo.loop.learning_rate) == (1e-4, 2e-5, 1e-6)
    assert pretrain.data.batch_size == sft.data.batch_size == 256
    for stage in (pretrain, sft):
        assert stage.loss.rows == "all" and stage.data.captions.drop == 0.1 and stage.data.captions.styles == "simplear"
        assert (stage.loop.schedule, stage.loop.weight_decay, stage.loop.decay) == ("constant", 0.01, "but_biases")
    assert (grpo.rollout.prompts_per_step, grpo.rollout.group_size, grpo.objective.beta) == (7, 4, 0.04)
    assert grpo.rollout.prompt_prefix == "A photo of " and grpo.rollout.guidance_scale == 1


GOOD = "[[data.sources]]\nfolder = 'a'\n"


def write(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD + "[loop]\nlearningrate = 1e-4", r"unknown key loop.learningrate; did you mean loop.learning_rate\?"),
        (GOOD + "[loop]\nsteps = 1.5", "loop.steps: expected an integer, found 1.5"),
        (GOOD + "[loop]\nsteps = true", "loop.steps: expected an integer, found True"),
        (GOOD + '[loop]\nschedule = "linear"', 'loop.schedule: expected "constant" or "cosine"'),
        ("data = 3", "data: expected a table, found 3"),
        ("", "data: expected a table, found nothing"),
        ("[data]\nsources = [{sampling = 'all'}]", r"data.sources\[0\].folder: expected a string, found nothing"),
        ("steps = ", "not TOML"),
    ],
)
def test_a_wrong_config_is_an_error_that_names_the_key(tmp_path, text, message):
    with pytest.raises(InvalidRequestError, match=message):
        read_config(SftConfig, write(tmp_path, text))


@pytest.mark.parametrize(
    "schema, setting",
    [
        *((PretrainConfig, f"loop.{name}={value}") for name, value in (
            ("steps", 0), ("log_every", 0), ("validate_every", 0), ("save_every", -1), ("clip_norm", 0.0),
            ("clip_norm", "nan"), ("learning_rate", -1.0), ("learning_rate", "inf"), ("min_learning_rate", "nan"),
            ("weight_decay", -0.1), ("warmup_steps", -5), ("beta1", 1.0), ("beta2", 2.0), ("ema_decay", 1.5),
            ("ema_decay", "nan"), ("max_skipped", -1), ("seed", -1), ("seed", 1 << 63),
        )),
        *((PretrainConfig, setting) for setting in (
            "data.sources=[]", "data.batch_size=0", "data.micro_batch_size=0", "data.pack_length=-1",
            "data.captions.drop=1.1", "data.captions.drop=-1", "data.captions.drop=nan", "loss.text_weight=-1",
            "sample.guidance_scale=-1", "start.guidance_scale=nan", "start.top_k=0", "start.scratch.text_vocab_size=255",
            "start.scratch.num_layers=0", "start.scratch.num_kv_heads=0", "start.scratch.num_heads=3",
            "start.scratch.hidden_size=36",
        )),
        *((SftConfig, f"lora.{name}={value}") for name, value in (("rank", -3), ("alpha", 0), ("dropout", 1))),
        (DistilConfig, "teacher.guidance_scale=-1"), (DistilConfig, "teacher.top_k=-1"),
        *((GrpoConfig, setting) for setting in (
            "rollout.prompts_per_step=0", "rollout.group_size=1", "rollout.temperature=0", "rollout.temperature=inf",
            "rollout.top_k=-1", "rollout.guidance_scale=-1", "rollout.max_pairs=0", "rollout.threads=-1",
            "rollout.draft_window=0", "objective.beta=-0.1", "objective.clip_low=-0.1", "objective.clip_high=nan",
            "objective.importance_cap=-1", "updates=0", "micro_batch_size=0", "max_reward_failures=0",
            "objective_guidance=-1",
        )),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_named(tmp_path, schema, setting):
    text = "[rollout]\nprompts = 'p'\n[[rewards]]\nname = 'clip'\n" if schema is GrpoConfig else GOOD
    name, value = setting.split("=")
    with pytest.raises(InvalidRequestError, match=rf"^{re.escape(name)}: expected .*, got "):
        read_config(schema, write(tmp_path, text), (setting,))


def test_limits_that_are_none_are_values_too(tmp_path):
    config = read_config(SftConfig, write(tmp_path, GOOD), ("loop.clip_norm=inf", "data.captions.drop=1"))
    assert "clip_norm = inf" in to_toml(config) and config.data.captions.drop == 1


def test_single_values_are_replaced_from_the_command_line(tmp_path):
    path = write(tmp_path, GOOD)
    settings = ("loop.steps=7", "start=my/folder", "data.sources=[{folder='b'}]", "loop.report_to=['wandb']")
    config = read_config(SftConfig, path, settings)
    assert (config.loop.steps, config.start, config.data.sources[0].folder) == (7, "my/folder", "b")
    assert config.loop.report_to == ("wandb",)
    with pytest.raises(InvalidRequestError, match="expected table.key=value"):
        read_config(SftConfig, path, ("loop.steps",))


def test_any_text_survives_being_written_out(tmp_path):
    config = RewardConfig('"\\ \x7f \u2028 \t \x00', options={"a \x7f b": ["\x7f"]})
    assert read_config(RewardConfig, write(tmp_path, to_toml(config))) == config


def test_an_unknown_config_name_lists_those_that_exist():
    with pytest.raises(InvalidRequestError, match="default-sft"):
        config_path("no-such-config")


def test_whole_numbers_are_numbers():
    assert (
        from_dict(
            SftConfig, {"data": {"sources": [{"folder": "a"}]}, "loop": {"learning_rate": 1}}, "x"
        ).loop.learning_rate
        == 1.0
    )


def test_missing_matplotlib_is_said_in_one_line_before_a_log_is_read(tmp_path, monkeypatch):
    from simplear_train import plot_training

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(
        "sys.argv", ["plot_training", "--stage", "sft=no-such-log", "--out", str(tmp_path / "plot.png")]
    )
    with pytest.raises(SystemExit, match=r"^UnsupportedError: .*pip install 'simplear-engine\[bench\]'$"):
        plot_training.main()


def test_training_is_plotted_with_a_panel_for_each_log(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from simplear_train import plot_training

    sft = [{"step": i, "visual_loss": 2 - i / 50, "validation": 1.0, "validation_unconditional": 2.0} for i in range(9)]
    grpo = [{"step": i, "reward": i / 50 if i != 3 else None} for i in range(9)]
    for name, rows in (("sft", [{"parameters": 5}, *sft]), ("grpo", grpo)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def width(*stages):
        arguments = [word for stage in stages for word in ("--stage", f"{stage}={tmp_path / stage}")]
        monkeypatch.setattr("sys.argv", ["plot_training", *arguments, "--out", str(tmp_path / "plot.png")])
        plot_training.main()
        with Image.open(tmp_path / "plot.png") as picture:
            return picture.width

    assert width("sft", "grpo") == 2 * width("grpo")
    monkeypatch.setattr("sys.argv", ["plot_training", "--stage", "sft", "--out", "x.png"])
    with pytest.raises(SystemExit):
        plot_training.main()
