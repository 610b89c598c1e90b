"""Leading eigenvectors of the normalised adjacency matrix, for graphs of millions of nodes."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.propagation import symmetric_adjacency

log = logging.getLogger(__name__)

_OVERSAMPLING = 10  # extra vectors, so that the wanted ones converge
_DENSE_NODES = 1024  # graphs of this size are solved exactly
_COLUMNS = 32  # vectors filtered at a time: two such blocks are the only memory beside the vectors themselves
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
    values = symmetric_adjacency(csr).weights
    index = torch.int32 if max(csr.num_edges, csr.num_nodes) < 2**31 else torch.int64
    return scipy.sparse.csr_matrix(
        (values.numpy(), csr.neighbours.to(index).numpy(), csr.offsets.to(index).numpy()),
        shape=(csr.num_nodes, csr.num_nodes),
    )


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
    matrix (8 bytes a stored edge) and two blocks of 32 vectors.

    Args:
        csr: Both directions of every edge, as ``CSR.undirected`` gives them.
        k: Vectors wanted.
        seed: Seed of the random start.
        tol: Stop when no eigenvalue moves more than this in an iteration; a vector's own error is about its root.
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
    if k < 0:
        raise ValueError(f"leading_eigenvectors needs k >= 0, got {k}")
    matrix, trivial, num_active = _operator(csr, min_component)
    k = min(k, max(num_active - 1, 0))
    if k == 0:
        return torch.zeros(0), torch.zeros(csr.num_nodes, 0)
    if num_active <= max(_DENSE_NODES, 4 * (k + _OVERSAMPLING)):
        return _dense(matrix, trivial, k)
    basis = torch.randn(csr.num_nodes, k + _OVERSAMPLING, generator=torch.Generator().manual_seed(seed))
    basis *= (trivial > 0)[:, None]
    operator = _to_torch(matrix)
    values = torch.zeros(k + _OVERSAMPLING, dtype=torch.float64)
    for iteration in range(max_iterations):
        for block in basis.split(_COLUMNS, dim=1):
            block.copy_(_filtered(operator, block, values[-1].item(), degree))
        basis.addr_(trivial, trivial @ basis, alpha=-1)
        previous, values = values, _rayleigh_ritz(operator, basis)
        change = (values - previous)[:k].abs().max().item()
        log.debug("iteration %d: eigenvalues %.5f to %.5f, moved %.1e", iteration, values[0], values[k - 1], change)
        if change < tol:
            break
    return values[:k].float(), basis[:, :k]


def _operator(csr: CSR, min_component: int) -> tuple[scipy.sparse.csr_matrix, Tensor, int]:
    """The matrix and the trivial eigenvector over components large enough, and how many nodes those have."""
    matrix = normalized_adjacency(csr)
    trivial = csr.degrees.float().sqrt()
    if min_component > 1:
        _, component = scipy.sparse.csgraph.connected_components(matrix, directed=False)
        small = np.bincount(component)[component] < min_component
        matrix.data[np.repeat(small, np.diff(matrix.indptr))] = 0  # its neighbours lie in the same component
        trivial[torch.from_numpy(small)] = 0
    num_active = int(trivial.count_nonzero())
    return matrix, trivial / trivial.norm().clamp_min(1e-30), num_active


def _to_torch(matrix: scipy.sparse.csr_matrix) -> Tensor:
    """The same matrix for torch, whose sparse product is multi-threaded; shares memory."""
    offsets, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # "beta state"
        return torch.sparse_csr_tensor(offsets, columns, values, matrix.shape)


def _dense(matrix: scipy.sparse.csr_matrix, trivial: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exactly; only the nodes with edges take part."""
    active = trivial.nonzero().flatten()
    full = torch.from_numpy(matrix[active.numpy()][:, active.numpy()].toarray()).double()
    full.addr_(trivial[active].double(), trivial[active].double(), alpha=-3)  # moves the trivial one to the end
    values, vectors = torch.linalg.eigh(full)
    out = torch.zeros(matrix.shape[0], k)
    out[active] = vectors.flip(1)[:, :k].float()
    return values.flip(0)[:k].float(), out


def _filtered(matrix: Tensor, block: Tensor, cut: float, degree: int) -> Tensor:
    """A polynomial of the matrix times the block that is small on [-1, cut] and grows fast from there to 1."""
    half, centre = (1 + cut) / 2, (cut - 1) / 2
    top = sigma = half / (1 - centre)  # scaled such that the value at 1 stays 1
    before = block.contiguous().clone()
    now = torch.addmm(before, matrix, before, beta=-centre * sigma / half, alpha=sigma / half)
    for _ in range(degree - 1):
        following = 1 / (2 / top - sigma)
        scale = 2 * following / half
        torch.addmm(before, matrix, now, beta=-sigma * following, alpha=scale, out=before)
        before.add_(now, alpha=-scale * centre)
        before, now, sigma = now, before, following
    return now


def _rayleigh_ritz(matrix: Tensor, basis: Tensor) -> Tensor:
    """Turns the basis, in place, into the best approximate eigenvectors within its span; returns the eigenvalues."""
    basis /= basis.norm(dim=0).clamp_min(1e-30)
    gram = _products(basis, basis)
    projected = torch.cat([_products(basis, matrix @ block.contiguous()) for block in basis.split(_COLUMNS, dim=1)], 1)
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
