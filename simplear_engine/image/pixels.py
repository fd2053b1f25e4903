"""Between images [B, 3, H, W] and the patch grid that the network works on [B, H/P, W/P, (y, x, rgb)]."""

import numpy as np


def image_to_patches(images: np.ndarray, patch: int) -> np.ndarray:
    batch, colours, height, width = images.shape
    x = images.reshape(batch, colours, height // patch, patch, width // patch, patch)
    return np.ascontiguousarray(x.transpose(0, 2, 4, 3, 5, 1)).reshape(batch, height // patch, width // patch, -1)


def patches_to_image(patches: np.ndarray, patch: int) -> np.ndarray:
    batch, rows, columns, channels = patches.shape
    x = patches.reshape(batch, rows, columns, patch, patch, channels // patch**2)
    return x.transpose(0, 5, 1, 3, 2, 4).copy(order="C").reshape(batch, -1, rows * patch, columns * patch)
