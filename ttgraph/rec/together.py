"""Several optimizers that look like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Together(torch.optim.Optimizer):
    """Optimizers that step together: Adam for dense gradients and SparseAdam for sparse ones, say.

    Args:
        parts: The optimizers, no parameter in two of them.

    Example:
        >>> rows, rest = torch.nn.Embedding(9, 2, sparse=True).weight, torch.nn.Linear(2, 1).weight
        >>> optimizer = Together([torch.optim.Adam([rest]), torch.optim.SparseAdam([rows])])
        >>> len(optimizer.param_groups)
        2
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = list(parts)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """A step of each of them."""
        if closure is not None:
            raise NotImplementedError("optimizers together take no closure")
        for part, groups in self._shares():  # groups and state are here; loading a checkpoint replaces both
            part.param_groups, part.state = groups, self.state
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, and a count of steps that was a number is one again."""
        super().load_state_dict(state_dict)
        for part, groups in self._shares():
            if isinstance(part, torch.optim.SparseAdam):
                for parameter in (parameter for group in groups for parameter in group["params"]):
                    if isinstance(self.state[parameter].get("step"), Tensor):
                        self.state[parameter]["step"] = int(self.state[parameter]["step"])

    def _shares(self) -> Iterator[tuple[torch.optim.Optimizer, list[dict[str, Any]]]]:
        """Each of them, and those of the groups that are its own."""
        begin = 0
        for part in self._parts:
            end = begin + len(part.param_groups)
            yield part, self.param_groups[begin:end]
            begin = end
