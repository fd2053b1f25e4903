"""A reward behind HTTP: pictures go to a service of yours, scores come back.

    [[rewards]]
    name = "http"
    options = { url = "http://localhost:8300/score", timeout_s = 60 }

The request is POST with JSON {"prompts": [N strings], "images": [N base64 PNGs]}, the answer {"scores": [N numbers or
null]}; null becomes NaN, "no answer". A service that is slow, dead, or answers anything else raises: the training
step counts it as a failure, and nothing is made up.
"""

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np

from simplear_engine.errors import InvalidRequestError


class ServiceError(RuntimeError):
    """The service did not give N scores."""


class HttpReward:
    def __init__(self, url: str, timeout_s: float = 60.0):
        if not url.startswith(("http://", "https://")):
            raise InvalidRequestError(f"url: expected http:// or https://, got {url!r}")
        self.url, self.timeout_s = url, timeout_s

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        body = json.dumps({"prompts": list(prompts), "images": [as_png(image) for image in images]}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                answer = json.load(response)
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            raise ServiceError(f"{self.url}: {error}") from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(prompts):
            found = f"{len(scores)} scores" if isinstance(scores, list) else f"{answer!r:.60}"
            raise ServiceError(f'{self.url}: expected {{"scores": [{len(prompts)} numbers]}}, got {found}')
        if not all(s is None or (isinstance(s, (int, float)) and not isinstance(s, bool)) for s in scores):
            raise ServiceError(f"{self.url}: expected numbers or null, got {scores!r:.60}")
        return np.array([np.nan if s is None else s for s in scores], np.float32)


def as_png(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
