"""Low-rank adapters through peft: small matrices are trained, the model itself stays as it is.

The engine and the saved model folder get merged weights, W + (alpha / rank) B A; the adapter alone goes to a folder in peft's
own layout, which PeftModel.from_pretrained puts on the same model in transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from simplear_engine.errors import InvalidRequestError

from .checkpoint import TrainingError
from .config_file import BELOW_ONE, NOT_NEGATIVE, POSITIVE, check_values

BASE, A, B = ".base_layer.", ".lora_A.default.", ".lora_B.default."


@dataclass(frozen=True)
class LoraConfig:
    """rank 0: no adapters, all weights are trained."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self):
        check_values(self, "lora", rank=NOT_NEGATIVE, alpha=POSITIVE, dropout=BELOW_ONE)


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Wraps the target layers in place and freezes everything else."""
    try:
        import peft
    except ImportError as error:
        raise TrainingError("lora.rank: adapters need peft: pip install peft") from error
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(config.targets) - linear):
        raise InvalidRequestError(
            f"lora.targets: expected some of {', '.join(sorted(linear))}; got {', '.join(unknown)}"
        )
    model.requires_grad_(False)
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    peft.inject_adapter_in_model(settings, model)


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Canonical names from those of a model with adapters; a weight without one is handed on as it is."""
    result = {}
    for name, value in weights.items():
        if A in name or B in name:
            continue
        adapter = name.replace(BASE, A)
        if BASE in name and adapter in weights:
            low, high = weights[adapter], weights[name.replace(BASE, B)]
            value = value + (config.alpha / config.rank) * (high @ low).to(value.dtype)
        result[name.replace(BASE, ".")] = value
    return result


def save_adapter(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, base: str) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": value.contiguous()
        for name, value in weights.items()
        if A in name or B in name
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    entry = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": list(config.targets),
        "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(entry, indent=2) + "\n")
