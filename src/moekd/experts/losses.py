"""The router's focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def focal_loss(logits: Tensor, target: Tensor, *, alpha: Tensor, gamma: float) -> Tensor:
    """Class-weighted focal loss, mean over the batch.

    -(1/N) sum_n alpha[y_n] * (1 - p_n)^gamma * log p_n, with p_n the probability of the true class. The reference sums
    over the batch instead; equation 2 has 1/N, which does not tie the learning rate to the batch size.

    Args:
        logits: (batch, groups).
        target: true group of each row, int64, (batch,).
        alpha: factor of each group, (groups,); see `class_factors`.
        gamma: focusing parameter >= 0; 0 gives weighted cross-entropy.
    Returns:
        Scalar, >= 0.
    Raises:
        ValueError: shapes do not fit together.
    Source: Lin et al. 2017, arXiv:1708.02002; MoEVD, arXiv:2501.16454; methods.md 5.4, 6.2 equation 2.
    """
    from torch.nn import functional as F

    if logits.ndim != 2 or target.shape != logits.shape[:1] or alpha.shape != logits.shape[1:]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, target {tuple(target.shape)} and alpha {tuple(alpha.shape)} do not fit: "
            "wanted (batch, groups), (batch,) and (groups,)"
        )
    log_p = F.log_softmax(logits, dim=-1).gather(1, target[:, None]).squeeze(1)  # (batch,)
    return -(alpha[target] * (1 - log_p.exp()) ** gamma * log_p).mean()


def class_factors(names: Sequence[str], counts: Mapping[str, int]) -> list[float]:
    """Inverse class frequencies scaled to sum 1, in the order of `names`, bound to names and never to positions.

    A group without samples gets factor 0: it cannot be learned, and an infinite factor would silence the others.
    Source: methods.md 5.4; its reference lists the factors in another order than the classes (5.7).
    """
    total = sum(counts.values())
    inverse = [total / counts[name] if counts.get(name) else 0.0 for name in names]
    return [value / sum(inverse) for value in inverse]
