"""A run that stops and goes on ends where an uninterrupted one ends, however it was cut into batches."""

import contextlib
import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from simplear_engine import Engine
from simplear_engine.checkpoint import DEFAULT_MODEL_FOLDER
from simplear_engine.errors import CheckpointError, InvalidRequestError
from simplear_train.average import average
from simplear_train.checkpoint import TrainingError, load_checkpoint, save_checkpoint
from simplear_train.config_file import config_path, read_config
from simplear_train.logs import RunLog
from simplear_train.loop import LoopConfig, learning_rate
from simplear_train.lora import LoraConfig
from simplear_train.model_folder import from_folder
from simplear_train.next_token import DataConfig, LossConfig, NextToken, SampleConfig, SourceConfig
from simplear_train.optimizers import Gains, Muon, optimizers_for, orthogonalised
from simplear_train.parallel import Share
from simplear_train.pretrain import PretrainConfig, ScratchConfig, StartConfig, pretrain, start_from
from simplear_train.sequences import CaptionConfig
from simplear_train.sft import SftConfig, sft
from simplear_train.token_shards import ShardWriter, TokenSet, sha256_of


def write_tokens(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("validation", 8)):
        with ShardWriter(folder / split, 16) as writer:
            for i in range(count):
                writer.add(rng.integers(0, 16, (2, 2)), [f"picture {i}", f"number {i}"])


def config_for(folder, **loop) -> PretrainConfig:
    if not (folder / "train").exists():
        write_tokens(folder)
    settings = dict(
        steps=12, learning_rate=1e-2, schedule="cosine", warmup_steps=2, ema_decay=0.9, compute_dtype="float32",
        log_every=1, validate_every=6, save_every=5,
    )  # fmt: skip
    return PretrainConfig(
        DataConfig(
            (SourceConfig(str(folder / "train")),), str(folder / "validation"), batch_size=8, micro_batch_size=8
        ),
        StartConfig(scratch=ScratchConfig(270, 32, 32, 2, 2, 1)),
        loop=LoopConfig(**{**settings, **loop}),
    )


def losses_of(run) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def assert_equal_states(first, second):
    for name, value in first["model"].items():
        assert torch.equal(second["model"][name], value), name
    for name, value in first["average"]["values"].items():
        assert torch.equal(second["average"]["values"][name], value), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "gains"])
def test_resumed_pretraining_equals_an_uninterrupted_run(tmp_path, one_thread, optimizer):
    config = config_for(tmp_path, optimizer=optimizer)
    pretrain(config, tmp_path / "straight", "cpu")
    pretrain(config, tmp_path / "halved", "cpu", stop_at=7)
    pretrain(config, tmp_path / "halved", "cpu", resume=True)
    straight, halved = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "halved"))
    assert straight["step"] == halved["step"] == 12
    assert_equal_states(straight, halved)
    assert losses_of(tmp_path / "halved") == losses_of(tmp_path / "straight")
    losses = losses_of(tmp_path / "straight")
    # Factors of random weights say little of pictures.
    assert len(losses) == 12 and losses[-1] < (losses[0] if optimizer == "gains" else 2.95)


def test_muon_makes_singular_values_one_and_keeps_the_singular_vectors():
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (1, 24, 40), (2, 40, 24)):
        u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        # Longest over shortest is 10; a direction much shorter than the longest would need more iterations.
        matrices = u @ torch.diag_embed(torch.linspace(1, 0.1, min(shape[1:])).expand(len(u), -1)) @ vh
        made = orthogonalised(matrices, torch.float32)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.3
        # With the singular vectors of the matrix itself, what was made is diagonal.
        between = u.mT @ made @ vh.mT
        assert (between - torch.diag_embed(between.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    # bfloat16 rounds, no more.
    assert (orthogonalised(matrices, torch.bfloat16) - made).abs().max() < 0.03


def test_muon_is_that_of_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 16), (16, 16), (24, 16), (16, 24))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        Muon(ours, 1e-2, 0.05),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # Five updates of up to 0.01 each; theirs are rounded to bfloat16.
    assert max((p - q).abs().max() for p, q in zip(ours, theirs)) < 5e-4


def test_gains_are_adam_on_the_logarithm_of_a_factor():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 24), (7,))] + [torch.nn.Parameter(torch.zeros(3))]
    starts = [p.detach().clone() for p in ours]
    factors = [torch.nn.Parameter(torch.zeros(())) for _ in ours]
    optimizers = Gains(ours, 1e-2, (0.9, 0.98)), torch.optim.Adam(factors, lr=1e-2, betas=(0.9, 0.98), eps=1e-12)
    goals = [1.1 * starts[0] + 0.1 * torch.randn(16, 24), 0.5 * starts[1], torch.ones(3)]

    def loss(values):
        return sum(((value - goal) ** 2).sum() for value, goal in zip(values, goals))

    for _ in range(20):
        for optimizer, values in zip(optimizers, (ours, [f.exp() * s for f, s in zip(factors, starts)])):
            optimizer.zero_grad()
            loss(values).backward()
            optimizer.step()
    for p, factor, start in zip(ours, factors, starts):
        torch.testing.assert_close(p, factor.exp() * start, rtol=1e-4, atol=1e-6)
    assert factors[0] > 0.05 and factors[1] < -0.15 and not ours[2].any()


def test_muon_steps_the_layers_matrices_alone_and_needs_them_whole(tmp_path):
    config = config_for(tmp_path, optimizer="muon")
    pretrain(config, tmp_path / "run", "cpu", stop_at=2)
    kept = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["optimizer"]
    by_muon = {name for name, values in kept.items() if "momentum_buffer" in values}
    assert by_muon == {name for name in kept if "layers" in name and name.endswith("proj.weight")} != set()


@pytest.mark.parametrize("optimizer", ["muon", "gains"])
def test_optimizer_that_needs_whole_parameters_is_refused_where_they_are_sharded(tmp_path, optimizer):
    config = config_for(tmp_path, optimizer=optimizer)
    sharded = replace(config, loop=replace(config.loop, sharding="fsdp2"))
    with pytest.raises(InvalidRequestError, match=f'expected "adamw" where parameters are sharded.*"{optimizer}"'):
        optimizers_for(torch.nn.Linear(2, 2), sharded.loop)


@pytest.mark.parametrize(
    "began, goes_on", [("muon", "adamw"), ("gains", "adamw"), ("adamw", "gains"), ("adamw", "muon"), ("muon", "gains")]
)
def test_a_run_does_not_go_on_with_what_another_optimizer_kept(tmp_path, began, goes_on):
    run = tmp_path / "run"
    pretrain(config_for(tmp_path, optimizer=began), run, "cpu", stop_at=2)
    with pytest.raises(TrainingError, match=f'loop.optimizer: expected "{began}", .* got "{goes_on}"'):
        pretrain(config_for(tmp_path, optimizer=goes_on), run, "cpu", resume=True)
    # Earlier checkpoints do not say whose values they hold; a run of the same optimizer goes on from them.
    state = load_checkpoint(run / "checkpoint.pt")
    del state["optimizer_kind"]
    save_checkpoint(run / "checkpoint.pt", state)
    with pytest.raises(TrainingError, match="optimizer's values of model.*: expected {'.*, found {'"):
        pretrain(config_for(tmp_path, optimizer=goes_on), run, "cpu", resume=True)
    pretrain(config_for(tmp_path, optimizer=began), run, "cpu", resume=True, stop_at=3)


def test_a_checkpoint_of_another_network_or_of_no_run_is_refused(tmp_path):
    config = config_for(tmp_path)
    pretrain(config, tmp_path / "run", "cpu", stop_at=2)
    scratch = replace(config.start.scratch, intermediate_size=64)
    with pytest.raises(TrainingError, match=r"mlp.*: expected \[64, 32\], found \[32, 32\]"):
        pretrain(replace(config, start=replace(config.start, scratch=scratch)), tmp_path / "run", "cpu", resume=True)
    for other in ({"step": 1}, [1]):
        save_checkpoint(tmp_path / "run" / "checkpoint.pt", other)
        with pytest.raises(
            TrainingError, match="checkpoint.pt: expected the checkpoint of a run, found nothing of .*model"
        ):
            pretrain(config, tmp_path / "run", "cpu", resume=True)


def rows_of(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("step_s", "elapsed_s")} for row in rows]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "where, step", [("copytree", 5), ("validate", 6), ("validate", 12), ("export", 5), ("export", 12)]
)
def test_a_run_killed_right_behind_a_checkpoint_does_what_was_left(tmp_path, monkeypatch, one_thread, where, step):
    config = config_for(tmp_path, save_every=1, keep_models=(5,))
    pretrain(config, tmp_path / "straight", "cpu")
    run = tmp_path / "killed"

    def killed(*arguments, **_):
        if where == "copytree":
            arguments[1].mkdir()
            (arguments[1] / "config.json").write_text("half")
        raise Killed

    pretrain(config, run, "cpu", stop_at=step - 1)
    with monkeypatch.context() as patch:
        if where == "copytree":
            patch.setattr("simplear_train.loop.shutil.copytree", killed)
        else:
            patch.setattr(NextToken, where, killed)
        with pytest.raises(Killed):
            pretrain(config, run, "cpu", resume=True)
    assert load_checkpoint(run / "checkpoint.pt")["step"] == step
    pretrain(config, run, "cpu", resume=True)
    assert_equal_states(*(load_checkpoint(folder / "checkpoint.pt") for folder in (tmp_path / "straight", run)))
    # Where a run stopped for this test it validated, too.
    assert [row for row in rows_of(run) if row.get("step") != step - 1 or "loss" in row] == rows_of(
        tmp_path / "straight"
    )
    for model in ("model", "model-5"):
        ours, theirs = ((folder / model / "model.safetensors").read_bytes() for folder in (run, tmp_path / "straight"))
        assert ours == theirs
    assert sorted(path.name for path in run.iterdir()) == sorted(
        path.name for path in (tmp_path / "straight").iterdir()
    )
    # And only once.
    pretrain(config, run, "cpu", resume=True)
    assert len(rows_of(run)) == len(rows_of(tmp_path / "straight")) + 1


def test_settings_that_changed_since_the_start_are_named_when_a_run_goes_on(tmp_path, caplog):
    config = config_for(tmp_path)
    pretrain(config, tmp_path / "run", "cpu", stop_at=2)
    pretrain(config, tmp_path / "run", "cpu", resume=True, stop_at=3)
    assert not caplog.records
    changed = replace(config, loop=replace(config.loop, learning_rate=5e-3))
    pretrain(changed, tmp_path / "run", "cpu", resume=True, stop_at=4)
    assert "learning_rate = 0.005" in caplog.text and "min_learning_rate" not in caplog.text


def test_micro_batches_and_packing_do_not_change_the_curve(tmp_path):
    config = config_for(tmp_path, steps=6)
    pretrain(config, tmp_path / "whole", "cpu")
    pretrain(replace(config, data=replace(config.data, micro_batch_size=3)), tmp_path / "micro", "cpu")
    pretrain(replace(config, data=replace(config.data, pack_length=40)), tmp_path / "packed", "cpu")
    for name in ("micro", "packed"):
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-4)


def test_a_pretrained_folder_is_served_and_fine_tuned_further(tmp_path):
    config = config_for(tmp_path, steps=2)
    folder = pretrain(config, tmp_path / "first", "cpu")
    with Engine.from_pretrained(str(folder), threads=1) as engine:
        image = engine.generate_from_ids(
            engine._text.encode_prompt("picture 3", engine.defaults), guidance_scale=1, seed=1
        )
        assert image[0].tokens.shape == (2, 2)
    config = SftConfig(
        config.data, str(folder), loop=replace(config.loop, learning_rate=1e-3, ema_decay=0.0, warmup_steps=0)
    )
    sft(config, tmp_path / "second", "cpu")
    assert losses_of(tmp_path / "second")[0] < losses_of(tmp_path / "first")[0]


def test_schedules_warm_up_and_end_where_they_say():
    cosine = LoopConfig(steps=100, learning_rate=1.0, min_learning_rate=0.1, schedule="cosine", warmup_steps=10)
    assert learning_rate(cosine, 4) == 0.5 and learning_rate(cosine, 10) == 1.0
    assert learning_rate(cosine, 55) == pytest.approx(0.55) and learning_rate(cosine, 100) == pytest.approx(0.1)
    assert learning_rate(replace(cosine, schedule="constant"), 99) == 1.0


def test_gradients_that_are_not_finite_are_skipped_counted_and_in_the_end_fatal(tmp_path, monkeypatch):
    from simplear_train.next_token import NextToken

    loss, calls = NextToken.loss, []

    def sometimes_nan(self, micro_batch):
        calls.append(None)
        value, parts = loss(self, micro_batch)
        return (value * float("nan") if len(calls) == 2 or len(calls) > 5 else value), parts

    monkeypatch.setattr(NextToken, "loss", sometimes_nan)
    with pytest.raises(TrainingError, match="not finite in 3 updates in a row"):
        pretrain(config_for(tmp_path, max_skipped=2), tmp_path / "run", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows if "skipped_updates" in row] == [0, 1, 1, 1, 1, 2, 3]


def test_resumed_tokenizer_training_equals_an_uninterrupted_run(tmp_path, monkeypatch, one_thread):
    import simplear_train.train_tokenizer as module

    class NoiseScenes:
        """Stands in for rendered scenes: a picture is a function of seed and number, as there."""

        def __init__(self, seed, side, *_):
            self.seed, self.side = seed, side

        def picture(self, index):
            return np.random.default_rng((self.seed, index)).integers(0, 256, (self.side, self.side, 3), np.uint8)

    monkeypatch.setattr(module, "SceneMaker", NoiseScenes)
    monkeypatch.setitem(module.WORLDS, "smoke", replace(module.WORLDS["smoke"], image_side=32))
    smoke = read_config(module.TokenizerTrainingConfig, config_path("smoke-tokenizer"))
    network = replace(smoke.network, channels=8, z_channels=8)
    config = replace(smoke, batch_size=2, network=network, loop=replace(smoke.loop, steps=6))
    module.train_tokenizer(config, tmp_path / "straight", "cpu")
    module.train_tokenizer(config, tmp_path / "halved", "cpu", stop_at=2)
    module.train_tokenizer(config, tmp_path / "halved", "cpu", resume=True)
    assert_equal_states(*(load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "halved")))
    # Sets of tokens know their tokenizer by its file: a recipe that is started again must find the same one.
    file = tmp_path / "straight" / "tokenizer.safetensors"
    before = sha256_of(file)
    for _ in range(3):
        module.train_tokenizer(config, tmp_path / "straight", "cpu", resume=True)
        assert sha256_of(file) == before


@contextlib.contextmanager
def files_may_have(num_bytes: int):
    """Writes behind that fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_clear_error_and_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    with (
        files_may_have(200_000),
        pytest.raises(TrainingError, match=f"cannot write {path}.*previous checkpoint is intact"),
    ):
        save_checkpoint(path, {"step": 2, "model": {"weight": torch.zeros(100_000)}})
    assert load_checkpoint(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_log_that_cannot_be_written_ends_the_run_with_its_name(tmp_path):
    log = RunLog(tmp_path, first_step=0)
    with files_may_have(1000), pytest.raises(TrainingError, match="cannot write .*log.jsonl"):
        for step in range(1000):
            log.write(step=step, loss=1.5)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "weight": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(TrainingError, match=f"cannot read {path}"):
        load_checkpoint(path)


def test_a_refused_second_start_changes_nothing(tmp_path):
    config = config_for(tmp_path)
    pretrain(config, tmp_path / "run", "cpu", stop_at=2)
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(InvalidRequestError, match="holds a run already"):
        pretrain(replace(config, loop=replace(config.loop, learning_rate=5e-3)), tmp_path / "run", "cpu")
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_an_average_that_begins_when_a_run_goes_on_begins_with_its_weights(tmp_path):
    config = config_for(tmp_path, ema_decay=0.0)
    pretrain(config, tmp_path / "run", "cpu")
    trained = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"]
    pretrain(replace(config, loop=replace(config.loop, ema_decay=0.9)), tmp_path / "run", "cpu", resume=True)
    average = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["average"]["values"]
    assert all(torch.equal(average[name], trained[name]) for name in average)


def test_a_start_that_came_to_nothing_leaves_no_words_behind(tmp_path):
    config, few = config_for(tmp_path), ScratchConfig(260, 32, 32, 2, 2, 1)
    lacking = replace(config, start=replace(config.start, scratch=few), sample=SampleConfig(("a cat",)))
    with pytest.raises(InvalidRequestError, match="sample.prompts"):
        pretrain(lacking, tmp_path / "run", "cpu")
    folders = [pretrain(config, tmp_path / name, "cpu", stop_at=1) for name in ("run", "fresh")]
    first, second = (from_folder(str(folder)).model.config.visual_offset for folder in folders)
    assert first == second > 260 + 7


def test_a_folder_that_does_not_say_how_it_likes_to_be_asked_takes_the_configs_word(tmp_path):
    shutil.copytree(DEFAULT_MODEL_FOLDER, tmp_path / "model")
    start = StartConfig("model", str(tmp_path / "model"), prompt_prefix="an emoji of ", guidance_scale=3.0, top_k=7)
    default_tokens(tmp_path)
    tokens = TokenSet(tmp_path / "default")
    assert start_from(start, tokens, tmp_path).defaults == from_folder("default").defaults
    (tmp_path / "model" / "simplear.json").unlink()
    defaults = start_from(start, tokens, tmp_path).defaults
    assert (defaults.prompt_prefix, defaults.guidance_scale, defaults.top_k) == ("an emoji of ", 3.0, 7)
    assert (defaults.height, defaults.width) == (128, 128)


def test_words_keep_their_ids_when_captions_come_along(tmp_path):
    config = config_for(tmp_path)
    pretrain(config, tmp_path / "run", "cpu", stop_at=2)
    before = (tmp_path / "run" / "model" / "tokenizer.json").read_text()
    with ShardWriter(tmp_path / "train", 16, first=1) as writer:
        for i in range(60):
            writer.add(np.zeros((2, 2), np.int32), [f"quite another zebra {i}"])
    pretrain(config, tmp_path / "run", "cpu", resume=True, stop_at=3)
    assert json.loads((tmp_path / "run" / "model" / "tokenizer.json").read_text()) == json.loads(before)


def test_what_validation_would_stumble_over_is_found_before_the_first_step(tmp_path):
    config = config_for(tmp_path)
    with ShardWriter(tmp_path / "other", 4096) as writer:
        writer.add(np.full((2, 2), 4000), ["codes of another tokenizer"])
    with pytest.raises(InvalidRequestError, match="4096 codes, but the model draws 16"):
        pretrain(replace(config, data=replace(config.data, validation=str(tmp_path / "other"))), tmp_path / "a", "cpu")
    with pytest.raises(InvalidRequestError, match="sample.prompts: a model without an image tokenizer"):
        pretrain(replace(config, sample=SampleConfig(("a cat",))), tmp_path / "b", "cpu")
    # An image tokenizer of other codes, or none in its folder.
    (tmp_path / "empty").mkdir()
    for folder, error, message in (
        (DEFAULT_MODEL_FOLDER / "vq", InvalidRequestError, "vq: 4096 codes, but the model draws 16"),
        (tmp_path / "empty", CheckpointError, "empty: holds neither tokenizer.safetensors"),
    ):
        with pytest.raises(error, match=message):
            pretrain(replace(config, start=replace(config.start, image_tokenizer=str(folder))), tmp_path / "c", "cpu")
    assert not any((tmp_path / name / "log.jsonl").exists() for name in "abc")


@pytest.mark.parametrize(
    "wording, styles, length", [("any", "none", 36), ("long", "none", 12), ("any", "simplear", 77)]
)
def test_a_sample_longer_than_the_model_may_draw_is_found_before_the_first_step(tmp_path, wording, styles, length):
    with ShardWriter(tmp_path / "tokens", 16) as writer:
        for i in range(9):
            writer.add(np.full((2, 2), i), ["x" * (30 if i == 7 else 3), "second"])
    config, captions = config_for(tmp_path), CaptionConfig(wording, styles, drop=0.0)

    def run(out: str, positions: int, sampling: str = "all"):
        sources = (SourceConfig(str(tmp_path / "tokens"), sampling),)
        data = replace(config.data, sources=sources, validation=None, captions=captions, batch_size=2)
        # Of bytes alone, so that a caption's tokens can be counted.
        scratch = replace(config.start.scratch, text_vocab_size=256, max_position_embeddings=positions)
        changed = replace(config, data=data, start=replace(config.start, scratch=scratch))
        return pretrain(changed, tmp_path / out, "cpu", stop_at=1)

    message = rf"tokens: sample \d: expected at most the model's {length - 1} positions, got {length} tokens"
    with pytest.raises(InvalidRequestError, match=message):
        run("refused", length - 1)
    assert not (tmp_path / "refused" / "log.jsonl").exists()
    run("fits", length)
    if wording == "any":
        run("chosen", length - 1, "first:7")


def test_a_validation_that_fails_loses_no_step(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(NextToken, "validate", fail)
    with pytest.raises(ZeroDivisionError):
        pretrain(config_for(tmp_path, save_every=6), tmp_path / "run", "cpu")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 6


def test_processes_that_could_not_keep_step_are_refused(tmp_path):
    folder = from_folder("default")
    config = replace(config_for(tmp_path).data, validation=None)
    for batch_size, sharding, expected in ((5, "fsdp2", "a multiple of 2"), (1, "none", "at least 2")):
        with pytest.raises(InvalidRequestError, match=f"batch_size: expected {expected}"):
            NextToken(
                "sft", folder, replace(config, batch_size=batch_size, sources=(default_tokens(tmp_path),)), LossConfig(),
                SampleConfig(), LoopConfig(sharding=sharding), tmp_path, "cpu", Share(0, 2),
            )  # fmt: skip


def default_tokens(folder) -> SourceConfig:
    """A few pictures in the default model's codes."""
    if not (folder / "default").exists():
        with ShardWriter(folder / "default", 4096) as writer:
            for i in range(8):
                writer.add(np.full((8, 8), i), ["a cat"])
    return SourceConfig(str(folder / "default"))


def test_a_value_that_is_no_number_is_null_in_the_log(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write(step=1, reward=float("nan"), loss=float("inf"))
    log.close()
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["reward"] is None and line["loss"] is None


def test_adapters_are_not_trained_by_factors(tmp_path):
    data = DataConfig((default_tokens(tmp_path),), batch_size=4, micro_batch_size=4)
    config = SftConfig(data, lora=LoraConfig(rank=2), loop=LoopConfig(steps=1, optimizer="gains"))
    with pytest.raises(
        InvalidRequestError, match='loop.optimizer: expected "adamw" or "muon" where lora.rank is not 0'
    ):
        sft(config, tmp_path / "run", "cpu")


def test_models_on_the_way_are_kept_and_averaged(tmp_path):
    config = config_for(tmp_path, keep_models=(5,))
    pretrain(config, tmp_path / "run", "cpu")
    names = [tmp_path / "run" / name for name in ("model-5", "model")]
    average([str(name) for name in names], tmp_path / "mean")
    early, late, mean = (from_folder(str(folder)).model.state_dict() for folder in (*names, tmp_path / "mean"))
    for name, value in mean.items():
        assert torch.equal(value, ((early[name] + late[name]) / 2).bfloat16().float()) and not torch.equal(
            value, late[name]
        )
    with Engine.from_pretrained(tmp_path / "mean", threads=1) as engine:
        assert engine.generate("picture 1", height=32, width=32)[0].tokens.shape == (2, 2)
    with pytest.raises(InvalidRequestError, match="expected weights of the same names and shapes"):
        average(["default", str(names[0])], tmp_path / "other")
    for step in (6, 0, 15):
        with pytest.raises(
            InvalidRequestError, match=rf"keep_models: expected multiples of save_every in 1..12, got {step}"
        ):
            config_for(tmp_path, keep_models=(step,))
