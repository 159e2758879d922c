"""Muon: momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al., 2024; arXiv 2502.16982).

    M <- m M + (1 - m) G        W <- W - lr scale orthogonal((1 - m) G + m M)

`orthogonal(U S V^T)` is about `U V^T`, by five Newton-Schulz steps, and `scale` depends on the shape. Accelerators use
`torch.optim.Muon`, which takes these steps in bfloat16, one matrix at a time. Processors without bfloat16 units emulate
that: on an AVX2 core, a step of two blocks of width 256 takes 5.5 s. This class takes 0.17 s, because it computes in
the gradient's own precision and all matrices of one shape together. Arguments, state and groups are those of torch, so
a run may be resumed with the other class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's `a X + b (X X^T) X + c (X X^T)^2 X`: fast, to singular values within 0.7 .. 1.2."""


def orthogonalise(
    matrices: Float[Tensor, "n rows columns"],
    steps: int = 5,
    coefficients: tuple[float, float, float] = _QUINTIC,
) -> Float[Tensor, "n rows columns"]:
    """Set all singular values of each matrix to about 1, by Newton-Schulz steps.

    Args:
        matrices: Any matrices of one shape.
        steps: Number of steps; five bring a singular value of 0.01 of the norm to about 1.
        coefficients: The `a`, `b` and `c` of each step, `a X + b (X X^T) X + c (X X^T)^2 X`.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@final
class Muon(torch.optim.Muon):
    """`torch.optim.Muon` for processors without bfloat16 units, always with Nesterov momentum; see its arguments there.

    Raises:
        ValueError: If a parameter is not a matrix, or a setting is out of range.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrices in _by_shape(group["params"]):
                self._update(matrices, group)
        return loss

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        lr, momentum, pushes = group["lr"], group["momentum"], []
        for matrix in matrices:
            state, gradient = self.state[matrix], matrix.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            pushes.append(gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum))
        scale = lr * _scale(matrices[0].shape, group["adjust_lr_fn"])
        directions = orthogonalise(torch.stack(pushes), group["ns_steps"], group["ns_coefficients"])
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - lr * group["weight_decay"]).add_(direction.to(matrix.dtype), alpha=-scale)


def _scale(shape: torch.Size, adjust: str | None) -> float:
    """The factor of a matrix's step that torch's `adjust_lr_fn` describes."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(shape)) if adjust == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


def _by_shape(parameters: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Parameters with a gradient, grouped by shape."""
    groups: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(parameter.shape, []).append(parameter)
    return groups.values()
