"""The Haar patcher as matrices, so that it can be folded into the convolution beside it.

A patch of P x P pixels and its P*P wavelet bands are two bases of the same space, so "transform, then convolve" is
one convolution with other weights. Written with the factors cancelled, analysis of a 2x2 block is +-sums over four
and synthesis is plain +-sums. The two families order the bands differently; here is the only place that knows.
"""

import numpy as np

# Signs of the four pixels (row-major) in each band: low, high along width, high along height, diagonal.
_LOW, _WIDTH, _HEIGHT, _DIAGONAL = (1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1)
_BANDS = {"DV": (_LOW, _WIDTH, _HEIGHT, _DIAGONAL), "DI": (_LOW, _HEIGHT, _WIDTH, _DIAGONAL)}


def synthesis(family: str, steps: int) -> np.ndarray:
    """[P*P pixels, 4**steps bands] float64, P = 2**steps: pixel = sum of signs x bands.

    Pixels are row-major in the patch; bands are numbered with the coarsest transform as the leading digit.
    """
    one = np.array(_BANDS[family], np.float64).T.reshape(2, 2, 4)  # [y, x, band]
    matrix = np.ones((1, 1, 1))
    for _ in range(steps):
        # The coarse step decides the leading band digit and, being undone first, the leading pixel bits.
        size, bands = 2 * matrix.shape[0], 4 * matrix.shape[2]
        matrix = np.einsum("yxb,YXB->yYxXbB", one, matrix).reshape(size, size, bands)
    return matrix.reshape(-1, matrix.shape[2])


def analysis(family: str, steps: int) -> np.ndarray:
    """[4**steps bands, P*P pixels] float64, the inverse: orthogonal rows of norm P, hence the plain division."""
    return synthesis(family, steps).T / 4**steps


def time_low_channels(steps: int) -> list[int]:
    """Channels of the video patcher that a still image reaches: all bands that are low in time at every step."""
    bands = [0]
    for _ in range(steps):
        bands = [8 * band + spatial for band in bands for spatial in range(4)]
    return [band * 3 + colour for band in bands for colour in range(3)]


def last_frame(steps: int) -> np.ndarray:
    """[3 * 4**steps, 3 * 8**steps] float64: a still image is the last frame of its group, low minus high per step."""
    matrix = np.ones((1, 1))
    for _ in range(steps):
        one = np.zeros((4, 8))
        one[range(4), range(4)], one[range(4), range(4, 8)] = 1.0, -1.0
        matrix = np.kron(one, matrix)
    return np.kron(matrix, np.eye(3))
