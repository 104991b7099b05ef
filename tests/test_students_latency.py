"""The guess of milliseconds, on invented times; the timing itself on one small student."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moekd.errors import DataError
from moekd.export import latency as timing
from moekd.students.cost import matrix_flops
from moekd.students.latency import PUBLISHED, Latency, fit_latency, to_time, work
from moekd.students.ledger import Evaluated
from moekd.students.space import Configuration, shipped_bytes

#: Milliseconds a unit, near those of one server's core, and 0.02 for starting a layer's operators.
PRICES = {
    "layer": 20_000.0,
    "state": 6.0,
    "activation": 1.0,
    "product": 0.006,
    "attention": 0.03,
    "softmax": 0.7,
}


def milliseconds(one: Configuration, length: int) -> float:
    return sum(PRICES[kind] * amount for kind, amount in work(one, length).items())


def timed(budget_bytes: int = 3_000_000, noise: float = 0.0) -> list[Evaluated]:
    rng = np.random.default_rng(0)
    return [
        Evaluated(one, {str(n): milliseconds(one, n) * float(np.exp(noise * rng.normal())) for n in lengths})
        for one, lengths in to_time(budget_bytes).items()
    ]


def fitted(noise: float = 0.0) -> Latency:
    return fit_latency(timed(noise=noise), about={}, seconds=1.0)


def test_work_by_hand():
    """2 layers, 10 tokens, hidden 4, intermediate 3, 2 heads: matrices of 4 x 16 + 2 x 12 = 88 weights a layer, pairs
    of tokens 2 x 100, each 4 wide or once a head."""
    one = Configuration(vocabulary=1000, layers=2, hidden=4, heads=2, intermediate=3, max_length=10)
    assert {kind: round(1e6 * amount) for kind, amount in work(one, 10).items()} == {
        "layer": 2,
        "state": 80,
        "activation": 60,
        "product": 1760,
        "attention": 800,
        "softmax": 400,
    }


def test_known_prices_are_found_again():
    """Times made of known prices: the fit is exact, on architectures left out, too, and at any length."""
    latency = fitted()
    assert latency.prices == pytest.approx(PRICES, rel=1e-6)
    assert latency.error == pytest.approx(0, abs=1e-6)
    assert latency.constant_error > 1
    one = Configuration(vocabulary=9000, layers=3, hidden=112, heads=4, intermediate=416, max_length=300)
    assert latency.predict([one, replace(one, max_length=200)]) == pytest.approx(
        [milliseconds(one, 300), milliseconds(one, 200)]
    )


def test_noise_shows_in_the_error_and_makes_no_price_negative():
    """Times off by a tenth either way: the guess is off from them by about 8 %, the mean of such a noise."""
    latency = fitted(noise=0.1)
    assert 0.06 < latency.relative_error < 0.11
    assert latency.error < 0.15 * latency.constant_error
    assert all(price >= 0 for price in latency.prices.values())


def test_deep_and_narrow_is_slower_than_shallow_and_wide():
    """12 layers of 64 and 1 of 256 with equal FLOPs: the deep one has more softmax, norms and activations."""
    deep = Configuration(vocabulary=1000, layers=12, hidden=64, heads=8, intermediate=64, max_length=384)
    wide = Configuration(vocabulary=1000, layers=1, hidden=256, heads=8, intermediate=832, max_length=384)
    deep_flops, wide_flops = (matrix_flops(one.layers, one.hidden, one.intermediate, 384) for one in (deep, wide))
    assert deep_flops == pytest.approx(wide_flops, rel=0.01)
    slow, fast = fitted(noise=0.1).predict([deep, wide])
    assert slow > 2 * fast


@pytest.mark.parametrize("budget_bytes", [20_000_000, 3_000_000, 1_600_000, 30_000])
def test_what_is_timed(budget_bytes):
    """Different architectures within the budget, or a megabyte where it is smaller, at all lengths of the space; the
    published student is apart, and reads 400 tokens."""
    *ours, published = to_time(budget_bytes).items()
    assert len(ours) == 30
    assert published == (PUBLISHED, (400,))
    assert {lengths for _, lengths in ours} == {(256, 384, 512)}
    assert max(shipped_bytes(one) for one, _ in ours) <= max(budget_bytes, 1_000_000)
    assert len({one.layers for one, _ in ours}) >= 6


def test_the_bound_of_the_hypervolume_is_the_published_student():
    """As measured, and no part of the fit."""
    *ours, published = timed()
    latency = fit_latency([*ours, replace(published, values={"400": 1000.0})], about={}, seconds=1.0)
    assert latency.published_ms == 1000
    assert latency.prices == pytest.approx(PRICES, rel=1e-6)
    assert (latency.architectures, latency.lengths) == (30, (256, 384, 512))


# ----------------------------------------------------------------------------------------------- the timing itself


def test_a_student_is_built_and_timed():
    """As exported to int8; more tokens take more processor time by far, whatever else the machine does."""
    one = Configuration(vocabulary=300, layers=1, hidden=32, heads=8, intermediate=64, max_length=512)
    short, long = timing.processor_ms(one, [16, 512])
    assert 0 < short < long


@pytest.fixture
def asked(monkeypatch) -> list[Configuration]:
    """Timing by formula; holds the architectures that were timed."""
    found: list[Configuration] = []

    def formula(one, lengths):
        found.append(one)
        return [milliseconds(one, length) for length in lengths]

    monkeypatch.setattr(timing, "processor_ms", formula)
    return found


def test_a_stopped_timing_continues(asked, tmp_path):
    """Each architecture is timed once, and the file of the first 11 is all that a second call needs of them."""
    first = timing.measure_latency(3_000_000, tmp_path)
    assert asked == list(to_time(3_000_000))
    path = tmp_path / timing.LATENCY_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    asked.clear()
    again = timing.measure_latency(3_000_000, tmp_path)
    assert asked == list(to_time(3_000_000))[11:]
    assert again == replace(first, seconds=again.seconds)
    assert again.about["threads"] == 1


def test_without_a_folder_nothing_is_kept(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert timing.measure_latency(1_600_000, None).prices == pytest.approx(PRICES, rel=1e-6)
    assert not list(tmp_path.iterdir())


def test_times_of_another_runtime_are_refused(asked, tmp_path, monkeypatch):
    timing.measure_latency(3_000_000, tmp_path)
    monkeypatch.setattr(timing, "conditions", lambda: {"onnxruntime": "0.1"})
    with pytest.raises(DataError, match=r"latency.jsonl was measured with .*'onnxruntime': '0.1'"):
        timing.measure_latency(3_000_000, tmp_path)
