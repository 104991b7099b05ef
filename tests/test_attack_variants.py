"""Embeddings of a place in variants of a text, against the library's encoders with hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_variants import by_hooks
from transformers import AutoModel, BertConfig, DistilBertConfig, ModernBertConfig, RobertaConfig

from moekd.attack.variants import NearRows, WholeRows, variant_reader

VOCABULARY, LONGEST = 90, 64
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "roberta": RobertaConfig(**SMALL, num_hidden_layers=3, max_position_embeddings=LONGEST + 2, pad_token_id=1),
    "bert": BertConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=LONGEST),
    "modernbert": ModernBertConfig(
        **SMALL, num_hidden_layers=4, global_attn_every_n_layers=2, local_attention=12, pad_token_id=1
    ),
}


def encoder_of(config):
    """Random weights, large enough that attention prefers some tokens."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                weight.mul_(8)
    return model


ENCODERS = {name: encoder_of(config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_far_tokens_keep_their_original_states(name, data):
    """Any text, place and number of near tokens: what the library computes when far tokens are put back."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n = data.draw(st.integers(3, LONGEST))
    start = data.draw(st.integers(1, n - 2))
    place = slice(start, data.draw(st.integers(start + 1, n - 1)))
    near = data.draw(st.integers(0, LONGEST))
    ids = [0, *rng.integers(3, VOCABULARY, n - 2).tolist(), 2]
    replaced = torch.from_numpy(rng.integers(3, VOCABULARY, (3, place.stop - start)))
    reader = variant_reader(ENCODERS[name])
    assert isinstance(reader, NearRows)
    original = reader.original(ids)
    left = max(0, min(start, (start + place.stop - near) // 2))
    right = min(n, max(place.stop, left + near))
    expected = by_hooks(ENCODERS[name], ids, place, replaced, slice(left, right))
    found = reader.embeddings(original, place, replaced, near=near)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if left == 0 and right == n:
        whole = WholeRows(ENCODERS[name])
        torch.testing.assert_close(found, whole.embeddings(original, place, replaced, near=0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(original.states, whole.original(ids).states, rtol=1e-5, atol=1e-5)


def test_another_encoder_reads_whole_rows():
    """What this package does not walk through itself, or a decoder, is left to the library."""
    shape = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    encoder = AutoModel.from_config(DistilBertConfig(**shape)).eval()
    reader = variant_reader(encoder)
    assert isinstance(reader, WholeRows)
    original = reader.original([0, 5, 6, 7, 2])
    found = reader.embeddings(original, slice(2, 3), torch.tensor([[6], [9]]), near=1)
    torch.testing.assert_close(found[0], original.states[2:3])
    assert not torch.allclose(found[1], original.states[2:3])
