"""Our recurrence and its gradient by hand, against nn.GRU on packed texts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from moekd.recurrence import read_both_ways


def packed(layer, inputs, lengths):
    """The reference: nn.GRU itself."""
    if lengths is None:
        return layer(inputs)[0]
    texts = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(layer(texts)[0], batch_first=True, total_length=inputs.shape[1])[0]


def layer_of(features, hidden, dtype=torch.float32):
    return nn.GRU(features, hidden, batch_first=True, bidirectional=True, dtype=dtype)


def answers(read, layer, inputs, lengths):
    """States, and the gradients of inputs and of each parameter when every state counts differently."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    states = read(layer, inputs, lengths)
    generator = torch.Generator().manual_seed(1)
    states.backward(torch.randn(states.shape, generator=generator, dtype=inputs.dtype))
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"states": states.detach(), "inputs": inputs.grad} | gradients


@hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    further=st.integers(0, 2),
    hidden=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_states_and_all_gradients_are_those_of_packed_texts(lengths, further, hidden, seed):
    """Any lengths in any order, a batch of one text and texts of one token included, and steps behind all texts."""
    torch.manual_seed(seed)
    layer = layer_of(4, hidden)
    inputs = torch.randn(len(lengths), max(lengths) + further, 4)
    ours, reference = (answers(read, layer, inputs, torch.tensor(lengths)) for read in (read_both_ways, packed))
    for name, values in reference.items():
        torch.testing.assert_close(ours[name], values, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_without_lengths_nothing_is_padding():
    """No lengths are the same as lengths of all steps."""
    torch.manual_seed(0)
    layer, inputs = layer_of(6, 5), torch.randn(3, 7, 6)
    ours, reference = (answers(read, layer, inputs, None) for read in (read_both_ways, packed))
    for name, values in reference.items():
        torch.testing.assert_close(ours[name], values, atol=1e-5, rtol=1e-4)


def test_large_and_small_gates_as_nn_gru():
    """Saturated gates too: the sigmoid in tanh's place loses nothing, and no gradient becomes NaN."""
    torch.manual_seed(0)
    layer, inputs = layer_of(3, 4), torch.randn(2, 5, 3) * torch.tensor([1e-4, 1.0, 1e3])
    ours, reference = (answers(read, layer, inputs, torch.tensor([5, 2])) for read in (read_both_ways, packed))
    for name, values in reference.items():
        torch.testing.assert_close(ours[name], values, atol=1e-5, rtol=1e-4)


def test_gradient_by_differences():
    """The derivation itself, in double: inputs, weights and biases of both directions."""
    torch.manual_seed(0)
    layer = layer_of(3, 2, torch.float64)
    lengths = torch.tensor([4, 1, 3])

    def states(inputs, *_):  # gradcheck changes the parameters in place
        return read_both_ways(layer, inputs, lengths)

    inputs = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(states, (inputs, *layer.parameters()))


def test_padding_changes_nothing():
    """What stands behind a text's end, and what is asked of the states there, reaches no state and no gradient."""
    torch.manual_seed(0)
    layer, inputs, lengths = layer_of(4, 3), torch.randn(3, 6, 4), torch.tensor([4, 1, 6])
    padding = torch.arange(6) >= lengths.unsqueeze(1)
    clean = answers(read_both_ways, layer, inputs, lengths)
    other = answers(read_both_ways, layer, inputs.masked_fill(padding.unsqueeze(-1), -1e4), lengths)
    assert all(torch.equal(values, other[name]) for name, values in clean.items())
    assert not clean["states"][padding].any()
    assert not clean["inputs"][padding].any()


def test_equal_runs_are_equal_to_the_bit():
    """Training is reproducible, with torch's deterministic kernels asked for."""
    torch.manual_seed(0)
    layer, inputs, lengths = layer_of(8, 16), torch.randn(4, 20, 8), torch.tensor([20, 3, 17, 9])
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (answers(read_both_ways, layer, inputs, lengths) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(values, other[name]) for name, values in one.items())


@pytest.mark.parametrize("name", ["states", "inputs", "weight_ih_l0", "weight_hh_l0_reverse", "bias_hh_l0"])
def test_close_to_float32_under_autocast(name):
    """bfloat16 products of the inputs cost two digits, no more; states and gradients keep the parameters' type."""
    torch.manual_seed(0)
    layer, inputs, lengths = layer_of(16, 16), torch.randn(4, 20, 16), torch.tensor([20, 3, 17, 9])
    exact = answers(read_both_ways, layer, inputs, lengths)[name]

    def read(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return read_both_ways(*arguments)

    rounded = answers(read, layer, inputs, lengths)[name]
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02
