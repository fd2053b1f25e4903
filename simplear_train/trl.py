"""Rollouts for TRL's GRPOTrainer: the engine draws with the trainer's own parameters.

    engine = engine_on(model, folder)                      # a transformers model and the ModelFolder it came from
    GRPOTrainer(model, rewards, rollout_func=rollout_func(engine, folder), ...)

Reward functions get pictures as an extra field, `image` (uint8 [H, W, 3] each), where the folder has an image tokenizer. TRL
normalises over the whole vocabulary while the engine draws visual codes only, so its log-probabilities are lower by what
text rows would get; simplear_train.grpo has no such gap. TRL calls its interface experimental; nothing else here depends
on it.
"""

import numpy as np
import torch
from torch import nn

from simplear_engine import Engine
from simplear_engine.generated_image import to_uint8
from simplear_engine.image import CosmosTokenizer

from .live_engine import ROOM_FOR_ANY_STEP, draw_together
from .model_folder import ModelFolder


def engine_on(model: nn.Module, folder: ModelFolder, dtype: str = "auto", **options) -> Engine:
    """An engine that borrows the parameters of a transformers.Qwen2ForCausalLM; `options` go to Engine.from_weights."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tokenizer = None if folder.image_tokenizer is None else CosmosTokenizer.from_pretrained(folder.image_tokenizer)
    device = str(next(iter(weights.values())).device)
    return Engine.from_weights(
        folder.model.config, weights, defaults=folder.defaults, text=folder.text, device=device, dtype=dtype,
        image_tokenizer=tokenizer, **{"max_queue": ROOM_FOR_ANY_STEP, **options},
    )  # fmt: skip


def rollout_func(
    engine: Engine, folder: ModelFolder, *, temperature: float = 1.0, height: int | None = None,
    width: int | None = None, seed: int = 0,
):  # fmt: skip
    """The function of (prompts, trainer) that TRL calls: one picture for each entry of `prompts`, which TRL repeats itself.

    Prompts are plain captions; they are wrapped as the folder says. Without guidance, as TRL's own loss has none.
    """
    top_k, offset = folder.model.config.num_codes, folder.model.config.visual_offset

    def roll(prompts: list[str], trainer) -> dict[str, list]:
        if engine.device != "cpu":  # the optimizer's step is on torch's stream
            engine.wait_stream(torch.cuda.current_stream(engine.device))
        engine.weights_changed()
        place = (seed, trainer.state.global_step, trainer.accelerator.process_index)
        seeds = np.random.default_rng(place).integers(1 << 62, size=len(prompts))
        ids = [folder.text.encode_prompt(prompt, folder.defaults) for prompt in prompts]
        common = {"guidance_scale": 1, "temperature": temperature, "top_k": top_k, "height": height, "width": width}
        jobs = [{"prompt_ids": i, "seed": int(s), **common} for i, s in zip(ids, seeds)]
        images = [group[0] for group in draw_together(engine, jobs)]
        result = {
            "prompt_ids": ids,
            "completion_ids": [(image.tokens.reshape(-1) + offset).tolist() for image in images],
            "logprobs": [image.log_probs.reshape(-1).tolist() for image in images],
        }
        if engine.has_image_tokenizer:
            result["image"] = [to_uint8(image.pixels) for image in images]
        return result

    return roll
