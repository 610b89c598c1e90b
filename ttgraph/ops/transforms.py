"""What differentiates or batches in other ways than autograd's backward: torch.func and forward mode.

Neither knows the compiled ops: torch.func cannot look into them, and forward mode takes their results for constants.
Under either the ops are what they are made of in plain PyTorch, which torch differentiates and batches by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from ttgraph._library import register_reference


def transformed() -> bool:
    """Whether a transform of torch.func is under way, such as vmap, grad or jvp, or a level of forward-mode AD.

    Not under torch.compile, which looks at the ops from outside.

    Example:
        >>> transformed(), torch.func.vmap(lambda x: x + transformed())(torch.zeros(2))
        (False, tensor([1., 1.]))
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiated(*inputs: Tensor) -> bool:
    """Whether autograd will ask a compiled op for the gradient of some inputs.

    Args:
        *inputs: Those that have one.
    """
    return torch.is_grad_enabled() and any(part.requires_grad for part in inputs) and not transformed()


def register_op(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Registers the reference of a differentiable op, and gives what to call: the op, or under a transform that.

    Args:
        name: Name of the op, without the namespace.
        reference: The function, made of differentiable functions of torch.
    """
    register_reference(name, reference)
    op = getattr(torch.ops.ttgraph, name).default

    def call(*arguments: Any) -> Any:
        return (reference if transformed() else op)(*arguments)

    return call


def values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, whatever transforms it goes through: under vmap those of the whole batch.

    For checks, which have nothing to say about a batched tensor itself.

    Args:
        tensor: Any.
    """
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def is_batched(tensor: Tensor) -> bool:
    """Whether a vmap, the innermost one or one around it, goes through the tensor.

    Args:
        tensor: Any.
    """
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False
