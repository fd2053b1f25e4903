"""The `simplear` command: generate, doctor, convert.

Parses arguments and prints; the work is done by the engine and the modules beside this one, which are imported only
when a command needs them, so that `--help` answers at once. Mistakes end in one line on stderr and exit code 2.
"""

import argparse
import contextlib
import importlib
import logging
import re
import sys
import time
from pathlib import Path

from simplear_engine.errors import InvalidRequestError, SimplearError

EXIT_PROBLEM = 1  # doctor found something
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

_GENERATE_EXAMPLES = """\
examples:
  simplear generate "a red apple" -o apple.png
  simplear generate "a red apple" -o apple.png --seed 7 --num-images 4
      writes apple-1.png to apple-4.png (seeds 7 to 10) and all of them on one sheet, apple.png
  simplear generate "a cat" "a dog" -o pets.png --guidance-scale 4 --negative-prompt "blurry"
  simplear generate "a fox in snow" --model Daniel0724/SimpleAR-0.5B-RL --height 512 --width 512 \\
      --image-tokenizer Cosmos-1.0-Tokenizer-DV8x16x16
"""
_CONVERT_EXAMPLES = """\
examples:
  simplear convert Daniel0724/SimpleAR-0.5B-RL simplear-0.5b --image-tokenizer Cosmos-1.0-Tokenizer-DV8x16x16
  simplear convert my-finetune my-model --dtype bfloat16 --prompt-prefix "" --guidance-scale 4 --height 512 --width 512
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    # A file name or prompt that the terminal's encoding cannot show must not end a finished run in a traceback.
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return options.command(options)
    except (SimplearError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except ImportError as error:
        print(f"error: this installation is not usable: {error}; `simplear doctor` says what to do", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def generate(options) -> int:
    with _output_path(options) as path:
        return _generate(options, path)


def _generate(options, path: Path) -> int:
    started = time.perf_counter()
    engine = _import_engine().from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        image_tokenizer=options.image_tokenizer,
        threads=options.threads,
        kv_cache_bytes=options.kv_cache_bytes,
    )
    with engine:
        if not engine.has_image_tokenizer:
            raise InvalidRequestError(
                f"{options.model} has no image tokenizer (no folder vq/), so it draws codes but no pictures: "
                "name one with --image-tokenizer"
            )
        with _ProgressBar() as bar:
            images = engine.generate(
                options.prompts,
                negative_prompt=options.negative_prompt,
                height=options.height,
                width=options.width,
                num_images=options.num_images,
                guidance_scale=options.guidance_scale,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                speculation={None: "auto", "none": None}.get(options.speculation, options.speculation),
                draft_window=options.draft_window,
                seed=options.seed,
                on_progress=bar.update,
            )
        told = _save_all(images, path)
    print(f"{told}  {time.perf_counter() - started:.2f} s")
    if options.speculation not in (None, "none"):
        print(_speculation_report(images))
    return 0


def doctor(options) -> int:
    from simplear_engine.doctor import report

    facts, advice = report()
    print("\n".join(facts))
    if not advice:
        print("\nall is well")
        return 0
    print("\n" + "\n".join(f"to do: {line}" for line in advice))
    return EXIT_PROBLEM


def convert(options) -> int:
    from simplear_engine.convert import convert_checkpoint

    names = ("prompt_begin", "prompt_prefix", "prompt_end", "negative_prompt")
    names += ("guidance_scale", "height", "width", "top_k", "compression")
    defaults = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    started = time.perf_counter()
    folder = convert_checkpoint(
        options.source, options.destination, dtype=options.dtype, image_tokenizer=options.image_tokenizer, **defaults
    )
    print(f"{folder}  {time.perf_counter() - started:.1f} s")
    return 0


def _import_engine():
    """The engine; what a picture will need in the end is looked for now."""
    for module in ("simplear_engine._C", "tokenizers", "PIL.Image"):
        importlib.import_module(module)
    from simplear_engine import Engine

    return Engine


@contextlib.contextmanager
def _output_path(options):
    """The file to write; asked before generating, because nobody likes to wait for a picture and lose it. A name of our
    own choice is taken by an empty file, so that no other run chooses it too, and given back where no picture comes."""
    from simplear_engine.atomic_file import check_writable
    from simplear_engine.sampling import MAX_IMAGES

    # How many there may be is for the engine to say.
    num_images = len(options.prompts) * min(max(options.num_images, 1), MAX_IMAGES)
    path, taken = (options.output, []) if options.output else _take_free_name(options.prompts[0], num_images)
    try:
        if path.suffix.lower() != ".png":
            raise InvalidRequestError(f"cannot write {path}: expected a name that ends in .png")
        for file in (path, *_numbered(path, num_images)):
            check_writable(file)
        yield path
    finally:
        _give_back(taken)


def _numbered(path: Path, number: int) -> list[Path]:
    """The files of several images; none where there is one, which becomes `path` itself."""
    return [path.with_stem(f"{path.stem}-{index + 1}") for index in range(number)] if number > 1 else []


def _save_all(images: list, path: Path) -> str:
    """One image becomes `path`; several become numbered files and `path` shows them all. Returns what to tell."""
    if len(images) == 1:
        images[0].save(path)
        return f"{path}  seed {images[0].seed}"
    from simplear_engine.png import contact_sheet, save_png

    numbered = _numbered(path, len(images))
    for image, file in zip(images, numbered, strict=True):
        image.save(file)
    save_png(
        contact_sheet([image.pil for image in images], [f"{image.prompt} ({image.seed})" for image in images]), path
    )
    return f"{path}  sheet of {len(images)}: {numbered[0]} to {numbered[-1]}, first seed {images[0].seed}"


def _speculation_report(images: list) -> str:
    """Codes drawn in a step on average, how often a step yielded 1, 2, 3, ... of them, and how often the first, second,
    ... draft was kept."""
    lengths = [int(length) for image in images for length in image.accepted_lens]
    histogram = " ".join(f"{n}:{lengths.count(n)}" for n in sorted(set(lengths)))
    places = max((len(image.draft_counts[0]) for image in images), default=0)
    verified, kept = (
        [
            sum(int(image.draft_counts[i][p]) for image in images if p < len(image.draft_counts[i]))
            for p in range(places)
        ]
        for i in range(2)
    )
    report = f"{sum(lengths) / len(lengths):.2f} codes a step ({sum(lengths)} in {len(lengths)} steps); by length {histogram}"
    if not places:
        return report
    shares = " ".join(f"{k / v:.0%}" for k, v in zip(kept[:8], verified[:8], strict=True))
    return f"{report}\ndrafts kept, by place in the window: {shares}{' ...' if places > 8 else ''}"


def _take_free_name(prompt: str, num_images: int) -> tuple[Path, list[Path]]:
    """A file name made of the prompt's words, and all files that go with it: none was there, now each is, and empty."""
    stem = "-".join(re.findall(r"\w+", prompt.lower()))[:50].strip("-") or "image"
    # Some file systems count bytes, and letters beyond ASCII have several.
    stem = stem.encode("utf-8", "ignore")[:200].decode("utf-8", "ignore")
    path, number = Path(f"{stem}.png"), 2
    while not (taken := _take([path, *_numbered(path, num_images)])):
        path, number = Path(f"{stem}_{number}.png"), number + 1
    return path, taken


def _take(files: list[Path]) -> list[Path]:
    """The files, made empty; none where one was there."""
    for place, file in enumerate(files):
        try:
            file.touch(exist_ok=False)
        except FileExistsError:
            _give_back(files[:place])
            return []
    return files


def _give_back(taken: list[Path]) -> None:
    """Deletes those of the files that are still empty."""
    for file in taken:
        if file.exists() and file.stat().st_size == 0:
            file.unlink()


class _ProgressBar:
    """A bar of tokens on a terminal, nothing elsewhere; it appears with the first progress and goes at the end."""

    def __init__(self):
        self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="token", leave=False, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplear",
        description="Pictures from prompts with autoregressive models. `simplear COMMAND --help` tells more.",
        epilog='first steps:  simplear doctor   then   simplear generate "a red apple" -o apple.png',
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    command = commands.add_parser(
        "doctor",
        help="what this machine offers and what is missing",
        description="Print what this machine offers the engine and what to do where something is missing. "
        "Exit code 1 where something is.",
    )
    command.set_defaults(command=doctor)
    _add_convert(commands)
    return parser


def _add_generate(commands) -> None:
    command = commands.add_parser(
        "generate",
        help="make pictures from prompts",
        description="Make pictures from prompts and save them as PNG files that tell how they were made.",
        epilog=_GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="what to show; several prompts make several pictures"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE.png", help="where to write (default: named after the first prompt)"
    )
    command.add_argument(
        "--seed", type=int, help="equal seeds give equal pictures; those of one prompt use seed, seed + 1, ..."
    )
    command.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    command.add_argument(
        "--negative-prompt", metavar="TEXT", help="what to avoid, under guidance (default: the model's own)"
    )
    command.add_argument("--height", type=int, metavar="PIXELS", help="default: the model's own")
    command.add_argument("--width", type=int, metavar="PIXELS", help="default: the model's own")
    command.add_argument(
        "--guidance-scale", type=float, metavar="X", help="how strongly to follow the prompt; 1 is no guidance"
    )
    command.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0 is greedy (default: 1)")
    command.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="sample among the N likeliest codes only (default: the model's own; its number of codes keeps all)",
    )
    command.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="sample among this much probability only"
    )
    command.add_argument(
        "--speculation",
        choices=["auto", "jacobi", "ratio", "simplear", "neighbours", "none"],
        help="guess codes ahead and verify several in a step: fewer steps, same pictures; auto: as many as pay (what the "
        "engine does anyway), jacobi: always --draft-window; to compare with, and with other pictures: ratio (a test of "
        "probabilities), simplear (SimpleAR's own rule), neighbours (keep near misses, too); all say afterwards how often "
        "guesses were right",
    )
    command.add_argument(
        "--draft-window",
        type=int,
        metavar="N",
        help="codes verified in a step, 1..64 (default: auto 64 at most, jacobi 8)",
    )
    command.add_argument("--model", default="default", help='"default", a checkpoint folder or a hub id OWNER/NAME')
    command.add_argument("--image-tokenizer", metavar="PATH", help="folder or file, where the model brings none")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    command.add_argument(
        "--dtype",
        default="auto",
        help="auto, float32, bfloat16; on a CPU also int8, int4; on a GPU also float8_e4m3 (default: auto)",
    )
    command.add_argument(
        "--kv-dtype",
        default="auto",
        help="of keys and values: auto, float32, bfloat16, int8, on a GPU also float8_e4m3 (default: auto)",
    )
    command.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: the physical cores that the process may use)"
    )
    command.add_argument(
        "--kv-cache-bytes",
        type=int,
        metavar="N",
        help="memory for attention (default: for pictures of the model's own size)",
    )
    command.set_defaults(command=generate)


def _add_convert(commands) -> None:
    command = commands.add_parser(
        "convert",
        help="rewrite a checkpoint in the engine's own form",
        description="Write any loadable checkpoint as one folder with a single safetensors file, tokenizer.json, "
        "simplear.json (prompt wrapper and defaults) and the image tokenizer.",
        epilog=_CONVERT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("source", metavar="IN", help="checkpoint folder, hub id or default")
    command.add_argument("destination", metavar="OUT", type=Path, help="folder to write; it must not exist or be empty")
    command.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    command.add_argument("--image-tokenizer", metavar="PATH", help="image tokenizer to put in, .jit or .safetensors")
    command.add_argument("--prompt-begin", metavar="TOKEN", help="control token before every prompt")
    command.add_argument("--prompt-prefix", metavar="TEXT", help="words before every prompt")
    command.add_argument("--prompt-end", metavar="TOKEN", help="control token after every prompt")
    command.add_argument("--negative-prompt", metavar="TEXT", help="used where a request gives none")
    command.add_argument("--guidance-scale", type=float, metavar="X", help="used where a request gives none")
    command.add_argument("--height", type=int, metavar="PIXELS", help="used where a request gives none")
    command.add_argument("--width", type=int, metavar="PIXELS", help="used where a request gives none")
    command.add_argument("--top-k", type=int, metavar="N", help="used where a request gives none")
    command.add_argument("--compression", type=int, metavar="N", help="pixels per token and side")
    command.set_defaults(command=convert)


if __name__ == "__main__":
    sys.exit(main())
