"""CLIP-type rewards on published weights: open_clip's towers, transformers', and HPSv2, which is open_clip refined.

    [[rewards]]
    name = "clip"
    options = { folder = "weights/clip-vit-h-14" }                                          # transformers' layout

    [[rewards]]
    name = "open_clip"
    options = { architecture = "ViT-H-14", weights = "weights/open_clip_model.safetensors" }

    [[rewards]]
    name = "hpsv2"
    options = { weights = "weights/HPS_v2.1.safetensors" }

The score is the cosine of text and picture, without CLIP's factor of 100. Captions go in as they are. The original
implementation strips its control tokens with str.strip, which removes characters and not words, so that "two tigers"
is judged as "wo tiger" and the evidence for a number is gone; here rewards never see a control token. Nothing is
downloaded; weights are files of yours, and pickles, which can run code, are refused unless `allow_pickle` says
otherwise.
"""

from pathlib import Path

import numpy as np

from simplear_engine.errors import CheckpointError

from .packages import need

# OpenAI's, which open_clip's ViT-H-14 and HPSv2 share.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def cosine(torch, image_features, text_features) -> np.ndarray:
    normalise = torch.nn.functional.normalize
    return (normalise(image_features.float(), dim=-1) * normalise(text_features.float(), dim=-1)).sum(-1).cpu().numpy()


def pixels_for_clip(torch, images: np.ndarray, side: int, device: str):
    """float32 [N, 3, side, side], resized as SimpleAR does it: bilinear without antialiasing."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def read_weights(path: Path, allow_pickle: bool) -> dict:
    torch = need("torch", "clip")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file with a CLIP's weights")
    if path.suffix == ".safetensors":
        return need("safetensors.torch", "clip", "safetensors").load_file(str(path))
    if not allow_pickle:
        raise CheckpointError(
            f"{path}: expected a .safetensors file; a pickle can run code when it is read: convert it, or set "
            "allow_pickle = true if you trust where it comes from"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


class OpenClipReward:
    def __init__(
        self, weights: str, architecture: str = "ViT-H-14", device: str = "cpu", batch_size: int = 32,
        allow_pickle: bool = False,
    ):  # fmt: skip
        self.torch, open_clip = need("torch", "open_clip"), need("open_clip", "open_clip", "open_clip_torch")
        self.model = open_clip.create_model(architecture, pretrained=None)
        self.model.load_state_dict(read_weights(Path(weights), allow_pickle))
        self.model.to(device).eval().requires_grad_(False)
        self.tokenize = open_clip.get_tokenizer(architecture)
        size = self.model.visual.image_size
        self.side = size[0] if isinstance(size, tuple) else size
        self.device, self.batch_size = device, batch_size

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.empty(len(prompts), np.float32)
        with self.torch.no_grad():
            for begin in range(0, len(prompts), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                pictures = self.model.encode_image(pixels_for_clip(self.torch, images[part], self.side, self.device))
                texts = self.model.encode_text(self.tokenize(list(prompts[part])).to(self.device))
                scores[part] = cosine(self.torch, pictures, texts)
        return scores


class HpsV2Reward(OpenClipReward):
    """Human preference score v2 or v2.1: the same towers, fine-tuned."""

    def __init__(self, weights: str, device: str = "cpu", batch_size: int = 32, allow_pickle: bool = False):
        super().__init__(weights, "ViT-H-14", device, batch_size, allow_pickle)


class ClipReward:
    """Any folder that transformers' AutoModel reads as CLIP or SigLIP; PickScore has this layout too."""

    def __init__(self, folder: str, device: str = "cpu", batch_size: int = 32):
        self.torch, transformers = need("torch", "clip"), need("transformers", "clip")
        if not Path(folder).is_dir():
            raise CheckpointError(f"{folder}: expected a folder with a CLIP model in transformers' layout")
        try:
            self.model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: transformers reads no CLIP model from it: {error}") from error
        self.model.to(device).eval().requires_grad_(False)
        self.device, self.batch_size = device, batch_size

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        scores = np.empty(len(prompts), np.float32)
        with self.torch.no_grad():
            for begin in range(0, len(prompts), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                inputs = self.processor(
                    text=list(prompts[part]), images=list(images[part]), return_tensors="pt", padding="max_length",
                    truncation=True,
                ).to(self.device)  # fmt: skip
                outputs = self.model(**inputs)
                scores[part] = cosine(self.torch, outputs.image_embeds, outputs.text_embeds)
        return scores
