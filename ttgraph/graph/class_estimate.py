"""Class probabilities of every node from the graph and the training labels, without training a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.propagation import known_labels, normalized, propagate_clamped, symmetric_adjacency
from ttgraph.ops import Adjacency, aggregate

_FOLDS = 5
_PROPAGATION_STEPS = 20
_BELIEF_ROUNDS = 10
# A neighbour counts degree**-_DAMPING: those of one node are alike, so that many of them say less than their number.
_DAMPING = 0.25
# Pseudo-counts of edges a class, chance plus one within the class: what to believe where no edge joins two labels.
_PRIOR_EDGES = 0.5
# An expert that is sure may be wrong in so many cases.
_DOUBT = 0.02
_RIDGE = 3e-3


def estimate_classes(
    csr: CSR,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> Tensor:  # (num_nodes, num_classes) float32
    """Estimate each node's class from the training labels of the others, whether like links to like or not.

    Three experts, which learn nothing from each other: label propagation; :func:`belief_propagation`, which
    measures which classes link to which; and the labels two hops away. Their log probabilities are pooled with the
    degrees of a node and of its neighbours by a logistic regression on the training labels, with one weight an expert.
    The training nodes are dealt into folds, and the experts see a node's own label neither to estimate it nor to
    fit the pool: a training node is as uncertain as any other. Labels outside ``train_mask`` are never read.

    Args:
        csr: The graph, symmetric: of :meth:`CSR.undirected`.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        num_classes: Number of classes; by default one more than the largest training label.
        seed: Seed of the folds.

    Returns:
        Probabilities; each row sums to 1.  # (num_nodes, num_classes) float32

    Raises:
        ValueError: If the mask is no mask or is empty, or a training label is out of range.

    Source:
        Wolpert, "Stacked generalization", Neural Networks 1992; Hinton, "Training products of experts by minimizing
        contrastive divergence", 2002.

    Example:
        >>> square = CSR.undirected(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4)
        >>> estimate_classes(square, torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool)).shape
        torch.Size([4, 2])
    """
    known = known_labels(labels, train_mask, csr.num_nodes, num_classes)
    train = train_mask.nonzero().flatten()
    shuffled = train[torch.randperm(train.numel(), generator=torch.Generator().manual_seed(seed))]
    experts = _experts(csr, known)
    for fold in shuffled.tensor_split(min(_FOLDS, train.numel())):
        experts[:, fold] = _experts(csr, known.index_fill(0, fold, 0))[:, fold]
    return _pooled(experts, _degree_columns(csr), train, known[train].argmax(dim=1))


def belief_propagation(
    csr: CSR,
    known: Tensor,  # (num_nodes, num_classes)
) -> Tensor:  # (num_nodes, num_classes)
    """Spread known labels by how often classes link to each other, which is measured on the way.

    Round by round, the edges at the labelled nodes tell how much oftener than by chance a class is next to another,
    a neighbour that is itself uncertain counting for each class by its belief; and a node's belief in a
    class is the prior times, over its neighbours, what their beliefs say of it.

    Args:
        csr: The graph, symmetric: of :meth:`CSR.undirected`.
        known: A one-hot row where the label is known, zeros elsewhere.  # (num_nodes, num_classes)

    Returns:
        Probabilities, from the neighbours alone where the label is known, too.  # (num_nodes, num_classes)

    Source:
        Gatterbauer et al., "Linearized and single-pass belief propagation", VLDB 2015; Kumar et al., "Factorized graph
        representations for semi-supervised learning from sparse data", SIGMOD 2020.

    Example:
        >>> path = CSR.undirected(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]), 6)
        >>> known = torch.eye(2)[[0, 1, 0, 1, 0, 0]] * torch.tensor([1, 1, 1, 1, 0, 0])[:, None]
        >>> belief_propagation(path, known).argmax(dim=1).tolist()
        [0, 1, 0, 1, 0, 1]
    """
    num_classes = known.size(1)
    adj = Adjacency(csr.offsets, csr.neighbours.long(), torch.ones(csr.num_edges), csr.num_nodes)
    degrees = csr.degrees.clamp(min=1).float()
    is_known = known.any(dim=1, keepdim=True)
    prior = normalized(known.sum(dim=0, keepdim=True) + 1)
    ends = normalized((known.T @ degrees + 1)[None])  # the class of an edge's end, by chance
    pseudo_counts = _PRIOR_EDGES * (torch.eye(num_classes) + num_classes * ends)
    trust = degrees.pow(-_DAMPING)[:, None]
    counts = known.T @ aggregate(adj, known)
    beliefs = torch.where(is_known, known, prior)
    for _ in range(_BELIEF_ROUNDS):
        counts = counts + pseudo_counts
        oftener = counts / (counts.sum(dim=1, keepdim=True) * normalized(counts.sum(dim=0, keepdim=True)))
        said = aggregate(adj, (beliefs @ oftener.T).log()) * trust
        told = (prior.log() + said).softmax(dim=1)
        beliefs = torch.where(is_known, known, told)
        counts = known.T @ aggregate(adj, beliefs)
    return told


def _experts(csr: CSR, known: Tensor) -> Tensor:
    """What each expert believes, in logarithms."""  # (num_experts, num_nodes, num_classes)
    adj = symmetric_adjacency(csr)
    spread = propagate_clamped(adj, known, _PROPAGATION_STEPS)
    two_hops = normalized(aggregate(adj, aggregate(adj, known)))
    beliefs = torch.stack([spread, belief_propagation(csr, known), two_hops])
    return beliefs.mul_(1 - _DOUBT).add_(_DOUBT / known.size(1)).log_()


def _degree_columns(csr: CSR) -> Tensor:
    """One, a node's log degree and the mean of its neighbours', standardised."""  # (num_nodes, 3)
    degrees = csr.degrees.clamp(min=1).float()
    mean = Adjacency(
        csr.offsets, csr.neighbours.long(), degrees.reciprocal().repeat_interleave(csr.degrees), csr.num_nodes
    )
    own = degrees.log()[:, None]
    columns = torch.cat([own, aggregate(mean, own)], dim=1)
    columns = (columns - columns.mean(dim=0)) / columns.std(dim=0, correction=0).clamp(min=1e-6)
    return torch.cat([torch.ones_like(own), columns], dim=1)


def _pooled(experts: Tensor, columns: Tensor, train: Tensor, known: Tensor) -> Tensor:
    """The experts' geometric mean under fitted weights, times a logistic regression on the columns."""
    weights = torch.full((len(experts),), 1 / len(experts), requires_grad=True)
    slopes = torch.zeros(columns.size(1), experts.size(2), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, slopes], max_iter=100, line_search_fn="strong_wolfe")
    shown, shown_columns = experts[:, train], columns[train]

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = torch.tensordot(weights, shown, 1) + shown_columns @ slopes
        value = F.cross_entropy(scores, known) + _RIDGE * (weights.square().sum() + slopes.square().sum())
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return (torch.tensordot(weights, experts, 1) + columns @ slopes).softmax(dim=1)
