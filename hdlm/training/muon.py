"""Muon: momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al., 2024; arXiv 2502.16982).

    M <- m M + (1 - m) G        W <- W - lr max(1, rows / columns)^(1/2) orthogonal((1 - m) G + m M)

`orthogonal(U V^T-ish)` comes from five Newton-Schulz steps. `torch.optim.Muon` runs these in bfloat16, one matrix at a
time; processors without bfloat16 units emulate it, a hundred times slower. Here they run in the gradient's own
precision, all matrices of one shape together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's `a X + b (X X^T) X + c (X X^T)^2 X`: fast, to singular values within 0.7 .. 1.2."""


def orthogonalise(
    matrices: Float[Tensor, "n rows columns"], steps: int = 5
) -> Float[Tensor, "n rows columns"]:
    """Set all singular values of each matrix to about 1, by Newton-Schulz steps.

    Args:
        matrices: Any matrices of one shape.
        steps: How many steps; five bring a singular value of 0.01 of the norm to about 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@final
class Muon(torch.optim.Optimizer):
    """Muon for matrices; give everything else to AdamW.

    Args:
        matrices: Parameters with two axes.
        lr: Learning rate: about the share of a step in the norm of a square orthogonal matrix.
        momentum: Share of the old momentum kept at each step, in [0, 1).
        weight_decay: Share `lr * weight_decay` of the weights is taken off at each step.

    Raises:
        ValueError: If a parameter is no matrix, or a setting is out of range.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                "Muon needs lr >= 0, weight_decay >= 0 and momentum in [0, 1); "
                f"got {lr}, {weight_decay} and {momentum}."
            )
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon is for matrices; got a parameter of shape {tuple(parameter.shape)}."
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrices in _by_shape(group["params"]):
                self._update(matrices, **{key: group[key] for key in ("lr", "momentum", "weight_decay")})
        return loss

    def _update(self, matrices: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        pushes = []
        for matrix in matrices:
            state, gradient = self.state[matrix], matrix.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
            pushes.append(gradient.lerp(state["momentum"].lerp_(gradient, 1 - momentum), momentum))
        rows, columns = matrices[0].shape
        scale = lr * max(1.0, rows / columns) ** 0.5
        for matrix, direction in zip(matrices, orthogonalise(torch.stack(pushes)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(direction.to(matrix.dtype), alpha=-scale)


def _by_shape(parameters: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Those with a gradient, those of one shape together."""
    groups: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(parameter.shape, []).append(parameter)
    return groups.values()
