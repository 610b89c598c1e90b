"""Class probabilities of every node from the graph and the training labels, without training a network."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.node_roles import node_roles
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
# Of the forest: trees, the least training nodes in a leaf, columns tried at a split, and training nodes a tree at most.
_TREES, _LEAF, _TRIED, _SAMPLE = 200, 5, 0.3, 10_000
_ROWS = 1 << 16  # nodes that the forest judges at a time


def estimate_classes(
    csr: CSR,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    *,
    num_classes: int | None = None,
    seed: int = 0,
) -> Tensor:  # (num_nodes, num_classes) float32
    """Estimate each node's class from the training labels of the others, whether like links to like or not.

    Three experts learn nothing from each other: label propagation; :func:`belief_propagation`, which measures which
    classes link to which; and the labels two hops away. A fourth, a forest of extremely randomised trees, learns from
    the three and from :func:`~ttgraph.graph.node_roles.node_roles`. The log probabilities of all four are pooled with
    the degrees of a node and of its neighbours by a logistic regression on the training labels, with one weight an
    expert.

    No expert sees a node's own label to estimate it: the training nodes are dealt into folds, whose labels the three
    do without, and the forest judges a training node by the trees that did not draw it. So a training node is as
    uncertain as any other, and where labels are too few for a forest, the pool gives it little weight. Labels outside
    ``train_mask`` are never read.

    Args:
        csr: The graph, symmetric: of :meth:`CSR.undirected`.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        num_classes: Number of classes; by default one more than the largest training label.
        seed: Seed of the folds, of the forest and of the eigenvectors among the roles.

    Returns:
        Probabilities; each row sums to 1.  # (num_nodes, num_classes) float32

    Raises:
        ValueError: If the mask is no mask or is empty, or a training label is out of range.

    Source:
        Wolpert, "Stacked generalization", Neural Networks 1992; Hinton, "Training products of experts by minimizing
        contrastive divergence", 2002; Geurts et al., "Extremely randomized trees", Machine Learning 2006.

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
    classes = known[train].argmax(dim=1)
    roles = node_roles(csr, seed=seed)
    forest = _doubted(_forest(experts, roles, train, classes, seed))
    return _pooled(torch.cat([experts, forest[None]]), _standardized(roles[:, :2]), train, classes)


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
    """What each expert but the forest believes, in logarithms."""  # (num_experts, num_nodes, num_classes)
    adj = symmetric_adjacency(csr)
    spread = propagate_clamped(adj, known, _PROPAGATION_STEPS)
    two_hops = normalized(aggregate(adj, aggregate(adj, known)))
    return _doubted(torch.stack([spread, belief_propagation(csr, known), two_hops]))


def _doubted(beliefs: Tensor) -> Tensor:
    """Logarithms of probabilities none of which is zero, in place."""  # (..., num_classes)
    return beliefs.mul_(1 - _DOUBT).add_(_DOUBT / beliefs.size(-1)).log_()


def _forest(experts: Tensor, roles: Tensor, train: Tensor, known: Tensor, seed: int) -> Tensor:
    """Class probabilities from the experts and the roles, of training nodes by the trees that did not draw them."""
    from sklearn.ensemble import ExtraTreesClassifier

    def columns(rows: Tensor) -> np.ndarray:
        return torch.cat([*experts[:, rows], roles[rows]], dim=1).numpy()

    forest = ExtraTreesClassifier(
        _TREES,
        min_samples_leaf=_LEAF,
        max_features=_TRIED,
        max_samples=min(_SAMPLE, train.numel()),
        bootstrap=True,
        oob_score=True,
        random_state=seed,
    )
    with warnings.catch_warnings():  # that labels are few: a node that every tree drew gets no share of any class
        warnings.simplefilter("ignore", UserWarning)
        forest.fit(columns(train), known.numpy())
    shares = torch.zeros(experts.shape[1:])
    seen = torch.from_numpy(forest.classes_)
    for rows in torch.arange(len(roles)).split(_ROWS):
        shares[rows[:, None], seen] = torch.from_numpy(forest.predict_proba(columns(rows))).float()
    shares[train[:, None], seen] = torch.from_numpy(forest.oob_decision_function_).float()
    return shares


def _standardized(columns: Tensor) -> Tensor:
    """One, and the columns with mean zero and variance one."""  # (num_nodes, 1 + num_columns)
    columns = (columns - columns.mean(dim=0)) / columns.std(dim=0, correction=0).clamp(min=1e-6)
    return torch.cat([torch.ones(len(columns), 1), columns], dim=1)


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
