"""What the ops of ``pointwise`` compute, in plain PyTorch: the truth that the kernels are tested against."""

from __future__ import annotations

from torch import Tensor


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows times a matrix.

    Args:
        x: The rows.  # (num_rows, in_features)
        weight: The matrix.  # (in_features, out_features)
        bias: Added to every row.  # (out_features,)

    Returns:
        The products.  # (num_rows, out_features)
    """
    return x @ weight if bias is None else x @ weight + bias


def pointwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, with_x: bool, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, the matrix and the bias.

    Args:
        grad: Gradient of the products.  # (num_rows, out_features)
        x: As above.
        weight: As above.
        with_x: Whether that of the rows is wanted.
        with_bias: Whether that of the bias is.

    Returns:
        The three; what is not wanted is empty.
    """
    x_grad = grad @ weight.T if with_x else x.new_empty(0, x.shape[1])
    return x_grad, x.T @ grad, grad.sum(0) if with_bias else x.new_empty(0)
