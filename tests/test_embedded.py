"""The embedded data set: balanced, compilable, no giveaway for a bag of tokens."""

from __future__ import annotations

import random
import re
import subprocess
from collections import Counter

import pytest

from moekd.data import embedded, templates


@pytest.fixture(scope="module")
def samples():
    return embedded.generate(3000, seed=7)


def compiler_output(functions, folder):
    """Compile all functions in one file, each under a name of its own, and return what the compiler says."""
    parts = [templates.PRELUDE]
    for n, function in enumerate(functions):
        name = re.search(r"(\w+)\(", function)[1]
        parts.append(f"#define {name} {name}_{n}\n{function}\n#undef {name}\n")
    source = folder / "functions.c"
    source.write_text("\n".join(parts), encoding="utf-8")
    command = ["cc", "-std=c11", "-fsyntax-only", "-w", source.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stderr


def test_same_arguments_same_functions():
    """A result names its data by count and seed, so these two must fix it."""
    assert embedded.generate(100, seed=3) == embedded.generate(100, seed=3)
    assert embedded.generate(100, seed=3) != embedded.generate(100, seed=4)


def test_functions_compile(samples, tmp_path):
    assert compiler_output([sample.func for sample in samples[:600]], tmp_path) == ""


@pytest.mark.slow
def test_all_functions_compile(tmp_path):
    functions = [sample.func for sample in embedded.generate(8000, seed=0)]
    assert compiler_output(functions, tmp_path) == ""
