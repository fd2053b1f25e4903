"""What may know what: imports run one way, and importing the package stays cheap."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "PIL", "tokenizers", "huggingface_hub", "safetensors", "tqdm", "scipy", "matplotlib",
         "triton")  # fmt: skip

# Folder -> beginnings of quoted includes that its files may name.
MAY_INCLUDE = {
    "csrc/core": ("core/",),
    "csrc/cpu": ("core/", "cpu/", "kernels/"),
    "csrc/cuda": ("core/", "cuda/", "simt/", "kernels/"),
    "csrc/simt": ("core/", "cuda/", "simt/"),
    "csrc/bindings": ("core/", "cpu/", "cuda/", "simt/", "bindings/", "kernels/"),
    "kernels": ("core/", "cuda/", "kernels/"),
}
PYTHON_HEADERS = ("Python.h", "pybind11/", "numpy/")

# Folder -> top-level packages, besides the standard library, that its modules may import; anywhere / inside functions.
ENGINE = ("numpy", "simplear_engine")
MAY_IMPORT = {
    "kernels": (ENGINE, ()),
    "simplear_engine": (ENGINE, ("PIL", "tokenizers", "tqdm", "huggingface_hub", "torch", "matplotlib", "triton")),
}
TRITON_FILES = "_triton.py"  # imported by whoever has chosen Triton


def run_python(code: str, **environment) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def sources(folder: str, *suffixes: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def includes():
    for folder in MAY_INCLUDE:
        for path in sources(folder, ".h", ".cc", ".cu", ".cuh"):
            for line in path.read_text().splitlines():
                match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
                if match:
                    yield folder, path, match[1] == '"', match[2]


def imports(path: Path):
    """(top-level package, whether it is imported when the module is) for each import of a module."""
    tree = ast.parse(path.read_text())
    late = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.level == 0 else []
        else:
            continue
        for name in names:
            yield name.split(".")[0], node not in late


def test_import_loads_nothing_heavier_than_numpy():
    loaded = run_python(
        "import simplear_engine, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ).split()
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_of_the_command_line_loads_nothing_heavier_than_numpy():
    loaded = run_python("import simplear_engine.cli, sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert not set(HEAVY) & set(loaded)


def test_picture_is_drawn_without_torch_and_transformers(tiny_checkpoint, tmp_path):
    code = f"""
import sys
for name in ("torch", "transformers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
from simplear_engine import Engine
with Engine.from_pretrained({str(tiny_checkpoint)!r}, threads=1) as engine:
    image = engine.generate("a red apple", seed=7)[0]
    image.save({str(tmp_path / "apple.png")!r})
print(image.pil.size)
"""
    assert run_python(code) == "(64, 64)"
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoint_without_an_image_tokenizer_needs_no_pillow(tiny_checkpoint):
    code = f"""
import sys
sys.modules["PIL"] = None
from simplear_engine import Engine
with Engine.from_pretrained({str(tiny_checkpoint)!r}, threads=1) as engine:
    print(engine.generate("a red apple", seed=7)[0].tokens.shape)
"""
    assert run_python(code) == "(4, 4)"


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")
def test_cpp_includes_run_one_way():
    found = list(includes())
    assert len(found) > 100
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder, path, quoted, name in found
        if quoted and not name.startswith(MAY_INCLUDE[folder])
    ]
    assert not wrong


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")
def test_python_is_known_to_the_bindings_only_and_torch_to_nobody():
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder, path, _, name in includes()
        if name.startswith(("torch/", "ATen/", "c10/"))
        or (name.startswith(PYTHON_HEADERS) and folder != "csrc/bindings")
    ]
    assert not wrong
    assert any(name.startswith("pybind11/") for _, _, _, name in includes()), "the scan does not see includes"


@pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="needs the source tree")
@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_python_imports_run_one_way(folder):
    anywhere, in_functions = MAY_IMPORT[folder]
    found = [(path, name, at_import) for path in sources(folder, ".py") for name, at_import in imports(path)]
    assert len(found) > 20
    wrong = [
        f"{path.relative_to(ROOT)}: {name}{' at import' if at_import else ''}"
        for path, name, at_import in found
        if name not in sys.stdlib_module_names
        and name not in anywhere
        and (at_import or name not in in_functions)
        and not (name == "triton" and path.name.endswith(TRITON_FILES))
    ]
    assert not wrong
