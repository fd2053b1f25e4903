"""Inference engine for autoregressive text-to-image models.

    from simplear_engine import Engine
    Engine.from_pretrained("default").generate("a red apple", seed=7)[0].save("apple.png")

Importing this package loads NumPy and nothing heavier; everything else is loaded when it is first needed.
"""

from simplear_engine.engine import Engine
from simplear_engine.errors import (
    CancelledError,
    CapacityError,
    CheckpointError,
    InvalidRequestError,
    NumericalError,
    QueueFullError,
    SimplearError,
    UnsupportedError,
)
from simplear_engine.generated_image import GeneratedImage

__all__ = [
    "CancelledError",
    "CapacityError",
    "CheckpointError",
    "Engine",
    "GeneratedImage",
    "InvalidRequestError",
    "NumericalError",
    "QueueFullError",
    "SimplearError",
    "UnsupportedError",
]
