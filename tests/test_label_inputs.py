from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttgraph.graph import CSR
from ttgraph.models import LabelInputs


def some_graph(num_nodes: int = 40, seed: int = 0) -> CSR:
    edges = torch.randint(num_nodes - 1, (2, 90), generator=torch.Generator().manual_seed(seed))  # one isolated node
    return CSR.undirected(edges, num_nodes)


def labelled(num_nodes: int = 40, num_classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_nodes,), generator=generator)
    return labels, torch.rand(num_nodes, generator=generator) < 0.6


@given(num_folds=st.integers(2, 7), seed=st.integers(0, 5))
def test_each_training_node_is_hidden_in_exactly_one_fold(num_folds, seed):
    labels, mask = labelled(seed=seed)
    inputs = LabelInputs(some_graph(), labels, mask, 3, num_folds=num_folds, seed=seed)
    hidden = torch.stack([inputs.hidden(fold) for fold in range(num_folds)])
    assert torch.equal(hidden.sum(0), mask.long())
    sizes = hidden.sum(1)
    assert sizes.max() - sizes.min() <= 1


def test_labels_outside_the_training_set_are_never_read():
    csr, (labels, mask) = some_graph(), labelled()
    other = torch.where(mask, labels, (labels + 1) % 3)
    ours, theirs = (LabelInputs(csr, y, mask, 3, num_folds=3) for y in (labels, other))
    for fold in (None, 0, 1, 2):
        assert torch.equal(ours.columns(fold), theirs.columns(fold))


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_a_hidden_fold_has_no_part_in_the_columns(fold):
    csr, (labels, mask) = some_graph(), labelled()
    inputs = LabelInputs(csr, labels, mask, 3, num_folds=3)
    hidden = inputs.hidden(fold)
    other = torch.where(hidden, (labels + 1) % 3, labels)
    assert torch.equal(LabelInputs(csr, other, mask, 3, num_folds=3).columns(fold), inputs.columns(fold))
    assert not inputs.columns(fold)[hidden, :3].any()
    assert not torch.equal(LabelInputs(csr, other, mask, 3, num_folds=3).columns(), inputs.columns())


def test_the_second_half_says_what_the_neighbours_say():
    # A star: what its centre hears is the mean of the leaves' labels, and not the centre's own.
    star = CSR.undirected(torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]]), 6)
    labels, mask = torch.tensor([1, 0, 0, 0, 1, 1]), torch.tensor([True, True, True, True, True, False])
    columns = LabelInputs(star, labels, mask, 2, num_folds=2).columns()
    assert columns.shape == (6, 4)
    assert columns[:, :2].mul(2).long().argmax(1)[:5].tolist() == labels[:5].tolist()
    told = (columns[:, 2:].mul(2).exp() - 1) * 1e-3
    torch.testing.assert_close(told[0], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(told[1], torch.tensor([0.0, 1.0]))
    assert not columns[5].any()  # nobody tells it anything


def test_columns_are_the_same_each_time_they_are_asked_for():
    csr, (labels, mask) = some_graph(), labelled()
    inputs = LabelInputs(csr, labels, mask, 3)
    assert inputs.num_channels == inputs.columns(1).size(1)
    first = inputs.columns(1).clone()
    inputs.columns(1).zero_()
    assert torch.equal(inputs.columns(1), first)


def test_as_many_training_nodes_as_folds():
    csr, (labels, _) = some_graph(), labelled()
    with pytest.raises(ValueError, match="num_folds=5 and 4 training nodes"):
        LabelInputs(csr, labels, torch.arange(40) < 4, 3)
    with pytest.raises(ValueError, match="need 2 folds or more"):
        LabelInputs(csr, labels, torch.arange(40) < 4, 3, num_folds=1)
