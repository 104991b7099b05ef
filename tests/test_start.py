"""What benchmarks/start.py measures of a process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("start", Path(__file__).parent.parent / "benchmarks" / "start.py")
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)


def test_cost_of_a_process():
    """Sleeping takes time and no processor; 300 MB are 300 MB, whatever other processes hold."""
    cost = benchmark.run([sys.executable, "-c", "import time; x = b'x' * 300_000_000; time.sleep(0.5)"])
    assert cost.seconds >= 0.5
    assert 0 < cost.processor_seconds < cost.seconds
    assert cost.peak_bytes > 300_000_000


def test_a_command_that_fails_has_no_cost():
    with pytest.raises(SystemExit, match="ended with 3"):
        benchmark.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_environment_of_the_program():
    found = benchmark.environment(Path(sys.executable))
    assert found == {"python": sys.version.split()[0], "torch": True}
