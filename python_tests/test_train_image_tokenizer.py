"""The picture tokenizer: FSQ arithmetic, the wavelet, names and files."""

import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from simplear_engine.errors import CheckpointError
from simplear_engine.safetensors_file import read_safetensors, write_safetensors
from simplear_train.image_tokenizer import (
    FSQ,
    ImageTokenizer,
    TokenizerConfig,
    haar_merge,
    haar_split,
    load_image_tokenizer,
    save_image_tokenizer,
)

TINY = TokenizerConfig(
    channels=8, channels_mult=(1, 2, 2), num_res_blocks=1, num_groups=4, z_channels=12, levels=(8, 5, 4)
)


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (8, 5, 5, 5), (5, 3), (8, 8, 8, 5, 5, 5)])
def test_every_code_survives_decode_and_requantisation(levels):
    fsq = FSQ(levels)
    indices = torch.arange(fsq.num_codes, dtype=torch.int32).view(1, 1, -1)
    codes = fsq.codes(indices)
    assert torch.equal(fsq.indices(codes), indices)
    # A z in the middle of a code's cell must quantise to that code.
    half_range = torch.tensor([(level - 1) * 1.001 / 2 for level in levels]).view(1, -1, 1, 1)
    half = torch.tensor([level // 2 for level in levels]).view(1, -1, 1, 1)
    offset = torch.tensor([0.5 if level % 2 == 0 else 0.0 for level in levels]).view(1, -1, 1, 1)
    z = torch.atanh(((codes * half + offset) / half_range).clamp(-0.9999, 0.9999)) - torch.atanh(offset / half_range)
    assert torch.equal(fsq.indices(fsq.quantize(z)), indices)


def test_fsq_matches_the_published_examples():
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    codes = fsq.codes(torch.tensor([[[0, 63999, 12345]]]))[0, :, 0]
    assert codes[:, 0].tolist() == [-1] * 6
    assert codes[:, 1].tolist() == [0.75, 0.75, 0.75, 1, 1, 1]
    assert ((codes[:, 2] + 1) * torch.tensor([4, 4, 4, 2, 2, 2])).tolist() == [1, 7, 0, 4, 4, 0]


def test_haar_bands_stand_in_di_order_and_invert_exactly():
    a, b, c, d = (torch.tensor(v, dtype=torch.float64) for v in (1.0, 2.0, 4.0, 8.0))
    block = torch.stack([torch.stack([a, b]), torch.stack([c, d])]).view(1, 1, 2, 2)
    low, high_h, high_w, diagonal = haar_split(block).flatten().tolist()
    assert (low, high_h, high_w, diagonal) == (15 / 4, (1 + 2 - 4 - 8) / 4, (1 - 2 + 4 - 8) / 4, (1 - 2 - 4 + 8) / 4)
    image = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(haar_merge(haar_split(image)), image)


def test_state_dict_has_the_published_di_names():
    names = set(ImageTokenizer(TokenizerConfig(channels=32, num_res_blocks=2, z_channels=8)).state_dict())
    assert len(names) == 202  # as many as the published DI16x16
    expected = [
        "encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight", "encoder.down.0.block.0.nin_shortcut.bias",
        "encoder.down.1.downsample.conv.weight", "encoder.mid.attn_1.q.weight", "encoder.mid.attn_1.proj_out.bias",
        "quant_conv.weight", "post_quant_conv.weight", "decoder.up.2.upsample.conv.weight",
        "decoder.up.1.upsample.conv.bias", "decoder.up.0.block.2.conv2.weight", "decoder.norm_out.weight",
    ]  # fmt: skip
    assert names.issuperset(expected)
    assert not any("up.0.upsample" in name or "down.2.downsample" in name for name in names)


def test_tokens_survive_the_file(tmp_path):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TINY).eval()
    save_image_tokenizer(tokenizer, tmp_path / "t.safetensors", torch.float32)
    again = load_image_tokenizer(tmp_path / "t.safetensors")
    assert again.config == TINY
    images = torch.rand(2, 3, 48, 32) * 2 - 1
    with torch.no_grad():
        indices = tokenizer.encode(images)
        assert indices.shape == (2, 3, 2) and indices.dtype == torch.int32
        assert torch.equal(again.encode(images), indices)
        assert torch.equal(again.decode(indices), tokenizer.decode(indices))


def test_a_file_that_is_no_picture_tokenizer_is_an_error_that_names_it(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="missing.safetensors: cannot be read"):
        load_image_tokenizer(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors: expected a picture tokenizer"):
        load_image_tokenizer(tmp_path / "other.safetensors")


def test_a_tokenizer_that_is_saved_again_is_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    tokenizer, path = ImageTokenizer(TINY).eval(), tmp_path / "t.safetensors"
    contents = set()
    for _ in range(8):
        save_image_tokenizer(tokenizer, path, torch.float32)
        contents.add(path.read_bytes())
        path.unlink()
    assert len(contents) == 1
    # Other bytes that say the same, as safetensors writes them in an order of its own, stay as they are.
    save_image_tokenizer(tokenizer, path, torch.float32)
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, tensors, dict(reversed(metadata.items())))
    before = path.read_bytes()
    save_image_tokenizer(tokenizer, path, torch.float32)
    assert path.read_bytes() == before not in contents
    with torch.no_grad():
        tokenizer.quant_conv.bias += 1
    save_image_tokenizer(tokenizer, path, torch.float32)
    assert path.read_bytes() != before


def test_gradient_passes_the_rounding():
    tokenizer = ImageTokenizer(TINY)
    tokenizer(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tokenizer.parameters())
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


def test_all_digit_combinations_are_distinct():
    fsq = FSQ((4, 3))
    codes = fsq.codes(torch.arange(12).view(1, 1, 12))[0, :, 0].T
    assert len({tuple(c.tolist()) for c in codes}) == 12
    assert {round(v, 3) for v in codes[:, 0].tolist()} == {-1, -0.5, 0, 0.5}
    assert list(itertools.chain(sorted({v for v in codes[:, 1].tolist()}))) == [-1, 0, 1]
