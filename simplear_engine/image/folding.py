"""From the tensors of a file to the layers of the single-image network.

For one frame, much of the published network collapses exactly: a temporal kernel sees the same frame under every tap
and becomes a 1x1 whose weight is the sum of its taps; a 1x1 that follows a convolution with nothing between becomes
part of it; pooling and skip connections beside a convolution become numbers added to its taps; the wavelet transform
at either end is a change of basis of the first or last convolution. Each fold is one small function below, computed in
the packer's `fold_dtype`. The one thing that may not be folded is a bias in front of a zero-padded convolution, because
the border would see it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simplear_engine.image import haar, stages
from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.network import Attention, Conv, Norm, NormConv, Output, ResBlock, Upsample


@dataclass
class _Affine:
    """A convolution being folded: weight [out, in, kh, kw] and bias [out]."""

    weight: np.ndarray
    bias: np.ndarray

    def then(self, after: "_Affine") -> "_Affine":
        """This convolution followed by the 1x1 `after`."""
        matrix = after.weight[:, :, 0, 0].astype(self.weight.dtype, copy=False)
        weight = _product(matrix, self.weight.reshape(len(self.weight), -1)).reshape(-1, *self.weight.shape[1:])
        bias = _product(matrix, self.bias[:, None])[:, 0]
        return _Affine(weight, bias + after.bias.astype(self.bias.dtype, copy=False))

    def plus_identity(self, taps: list[tuple[int, int]], factor: float) -> "_Affine":
        """This convolution plus factor x (the input seen through those taps)."""
        weight = self.weight.copy()
        channel = np.arange(len(weight))
        for y, x in taps:
            weight[channel, channel, y, x] += factor
        return _Affine(weight, self.bias)

    def of_basis(self, matrix: np.ndarray) -> "_Affine":
        """This convolution applied to matrix @ input, channel-wise."""
        return _Affine(np.einsum("oiyx,ij->ojyx", self.weight, matrix.astype(self.weight.dtype)), self.bias)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, k] x [k, m]. A small one stays away from NumPy's BLAS, whose threads can miss that they are to end when somebody
    forks: fork() then waits for ever."""
    is_small = a.size * b.shape[1] <= 1 << 22
    return np.einsum("nk,km->nm", a, b) if is_small else a @ b


def fold_encoder(config: TokenizerConfig, read: Callable[[str], np.ndarray], packer) -> list:
    """Layers from pixel patches [B, H/P, W/P, (y, x, rgb)] to z [B, h, w, D]. `read` gives a tensor by name."""
    return _Folder(config, read, packer).fold(stages.encoder_stages(config))


def fold_decoder(config: TokenizerConfig, read: Callable[[str], np.ndarray], packer) -> list:
    """Layers from codes [B, h, w, D] to pixel patches [B, H/P, W/P, (y, x, rgb)]."""
    return _Folder(config, read, packer).fold(stages.decoder_stages(config))


class _Folder:
    def __init__(self, config: TokenizerConfig, read: Callable[[str], np.ndarray], packer):
        self.config, self.read, self.packer = config, read, packer
        self.wrap = ".conv3d" if config.is_video else ""

    def fold(self, stage_list: list) -> list:
        layers: list = []
        for index, stage in enumerate(stage_list):
            match stage:
                case stages.PointwiseIn(prefix):
                    layers.append(self.conv(self.affine(prefix), full_precision=True))
                case stages.ConvIn(prefix):
                    affine = self.affine3x3(prefix)
                    from_pixels = prefix.startswith("encoder")
                    if from_pixels:
                        affine = self.on_pixels(affine)
                    layers.append(self.conv(affine, full_precision=from_pixels))
                case stages.ResBlock(prefix, inside, out):
                    shortcut = self.conv(self.affine(f"{prefix}.nin_shortcut")) if inside != out else None
                    layers.append(
                        ResBlock(
                            self.norm(f"{prefix}.norm1"),
                            self.conv(self.affine3x3(f"{prefix}.conv1")),
                            self.norm(f"{prefix}.norm2"),
                            self.conv(self.affine3x3(f"{prefix}.conv2")),
                            shortcut,
                        )
                    )
                case stages.Attention(prefix, channels):
                    layers += self.attention(prefix, channels)
                case stages.Downsample():
                    layers.append(self.downsample(stage))
                case stages.Upsample():
                    layers += self.upsample(stage)
                case stages.ConvOut(prefix):
                    affine = self.affine3x3(f"{prefix}.conv_out")
                    if prefix == "encoder":
                        affine = affine.then(self.affine(stage_list[index + 1].prefix))
                    else:
                        affine = self.to_pixels(affine)
                    layers.append(Output(self.norm(f"{prefix}.norm_out"), self.conv(affine)))
        return layers

    # Reading tensors.

    def affine(self, prefix: str) -> _Affine:
        dtype = self.packer.fold_dtype
        weight = self.read(f"{prefix}{self.wrap}.weight")
        if weight.ndim == 5:  # every temporal tap sees the same frame
            taps = [weight[:, :, t].astype(dtype, copy=False) for t in range(weight.shape[2])]
            weight = functools.reduce(np.add, taps)  # several times as fast as sum() over so short an axis
        return _Affine(weight.astype(dtype, copy=False), self.read(f"{prefix}{self.wrap}.bias").astype(dtype))

    def affine3x3(self, prefix: str) -> _Affine:
        if self.config.is_video:
            return self.affine(f"{prefix}.0").then(self.affine(f"{prefix}.1"))
        return self.affine(prefix)

    def norm(self, prefix: str) -> Norm:
        prefix += ".norm" if self.config.is_video else ""
        packed = self.packer.pack_norm(self.read(f"{prefix}.weight"), self.read(f"{prefix}.bias"))
        return Norm(packed, self.config.num_groups)

    def conv(self, affine: _Affine, stride: int = 1, full_precision: bool = False) -> Conv:
        size = affine.weight.shape[-1]
        pad = 1 if size == 3 and stride == 1 else 0  # a strided one is padded behind only
        return Conv(self.packer.pack_conv(affine.weight, affine.bias, full_precision), pad, stride)

    # Composite layers.

    def attention(self, prefix: str, channels: int) -> list:
        if not self.config.is_video:
            return [self.spatial_attention(prefix)]
        # Over one frame the temporal softmax is 1, so only the value path of the second attention remains.
        single = self.affine(f"{prefix}.1.v").then(self.affine(f"{prefix}.1.proj_out"))
        return [self.spatial_attention(f"{prefix}.0"), NormConv(self.norm(f"{prefix}.1.norm"), self.conv(single))]

    def spatial_attention(self, prefix: str) -> Attention:
        # Attention weights sum to 1, so projecting the values before the average is the same as after it.
        value = self.affine(f"{prefix}.v").then(self.affine(f"{prefix}.proj_out"))
        parts = [self.affine(f"{prefix}.q"), self.affine(f"{prefix}.k"), value]
        qkv = _Affine(np.concatenate([p.weight for p in parts]), np.concatenate([p.bias for p in parts]))
        return Attention(self.norm(f"{prefix}.norm"), self.conv(qkv))

    def downsample(self, stage: stages.Downsample) -> Conv:
        if not self.config.is_video:
            return self.conv(self.affine(f"{stage.prefix}.conv"), stride=2)
        # Beside the strided convolution runs a 2x2 average of the same input.
        affine = self.affine(f"{stage.prefix}.conv1").plus_identity([(0, 0), (0, 1), (1, 0), (1, 1)], 0.25)
        if stage.temporal:
            affine = affine.then(self.affine(f"{stage.prefix}.conv2").plus_identity([(0, 0)], 1.0))
        return self.conv(affine.then(self.affine(f"{stage.prefix}.conv3")), stride=2)

    def upsample(self, stage: stages.Upsample) -> list:
        layers = []
        if not self.config.is_video:
            affine = self.affine(f"{stage.prefix}.conv")
        else:
            if stage.temporal:
                before = self.affine(f"{stage.prefix}.conv1").plus_identity([(0, 0)], 1.0)
                layers.append(self.conv(before))
            affine = self.affine(f"{stage.prefix}.conv2").plus_identity([(1, 1)], 1.0)
            affine = affine.then(self.affine(f"{stage.prefix}.conv3"))
        return layers + [Upsample(self.packer.pack_upsample(corner_kernels(affine.weight), affine.bias))]

    # The image side.

    def on_pixels(self, affine: _Affine) -> _Affine:
        steps = self.config.num_patch_steps
        if self.config.is_video:
            affine = _Affine(affine.weight[:, haar.time_low_channels(steps)], affine.bias)
        return affine.of_basis(np.kron(haar.analysis(self.config.name, steps), np.eye(3)))

    def to_pixels(self, affine: _Affine) -> _Affine:
        steps = self.config.num_patch_steps
        matrix = np.kron(haar.synthesis(self.config.name, steps), np.eye(3))
        if self.config.is_video:
            matrix = _product(matrix, haar.last_frame(steps))
        return affine.then(_Affine(matrix[:, :, None, None], np.zeros(len(matrix))))


def corner_kernels(weight: np.ndarray) -> np.ndarray:
    """[O, I, 3, 3] for the doubled grid -> [4, O, I, 2, 2] for the original one, corner (0,0), (0,1), (1,0), (1,1).

    An output in the upper row of its pair sees the row above once and its own row twice; in the lower row, its own
    twice and the one below once. The same for columns.
    """
    corners = np.empty((4, *weight.shape[:2], 2, 2), weight.dtype)
    for row in range(2):
        for a, rows in enumerate(_merge(weight, 2, row)):
            for column in range(2):
                for b, taps in enumerate(_merge(rows, 2, column)):
                    corners[2 * row + column, :, :, a, b] = taps
    return corners


def _merge(weight: np.ndarray, axis: int, lower: int) -> tuple[np.ndarray, np.ndarray]:
    """Three taps along `axis` -> the two that the upper or lower position of a pair sees."""
    first, second, third = np.moveaxis(weight, axis, 0)
    return (first + second, third) if lower else (first, second + third)
