"""Losses on hidden states, as pure functions. A projection (`projection.py`) brings widths together where they differ.

Student and teacher cut a text in different tokens, so losses over tokens apply only where both read the same ones; the
others work on one state a text. `states.py` makes places that both have of tokens that they do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekd.distill.checks import (
    require_mask,
    require_not_negative,
    require_positive,
    require_same_places,
    require_same_states,
)

if TYPE_CHECKING:
    from torch import Tensor


def hidden_state_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared distance of two states, mean over rows.

    Args:
        student: (rows, width), projected to the teacher's width. Rows are texts, or the real tokens of all texts.
        teacher: (rows, width), no gradient.
    Returns:
        Scalar in squared units of the states, >= 0; zero at equality.
    Raises:
        ValueError: shapes differ.
    Source: the hints of Romero et al. 2015 (FitNets), arXiv:1412.6550; there of one layer, and trained on before the
    rest.
    """
    require_same_states(student, teacher, "rows, width")
    return (student - teacher.detach()).square().sum(dim=1).mean() / 2


def patient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the first token's normalised states, summed over matched layers, batch mean.

    Args:
        student, teacher: (batch, layers, width); layer j of one is matched with layer j of the other (`skip_layers`).
    Returns:
        Scalar without unit, 0 to 4 · layers; zero when all states point the same way.
    Raises:
        ValueError: shapes differ.
    Source: Sun et al. 2019 (PKD), arXiv:1908.09355. The authors' code takes the mean over layers and width where this
    is a sum, so their weights are larger.
    """
    from torch.nn import functional as F

    require_same_states(student, teacher, "batch, layers, width")
    difference = F.normalize(student, dim=-1) - F.normalize(teacher.detach(), dim=-1)
    return difference.square().sum(dim=(1, 2)).mean()


def skip_layers(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer for each layer of the student but the last, evenly spaced; 0 is the embeddings.

    The last layers meet in the logits already. For 6 layers of 12: (2, 4, 6, 8, 10).

    Source: Sun et al. 2019, arXiv:1908.09355, "PKD-Skip".
    """
    if min(student_layers, teacher_layers) < 1:
        raise ValueError(f"both need a layer at least, got student {student_layers}, teacher {teacher_layers}")
    return tuple(layer * teacher_layers // student_layers for layer in range(1, student_layers))


def matched_layers(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """As `skip_layers`, but with the last layers matched, too: a teacher's layer for each of the student's."""
    return (*skip_layers(student_layers, teacher_layers), teacher_layers)


def attention_transfer_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Distance of two maps of where in a text the states are large, batch mean.

    A token's value in the map is the sum of its squared state; a map is scaled to length 1. Widths may differ.

    Args:
        student: (batch, tokens, width); teacher: (batch, tokens, other width) of the same tokens.
        mask: boolean, (batch, tokens); true for real tokens.
    Returns:
        Scalar without unit, 0 to sqrt(2); zero at equality.
    Raises:
        ValueError: batch, tokens or mask differ.
    Source: the activation-based transfer of Zagoruyko, Komodakis 2017, arXiv:1612.03928, without a weight; places are
    tokens here.
    """
    from torch.nn import functional as F

    require_same_places(student, teacher, "batch, tokens, width")
    require_mask(mask, student)
    maps = (F.normalize(states.square().sum(dim=-1) * mask, dim=1) for states in (student, teacher.detach()))
    return F.pairwise_distance(*maps, eps=0.0).mean()


def contrastive_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of finding a text's teacher state among those of the batch, by cosine with the student's.

    The authors' code contrasts with 16,384 stored states and an NCE estimate; a batch of negatives and a softmax is our
    reading of it for few samples. A batch of one is refused: there is nothing to tell apart.

    Args:
        student, teacher: (batch, width), the same shape, batch >= 2.
        temperature: of the cosines, finite and > 0. The authors' code has 0.07.
    Returns:
        Scalar in nats, >= 0; ln(batch) when all states are alike.
    Raises:
        ValueError: shapes differ, one text only, or the temperature is not finite and positive.
    Source: Tian, Krishnan, Isola 2020 (CRD), arXiv:1910.10699.
    """
    import torch
    from torch.nn import functional as F

    require_same_states(student, teacher, "batch, width")
    require_positive("temperature", temperature)
    if len(student) < 2:
        raise ValueError("a contrastive loss needs two or more texts in a batch, got 1")
    cosines = F.normalize(student, dim=1) @ F.normalize(teacher.detach(), dim=1).T  # (batch, batch)
    return F.cross_entropy(cosines / temperature, torch.arange(len(student), device=student.device))


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, window: int, angle_weight: float) -> Tensor:
    """How far the geometry of neighbouring states differs: distances of pairs and angles of triples.

    Mean squared difference of distances, each in units of the model's mean distance, plus angle_weight times that of
    the cosines at each state between two of its neighbours. Unchanged when a model's states are moved, turned, or
    scaled as a whole; widths may differ. Over the tokens of a text it is CKD's word relation, over a token's layers
    (batch = all tokens, items = layers) its layer-transforming relation. The authors' code has several errors and units
    to choose from; squared error and the mean distance, here of the whole batch, are our choice.

    Args:
        student: (batch, items, width); teacher: (batch, items, other width).
        mask: boolean, (batch, items); true for what is real.
        window: items within window // 2 on either side are neighbours; >= 2. The study uses 10.
        angle_weight: finite, >= 0.
    Returns:
        Scalar without unit, >= 0; zero at equality.
    Raises:
        ValueError: batch, items or mask differ, no two neighbours are real, or a parameter is out of range.
    Source: Park, Kim, Yang 2021 (CKD), arXiv:2109.08359.
    """
    require_same_places(student, teacher, "batch, items, width")
    require_mask(mask, student)
    require_not_negative("angle_weight", angle_weight)
    if window < 2:
        raise ValueError(f"window must be 2 or more, one neighbour on either side; got {window}")
    places, real = _neighbours(mask, window // 2)
    if not real.any():
        raise ValueError("no two neighbours are real, so there is no relation to compare")
    distances, angles = zip(*(_geometry(s, places, real) for s in (student, teacher.detach())), strict=True)
    loss = (distances[0] - distances[1])[real].square().mean()
    triples = real.unsqueeze(-1) & real.unsqueeze(-2)  # (batch, items, neighbours, neighbours)
    return loss + angle_weight * (angles[0] - angles[1])[triples].square().mean()


def has_neighbours(mask: Tensor, window: int) -> bool:
    """Whether two items within `window` // 2 of each other are real: what `relation_loss` compares."""
    return bool(_neighbours(mask, window // 2)[1].any())


def _neighbours(mask: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Places of each item's neighbours, (items, 2 · reach), and which of them are real, (batch, items, 2 · reach)."""
    import torch

    items = mask.shape[1]
    offsets = torch.tensor([o for o in range(-reach, reach + 1) if o], device=mask.device)
    places = torch.arange(items, device=mask.device).unsqueeze(1) + offsets
    inside = (places >= 0) & (places < items)
    places = places.clamp(0, items - 1)
    return places, inside & mask[:, places] & mask.unsqueeze(2)


def _geometry(states: Tensor, places: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the neighbours in units of the mean, (batch, items, n), and cosines between them, (..., n, n)."""
    import torch
    from torch.nn import functional as F

    towards = states[:, places] - states.unsqueeze(2)  # (batch, items, neighbours, width)
    distances = torch.linalg.vector_norm(towards, dim=-1)
    unit = distances[real].mean().clamp_min(1e-12)
    directions = F.normalize(towards, dim=-1)
    return distances / unit, directions @ directions.transpose(-1, -2)
