"""The slow reading of what attack/variants.py computes: whole variants by the library, one at a time."""

from __future__ import annotations

from contextlib import ExitStack

import torch


def by_hooks(encoder, ids, place: slice, replaced, near: slice) -> torch.Tensor:
    """States of a place in variants; before each layer the far tokens are given the states of the original."""
    layers = list(encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layer)
    far = [at for at in range(len(ids)) if not near.start <= at < near.stop]
    first = encoder.config.pad_token_id + 1 if encoder.config.model_type == "roberta" else 0
    positions = torch.arange(first, first + len(ids))[None]
    given: list[torch.Tensor] = []

    def note(layer, inputs):
        given.append(inputs[0].clone())

    def put_back(layer, inputs):
        states = inputs[0].clone()
        states[:, far] = given[layers.index(layer)][:, far]
        return (states, *inputs[1:])

    found = []
    with torch.inference_mode():
        with ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_pre_hook(note))
            encoder(input_ids=torch.tensor([ids]), position_ids=positions)
        with ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_pre_hook(put_back))
            for new in replaced:
                row = torch.tensor([ids])
                row[0, place] = new
                found.append(encoder(input_ids=row, position_ids=positions).last_hidden_state[0, place])
    return torch.stack(found)
