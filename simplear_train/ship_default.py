"""Assemble a model folder that simplear_engine loads, and refuse one that is too large.

    python -m simplear_train.ship_default --model runs/distil/model --tokenizer runs/tokenizer/tokenizer.safetensors \\
        --scores pretrained=runs/emojieval-pretrain/scores.json distilled=runs/emojieval-distil/scores.json \\
        --out simplear_engine/default_model

Checks before writing: transformers-style files are complete, code counts agree, half-precision decoder weights change
the pictures by less than one grey level on average. The folder is built beside its final name and swapped in.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from .concepts import COLOURS, CONCEPTS
from .image_tokenizer import load_image_tokenizer, save_image_tokenizer
from .model_folder import from_folder, save_weights
from .sprites import PACKAGES

SIZE_LIMIT = 16_000_000  # bytes: the folder lives in the repository

NOTICE = """\
The weights in this folder were trained by the scripts in simplear_train/ on pictures rendered from these works. The
works themselves are not contained in this folder.

Noto Emoji                 Copyright Google LLC. Apache License 2.0.
                           Taken from the npm package {noto}.
Fluent Emoji (flat)        Copyright (c) Microsoft Corporation. MIT License.
                           Taken from the npm package {fluent}.
emojibase-data             Copyright (c) Miles Johnson. MIT License; labels and tags derive from the Unicode CLDR,
                           Copyright (c) Unicode, Inc., Unicode License.
                           Taken from the npm package {emojibase}.

The texts of the licences:
  Apache License 2.0       https://www.apache.org/licenses/LICENSE-2.0
  Unicode License          https://www.unicode.org/license.txt
  MIT License:

    Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
    documentation files (the "Software"), to deal in the Software without restriction, including without limitation
    the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
    to permit persons to whom the Software is furnished to do so, subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all copies or substantial portions of
    the Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
    THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
    AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
    CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
    IN THE SOFTWARE.
"""

MODEL_CARD = """\
# The default model

A {model_params:.1f} M-parameter Qwen2 decoder and a {tokenizer_params:.1f} M-parameter Cosmos-type (DI) picture tokenizer that draw emoji-like
pictures of {side} x {side} pixels, {tokens} tokens each, from a vocabulary of {codes:,} codes. It exists so that the
engine does something real directly after installation; it is no substitute for the published SimpleAR weights.

**Draws** {num_concepts} things: {nouns}.
Alone, two to four of a kind, two of them side by side or one above the other, up to four of several kinds ("two cats and a dog"), some of
them in {colours}.
Words outside this list give one of these things or a mixture of them.

**Prompts** are short: "a red apple", "two dogs", "a cat and a dog", "a blue car left of a tree", "a panda on a pink background".

**Training data** were rendered on the fly from Noto Emoji (Apache-2.0) and Fluent Emoji flat (MIT), words from emojibase
(MIT, Unicode); see NOTICE. No people, no flags, no logos, no photographs.

**Held out**, by hashes of the words: a tenth of the ordered pairs of things, a fifth of the counts, a fifth of the coloured
things, a tenth of the pairs of two coloured things (simplear_train/emoji_scenes.py).
{scores}
**Limits**: fine detail at half size is soft, counts above four were never seen, relations are only left of, right of, above and
below. Of the counts that were held out ("three cats") seven in eight are drawn as asked, of the coloured things ("a blue rose") one in
five; what training showed is drawn as asked in 19 of 20 pictures. It draws without guidance, which it was taught to need no more: a
guidance scale above 1 is possible and computes every code twice, a negative prompt needs it.

**Licence of the weights**: Apache-2.0.
"""


def score_table(scores: dict[str, Path]) -> str:
    """EmojiEval's figures of each stage as a table of the model card."""
    if not scores:
        return ""
    results = {name: json.loads(path.read_text()) for name, path in scores.items()}
    tasks = list(next(iter(results.values()))["tasks"])
    rows = ["| | " + " | ".join([*tasks, "overall", "95 %"]) + " |", "|---" * (len(tasks) + 3) + "|"]
    for name, result in results.items():
        figures = [f"{result['tasks'][task]['score']:.2f}" for task in tasks] + [f"{result['overall']['score']:.3f}"]
        low, high = result["overall"]["interval"]
        rows.append(f"| {name} | " + " | ".join(figures) + f" | {low:.3f} to {high:.3f} |")
    return (
        "\n**EmojiEval** (docs/emojieval.md), four pictures a prompt; not comparable with published GenEval figures:\n\n"
        + "\n".join(rows)
        + "\n"
    )


@torch.no_grad()
def check_half_precision(path: Path, half_path: Path) -> float:
    """Mean change of decoded pixels, in grey levels of 255."""
    full, half = load_image_tokenizer(path), load_image_tokenizer(half_path)
    codes = torch.randint(0, full.fsq.num_codes, (8, 8, 8), generator=torch.Generator().manual_seed(0))
    return ((full.decode(codes) - half.decode(codes)).abs().mean() * 127.5).item()


def ship(model_folder: Path, tokenizer_path: Path, out: Path, side: int, scores: dict[str, Path]) -> None:
    folder = from_folder(str(model_folder))
    model = folder.model
    image_tokenizer = load_image_tokenizer(tokenizer_path)
    num_codes = image_tokenizer.fsq.num_codes
    if model.config.num_codes != num_codes:
        raise SystemExit(f"{tokenizer_path}: {num_codes} codes, but the model draws {model.config.num_codes}")
    building = out.with_name(out.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    (building / "vq").mkdir(parents=True)
    save_weights(building, model.state_dict(), torch.bfloat16)
    shutil.copy(model_folder / "config.json", building / "config.json")
    save_image_tokenizer(image_tokenizer, building / "vq" / "tokenizer.safetensors", torch.float16)
    change = check_half_precision(tokenizer_path, building / "vq" / "tokenizer.safetensors")
    if change > 1.0:
        raise SystemExit(f"float16 decoder weights change pixels by {change:.2f} grey levels on average, limit 1")
    shutil.copy(model_folder / "tokenizer.json", building / "tokenizer.json")
    write_json(building / "generation_config.json", {"do_sample": True, "temperature": 1.0, "top_p": 1.0})
    write_json(
        building / "simplear.json",
        {
            "format": 1, "prompt_begin": "<|t2i|>", "prompt_prefix": "", "prompt_end": "<|soi|>", "negative_prompt": "",
            "guidance_scale": folder.defaults.guidance_scale, "height": side, "width": side,
            "top_k": folder.defaults.top_k,
        },
    )  # fmt: skip
    (building / "NOTICE").write_text(NOTICE.format(**{name: spec for name, (spec, _) in PACKAGES.items()}))
    (building / "MODEL_CARD.md").write_text(
        MODEL_CARD.format(
            model_params=sum(p.numel() for p in model.parameters()) / 1e6,
            tokenizer_params=sum(p.numel() for p in image_tokenizer.parameters()) / 1e6,
            side=side, tokens=(side // image_tokenizer.config.spatial_compression) ** 2, codes=num_codes,
            num_concepts=len(CONCEPTS), nouns=", ".join(c.noun for c in CONCEPTS), colours=", ".join(COLOURS),
            scores=score_table(scores),
        )
    )  # fmt: skip
    for file in building.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes private files; a package has to be readable by everyone
    size = sum(f.stat().st_size for f in building.rglob("*") if f.is_file())
    if size > SIZE_LIMIT:
        raise SystemExit(f"{building}: {size:,} bytes, limit {SIZE_LIMIT:,}")
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)
    print(f"{out}: {size:,} bytes; float16 decoder changes pixels by {change:.3f} grey levels on average")


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model folder to ship")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer.safetensors of refine_decoder or train_tokenizer"
    )
    parser.add_argument("--out", type=Path, default=Path("simplear_engine/default_model"))
    parser.add_argument("--side", type=int, default=128, help="picture side in pixels")
    parser.add_argument(
        "--scores", nargs="*", default=[], metavar="STAGE=FILE", help="scores.json of emojieval, for the card"
    )
    args = parser.parse_args()
    scores = {name: Path(path) for name, _, path in (entry.partition("=") for entry in args.scores)}
    ship(args.model, args.tokenizer, args.out, args.side, scores)


if __name__ == "__main__":
    main()
