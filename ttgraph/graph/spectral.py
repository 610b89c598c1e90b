"""Leading eigenvectors of the normalised adjacency matrix, for graphs of millions of nodes."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.propagation import symmetric_adjacency
from ttgraph.ops import Adjacency, aggregate

log = logging.getLogger(__name__)

_OVERSAMPLING = 10  # extra vectors, so that the wanted ones converge
_DENSE_NODES = 1024  # graphs of this size are solved exactly
_COLUMNS = 72  # vectors filtered at a time, at most: three such blocks are the only memory beside the vectors
_ROWS = 1 << 15


def normalized_adjacency(csr: CSR) -> scipy.sparse.csr_matrix:
    """The matrix ``D^-1/2 A D^-1/2`` of an undirected graph.

    Nodes without edges have empty rows. Indices are int32 where they fit, as sparse products want them.

    Args:
        csr: Both directions of every edge, as ``CSR.undirected`` gives them.

    Returns:
        Symmetric matrix with eigenvalues in [-1, 1], float32.  # (num_nodes, num_nodes)

    Source: Chung, "Spectral Graph Theory" (AMS 1997).

    Example:
        >>> normalized_adjacency(CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3)).toarray().round(2)[0]
        array([0.  , 0.71, 0.  ], dtype=float32)
    """
    return _to_scipy(symmetric_adjacency(csr))


def leading_eigenvectors(
    csr: CSR,
    k: int,
    *,
    seed: int = 0,
    tol: float = 1e-3,
    degree: int = 12,
    max_iterations: int = 30,
    min_component: int = 1,
) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the ``k`` largest eigenvalues of the normalised adjacency, without the trivial one.

    The trivial eigenvector is ``D^1/2 1``, of eigenvalue 1, which says nothing but a node's degree. In a graph of
    ``c`` components ``c - 1`` more vectors of eigenvalue 1 tell the components apart, and they are kept.

    Subspace iteration with a Chebyshev filter; a small graph is solved exactly. Beside the vectors it needs the
    matrix (12 bytes a stored edge) and three blocks of up to 72 vectors. What takes the time is ``degree + 1``
    products with all vectors an iteration, of which a graph of clear structure needs three to five.

    Args:
        csr: Both directions of every edge, as ``CSR.undirected`` gives them.
        k: Vectors wanted.
        seed: Seed of the random start.
        tol: Stop when, going by the last two iterations, no eigenvalue would move more than this in another; a
            vector's own error is about its root.
        degree: Degree of the filter, the number of sparse products an iteration.
        max_iterations: Iterations after which it stops anyway.
        min_component: Components of fewer nodes take no part: their rows are zero. Without it, a graph of many
            crumbs spends its leading vectors on them.

    Returns:
        Eigenvalues, descending, and orthonormal eigenvectors in the columns; fewer than ``k`` where the nodes that
        take part have no more.  # (<= k,) and (num_nodes, <= k), float32

    Raises:
        ValueError: If ``k`` is negative.

    Source: Zhou, Saad, Tiago, Chelikowsky, "Self-consistent-field calculations using Chebyshev-filtered subspace
    iteration" (J. Comput. Phys. 2006).

    Example:
        >>> ring = torch.stack([torch.arange(8), torch.arange(8).roll(-1)])
        >>> values, vectors = leading_eigenvectors(CSR.undirected(ring, 8), 2)
        >>> values
        tensor([0.7071, 0.7071])
    """
    return eigenvectors_of(
        symmetric_adjacency(csr),
        csr.degrees,
        k,
        seed=seed,
        tol=tol,
        degree=degree,
        max_iterations=max_iterations,
        min_component=min_component,
    )


def eigenvectors_of(
    matrix: Adjacency,
    degrees: Tensor,  # (num_nodes,)
    k: int,
    *,
    seed: int = 0,
    tol: float = 1e-3,
    degree: int = 12,
    max_iterations: int = 30,
    min_component: int = 1,
) -> tuple[Tensor, Tensor]:
    """:func:`leading_eigenvectors` of a normalised adjacency that is there already, with weights or self loops.

    Args:
        matrix: Symmetric, of eigenvalues in [-1, 1]. Its entries in small components become zero.
        degrees: The squares of its trivial eigenvector, up to a factor; 0 for what takes no part.  # (num_nodes,)
        k: Vectors wanted.
        seed: As there, and so on.
        tol: As there.
        degree: As there.
        max_iterations: As there.
        min_component: As there.
    """
    if k < 0:
        raise ValueError(f"leading_eigenvectors needs k >= 0, got {k}")
    trivial = _trivial(matrix, degrees, min_component)
    num_active = int(trivial.count_nonzero())
    k = min(k, max(num_active - 1, 0))
    if k == 0:
        return torch.zeros(0, dtype=torch.float32), torch.zeros(matrix.num_rows, 0, dtype=torch.float32)
    if num_active <= max(_DENSE_NODES, 4 * (k + _OVERSAMPLING)):
        return _dense(matrix, trivial, k)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(matrix.num_rows, k + _OVERSAMPLING, generator=generator, dtype=torch.float32)
    basis *= (trivial > 0)[:, None]
    values = torch.zeros(k + _OVERSAMPLING, dtype=torch.float64)
    change = 1.0
    for iteration in range(max_iterations):
        for block in _blocks(basis):
            block.copy_(_filtered(matrix, block, values[-1].item(), degree))
        basis.addr_(trivial, trivial @ basis, alpha=-1)
        previous, values = values, _rayleigh_ritz(matrix, basis)
        before, change = change, (values - previous)[:k].abs().max().item()
        log.debug("iteration %d: eigenvalues %.5f to %.5f, moved %.1e", iteration, values[0], values[k - 1], change)
        if change * min(change / before, 1) < tol:  # the error falls by the same factor every time
            break
    return values[:k].float(), basis[:, :k]


def _blocks(basis: Tensor) -> tuple[Tensor, ...]:
    """The columns in as few blocks as there may be, of about the same width."""
    return basis.chunk(-(-basis.shape[1] // _COLUMNS), dim=1)


def _trivial(matrix: Adjacency, degrees: Tensor, min_component: int) -> Tensor:
    """The trivial eigenvector over the components that are large enough; the matrix loses the others."""
    trivial = degrees.float().sqrt()
    if min_component > 1:
        # Of a symmetric matrix the strong components are all there are, and are found without its transpose.
        _, component = scipy.sparse.csgraph.connected_components(_to_scipy(matrix), connection="strong")
        small = torch.from_numpy(np.bincount(component)[component] < min_component)
        matrix.weights[small.repeat_interleave(matrix.offsets.diff())] = 0  # its neighbours lie in the same component
        trivial[small] = 0
    return trivial / trivial.norm().clamp_min(1e-30)


def _to_scipy(matrix: Adjacency) -> scipy.sparse.csr_matrix:
    index = torch.int32 if max(matrix.neighbours.numel(), matrix.num_rows) < 2**31 else torch.int64
    return scipy.sparse.csr_matrix(
        (matrix.weights.numpy(), matrix.neighbours.to(index).numpy(), matrix.offsets.to(index).numpy()),
        shape=(matrix.num_rows, matrix.num_sources),
    )


def _dense(matrix: Adjacency, trivial: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exactly; only the nodes with edges take part."""
    active = trivial.nonzero().flatten()
    full = torch.from_numpy(_to_scipy(matrix)[active.numpy()][:, active.numpy()].toarray()).double()
    full.addr_(trivial[active].double(), trivial[active].double(), alpha=-3)  # moves the trivial one to the end
    values, vectors = torch.linalg.eigh(full)
    out = torch.zeros(matrix.num_rows, k, dtype=torch.float32)
    out[active] = vectors.flip(1)[:, :k].float()
    return values.flip(0)[:k].float(), out


def _filtered(matrix: Adjacency, block: Tensor, cut: float, degree: int) -> Tensor:
    """A polynomial of the matrix times the block that is small on [-1, cut] and grows fast from there to 1."""
    half, centre = (1 + cut) / 2, (cut - 1) / 2
    top = sigma = half / (1 - centre)  # scaled such that the value at 1 stays 1
    before = block.contiguous()
    now = aggregate(matrix, before, before * -centre).mul_(sigma / half)
    for _ in range(degree - 1):
        following = 1 / (2 / top - sigma)
        scale = 2 * following / half
        start = before.mul_(-sigma * following / scale).add_(now, alpha=-centre)
        before, now, sigma = now, aggregate(matrix, now, start).mul_(scale), following
    return now


def _rayleigh_ritz(matrix: Adjacency, basis: Tensor) -> Tensor:
    """Turns the basis, in place, into the best approximate eigenvectors within its span; returns the eigenvalues."""
    basis /= basis.norm(dim=0).clamp_min(1e-30)
    gram = _products(basis, basis)
    projected = torch.cat([_products(basis, aggregate(matrix, block.contiguous())) for block in _blocks(basis)], 1)
    weights, vectors = torch.linalg.eigh(gram)
    whiten = vectors * weights.clamp_min(1e-6).rsqrt()
    values, rotation = torch.linalg.eigh(whiten.T @ ((projected + projected.T) / 2) @ whiten)
    rotation = (whiten @ rotation).flip(1).float()
    for rows in basis.split(_ROWS):
        rows.copy_(rows @ rotation)
    return values.flip(0)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``, summed over blocks of rows in float64."""
    out = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for a, b in zip(left.split(_ROWS), right.split(_ROWS), strict=True):
        out += a.T @ b
    return out
