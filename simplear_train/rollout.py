"""Pictures to learn from: prompts of a step, drawn in groups by an engine on the live parameters.

What is drawn is a function of (seed, step) and the parameters: prompts come in an order of the epoch's own, and every
group has noise of its own, however many processes share the step. Nothing here knows of rewards or losses.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simplear_engine.errors import InvalidRequestError
from simplear_engine.generated_image import to_uint8

from .config_file import COUNT, NOT_NEGATIVE, POSITIVE, check_values
from .live_engine import LiveEngine, draw_together
from .model_folder import ModelFolder


@dataclass(frozen=True)
class RolloutConfig:
    """How pictures are drawn. prompts: a file, one prompt a line (plain text, or JSON objects with a key "prompt").
    prompt_prefix, height, width: instead of the model folder's own; prompt_prefix goes before every prompt and
    is not shown to rewards. top_k 0: all codes. engine_dtype: "auto" for the loop's compute_dtype. max_pairs: pictures in
    flight; threads 0: physical cores, in equal parts where several processes train on a machine. draft_window:
    speculation, which changes no token."""

    prompts: str
    prompts_per_step: int = 16
    group_size: int = 8
    prompt_prefix: str | None = None
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    height: int | None = None
    width: int | None = None
    max_pairs: int = 32
    threads: int = 0
    draft_window: int = 1
    engine_dtype: str = "auto"

    def __post_init__(self):
        check_values(
            self, "rollout", prompts_per_step=COUNT, group_size=("at least 2 to compare", lambda value: value >= 2),
            guidance_scale=NOT_NEGATIVE, temperature=POSITIVE, top_k=NOT_NEGATIVE, max_pairs=COUNT,
            threads=NOT_NEGATIVE, draft_window=COUNT,
        )  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """Pictures of one step of one process, groups standing together."""

    prompts: list[str]  # [N]
    prompt_ids: list[tuple[int, ...]]
    codes: np.ndarray  # int32 [N, h * w]
    log_probs: np.ndarray  # float32 [N, h * w], of the distribution that the engine drew from
    images: np.ndarray  # uint8 [N, H, W, 3]
    seconds: dict[str, float]


def read_prompts(path: Path) -> list[str]:
    """Every line's prompt. A line that is none is an error that names it: nobody would miss it in a reward curve."""
    prompts, faults = [], []
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InvalidRequestError(f"{path}: expected a file of prompts: {error.strerror}") from None
    # Only "\n" ends a line: other marks that Python ends lines at stand in prompts, too.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        prompt = line.strip()
        if prompt.startswith("{"):
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError) as error:
                faults.append(f"line {number}: {type(error).__name__}: {error}")
                continue
        if not isinstance(prompt, str) or not prompt.strip() or "\ufffd" in prompt:
            faults.append(f"line {number}: expected UTF-8 text, found {prompt!r:.60}")
            continue
        prompts.append(prompt)
    if faults:
        raise InvalidRequestError(f"{path}: {len(faults)} of its lines hold no prompt:\n  " + "\n  ".join(faults[:10]))
    if not prompts:
        raise InvalidRequestError(f"{path}: holds no prompts")
    return prompts


class PromptStream:
    """Prompts of a step as a function of (seed, step): every prompt once an epoch, in an order of the epoch's own."""

    def __init__(self, prompts: list[str], per_step: int, seed: int):
        self.prompts, self.per_step, self.seed = prompts, per_step, seed

    def at(self, step: int) -> list[str]:
        first = step * self.per_step
        return [self._at(i) for i in range(first, first + self.per_step)]

    def _at(self, i: int) -> str:
        epoch, place = divmod(i, len(self.prompts))
        return self.prompts[np.random.default_rng((self.seed, epoch)).permutation(len(self.prompts))[place]]


class Roller:
    """Draws groups with a live engine."""

    def __init__(self, folder: ModelFolder, config: RolloutConfig, compute_dtype: str, seed: int):
        self.folder, self.config, self.seed = folder, config, seed
        self.live = LiveEngine(
            folder, compute_dtype if config.engine_dtype == "auto" else config.engine_dtype,
            config.threads or None, config.max_pairs,
        )  # fmt: skip
        if not self.live.engine.has_image_tokenizer:
            raise InvalidRequestError("start: the model folder holds no vq/, so there are no pictures to judge")
        prefix = folder.defaults.prompt_prefix if config.prompt_prefix is None else config.prompt_prefix
        self.prefix = prefix
        self.negative_ids = tuple(folder.text.encode_negative(folder.defaults.negative_prompt, folder.defaults))

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        text, defaults = self.folder.text, self.folder.defaults
        ids = text.encode_text(self.prefix + prompt)
        return (text.control_id(defaults.prompt_begin), *ids, text.control_id(defaults.prompt_end))

    def draw(self, prompts: list[str], step: int, first_slot: int) -> Rollout:
        """`first_slot` numbers the step's prompts over all processes, so that no two groups share their noise."""
        config, began = self.config, time.perf_counter()
        self.live.refresh()
        ids = [self.prompt_ids(prompt) for prompt in prompts]

        seeds = [
            np.random.default_rng((self.seed, step, first_slot + slot)).integers(1 << 62) for slot in range(len(ids))
        ]
        common = {
            "negative_ids": self.negative_ids if config.guidance_scale != 1 else None, "num_images": config.group_size,
            "guidance_scale": config.guidance_scale, "temperature": config.temperature,
            "top_k": config.top_k or self.folder.model.config.num_codes, "height": config.height, "width": config.width,
        }  # fmt: skip
        if config.draft_window > 1:
            common |= {"speculation": "jacobi", "draft_window": config.draft_window}
        jobs = [{"prompt_ids": i, "seed": int(seed), **common} for i, seed in zip(ids, seeds)]
        drawn = [image for images in draw_together(self.live.engine, jobs) for image in images]
        drawn_at = time.perf_counter()
        pixels = np.stack([to_uint8(image.pixels) for image in drawn])
        self.live.release()
        return Rollout(
            prompts=[prompt for prompt in prompts for _ in range(config.group_size)],
            prompt_ids=[i for i in ids for _ in range(config.group_size)],
            codes=np.stack([image.tokens.reshape(-1) for image in drawn]),
            log_probs=np.stack([image.log_probs.reshape(-1) for image in drawn]),
            images=pixels,
            seconds={"rollout": drawn_at - began, "decode": time.perf_counter() - drawn_at},
        )
