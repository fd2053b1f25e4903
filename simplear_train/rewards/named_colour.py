"""How much of what is vivid in a picture has the colour that its prompt names: a reward without weights.

It knows six hues and nothing of things, so it is soon satisfied by a blot. It is there to see reinforcement work in a
minute (the smoke recipe), and as the smallest example of a reward.
"""

import numpy as np

from ..concepts import COLOURS

HUE_TOLERANCE = 30.0  # degrees


class NamedColourReward:
    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        """Share in 0..1 of vivid pixels within 30 degrees of the first colour named; NaN where none is named."""
        return np.array([self._score(p, image) for p, image in zip(prompts, images)], np.float32)

    def _score(self, prompt: str, image: np.ndarray) -> float:
        named = [word for word in prompt.lower().replace(",", " ").split() if word in COLOURS]
        if not named:
            return np.nan
        from PIL import Image

        hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(image).convert("HSV"), np.float32), -1, 0)
        vivid = (saturation > 100) & (value > 50)
        if not vivid.any():
            return 0.0
        distance = np.abs((hue[vivid] * (360 / 255) - COLOURS[named[0]][0] + 180) % 360 - 180)
        return float((distance < HUE_TOLERANCE).mean())
