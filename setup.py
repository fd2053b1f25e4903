"""Builds the C++ extension with CMake and ninja; everything else about the package stands in pyproject.toml.

`pip install .` and `pip install -e .` work; `--no-build-isolation` works offline when setuptools, pybind11, cmake and
ninja are installed. SIMPLEAR_CMAKE_ARGS adds CMake options (e.g. "-DSIMPLEAR_CUDA=OFF").
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """An extension whose sources only CMake knows."""

    def __init__(self, name):
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable installation is built where it is used, so that `cmake --build` is all that a change in C++ needs.
        output = ROOT / "simplear_engine" if self.editable_mode else target.parent
        # Kept between builds, also those of pip, so that a rebuild compiles what changed and no more.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSIMPLEAR_VERSION={self.distribution.get_version()}",
            *shlex.split(os.environ.get("SIMPLEAR_CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        if output != target.parent:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / target.name, target)


kernels = ["kernels"] + [f"kernels.{name}" for name in find_packages("kernels")]
setup(
    packages=[
        *find_packages(include=["simplear_engine", "simplear_engine.*", "simplear_train", "simplear_train.*"]),
        *(f"simplear_engine.{name}" for name in kernels),
    ],
    package_dir={"simplear_engine.kernels": "kernels"},
    package_data={
        "simplear_engine": ["default_model/*", "default_model/vq/*"],
        "simplear_engine.kernels": ["*/*.h"],
        "simplear_train": ["configs/*.toml"],
        "simplear_train.emojieval": ["detector.safetensors"],
    },
    ext_modules=[CMakeExtension("simplear_engine._C")],
    cmdclass={"build_ext": CMakeBuild},
)
