"""How pleasing a picture is, whatever its prompt: the LAION aesthetic head on CLIP's image vector.

    [[rewards]]
    name = "aesthetic"
    options = { folder = "weights/clip-vit-large-patch14", head = "weights/aesthetic.safetensors" }

`head` holds one linear layer, or LAION's stack of them without activations, as weight and bias by turns; a stack
without activations is one linear map, so it is multiplied out. The score is LAION's 1..10 scale. Alone it drives a
model to one pretty picture for every prompt: add it to a reward that reads the prompt.
"""

import re
from pathlib import Path

import numpy as np

from simplear_engine.errors import CheckpointError

from .clip import ClipReward, read_weights


def as_one_layer(tensors: dict, path: Path):
    """(weight [1, D], bias [1]) of linear layers in the order of the numbers in their names."""
    names = sorted((n for n in tensors if n.endswith("weight")), key=lambda n: [int(d) for d in re.findall(r"\d+", n)])
    if not names:
        raise CheckpointError(
            f"{path}: expected tensors that end in 'weight', got {', '.join(sorted(tensors)[:4]) or 'none'}"
        )
    weight = bias = None
    for name in names:
        w, b = tensors[name].float(), tensors[name.removesuffix("weight") + "bias"].float()
        if weight is not None and w.shape[1] != weight.shape[0]:
            raise CheckpointError(f"{path}: {name}: expected {weight.shape[0]} inputs, got {w.shape[1]}")
        weight, bias = (w, b) if weight is None else (w @ weight, w @ bias + b)
    if weight.shape[0] != 1:
        raise CheckpointError(f"{path}: expected one output, got {weight.shape[0]}")
    return weight, bias


class AestheticReward(ClipReward):
    def __init__(self, folder: str, head: str, device: str = "cpu", batch_size: int = 32, allow_pickle: bool = False):
        super().__init__(folder, device, batch_size)
        self.weight, self.bias = (
            t.to(device) for t in as_one_layer(read_weights(Path(head), allow_pickle), Path(head))
        )

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.empty(len(prompts), np.float32)
        functional = self.torch.nn.functional
        with self.torch.no_grad():
            for begin in range(0, len(prompts), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                inputs = self.processor(images=list(images[part]), return_tensors="pt").to(self.device)
                features = self.model.get_image_features(**inputs)
                features = getattr(features, "pooler_output", features)  # newer transformers wrap the vector
                vectors = functional.normalize(features.float(), dim=-1)
                scores[part] = functional.linear(vectors, self.weight, self.bias)[:, 0].cpu().numpy()
        return scores
