"""The batches of a click log, and what a model says of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from ttgraph.data import ClickBatch, ClickLog
from ttgraph.models import DLRM
from ttgraph.train.seeds import seed_of_epoch

# Rows a batch where nothing has to be kept for a gradient.
_EVAL_BATCH = 8192


class ClickBatches:
    """The training rows of a log, an epoch in parts: in order of time, the rows of each part mixed.

    Args:
        log: The click log.
        rows: Which of its rows.
        batch_size: Rows a batch; only the last one of an epoch may have fewer.
        parts: Parts of an epoch, fewer where there are fewer batches.
        seed: Of the order of the rows.
    """

    unit = "row"

    def __init__(self, log: ClickLog, rows: range, batch_size: int, parts: int, seed: int) -> None:
        self._log, self._rows, self._batch_size, self._seed = log, rows, batch_size, seed
        self._steps = -(-len(rows) // batch_size)
        self.parts = min(parts, self._steps)
        self.units_per_epoch = -(-len(rows) // self.parts)

    def __len__(self) -> int:
        return -(-self._steps // self.parts)

    def epoch(self, number: int) -> Iterator[ClickBatch]:
        """The batches of part ``number`` of all parts of all epochs."""
        part = number % self.parts
        begin, end = (self._steps * place // self.parts * self._batch_size for place in (part, part + 1))
        seed = seed_of_epoch(self._seed, number)
        return self._log.batches(self._rows[begin:end], self._batch_size, shuffle_seed=seed)


@torch.no_grad()
def predict(model: DLRM, log: ClickLog, rows: range) -> Tensor:
    """The click probabilities of some rows of a log.

    Args:
        model: What predicts.
        log: The click log.
        rows: Which of its rows.

    Returns:
        The probabilities.  # (num_rows,) float32
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    batches = log.batches(rows, _EVAL_BATCH)
    logits = [model(batch.dense.to(device), batch.values.to(device)).cpu() for batch in batches]
    model.train(training)
    return torch.cat(logits).sigmoid()


def scores(log: ClickLog, rows: range, probabilities: Tensor) -> tuple[float, float]:
    """Area under the ROC curve, and mean log-loss.

    Args:
        log: The click log.
        rows: Some of its rows.
        probabilities: What a model says of them.  # (num_rows,)
    """
    labels, predicted = log.labels[rows.start : rows.stop], probabilities.double().nan_to_num().numpy()
    return float(roc_auc_score(labels, predicted)), float(log_loss(labels, predicted))


def check_labels(log: ClickLog, parts: dict[str, range]) -> None:
    """Refuse rows over which the area under the ROC curve is not defined.

    Args:
        log: The click log.
        parts: Rows by what they are for.

    Raises:
        ValueError: If the rows of a part are too few, or all clicked, or none.
    """
    for name, rows in parts.items():
        clicks = np.count_nonzero(log.labels[rows.start : rows.stop])
        if clicks in (0, len(rows)):
            raise ValueError(
                f"{log.folder}: AUC is not defined over the {len(rows)} {name} rows, {clicks} of which were clicked; "
                "take a larger log, or more of eval_rows"
            )
