"""What a whole epoch of a graph network takes: ours against plain PyG on a dense table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import timing
from contenders import Mismatch, Unavailable
from report import Row
from run import EMBEDDING_DIM, Run, ratio_columns

EPOCH_ROW_FACTORS = (1024, 13, 13)
_HIDDEN, _LAYERS, _HEADS, _RANK = 128, 3, 4, 16
_RATE = 1e-30  # a step does all its work and changes nothing


def epochs_of_arxiv(run: Run, batching: str, model: Literal["sage", "gat"] = "sage") -> Iterator[Row]:
    """An epoch of a network on ogbn-arxiv in METIS order, optimizer included, of every contender.

    Plain PyG has a dense table, torch's batch normalisation, rectification, dropout and fused Adam, as its
    examples do; its edges are an ``edge_index``, or the sparse matrix that it recommends for memory and speed.
    The self loops of ``gat`` are among them.
    """
    path = os.environ.get("TTGRAPH_BENCH_ARXIV")
    if not path:
        raise Unavailable("ogbn-arxiv is not here; set TTGRAPH_BENCH_ARXIV to its .npz in the neutral format")
    try:
        from torch_geometric.nn.models import GAT, GraphSAGE

        from ttgraph.data import load_dataset
        from ttgraph.graph import CSR
        from ttgraph.models import NodeClassifier, adjacency, make_gnn
        from ttgraph.nn import TTEmbedding
        from ttgraph.order import metis_order
        from ttgraph.train.batches import FullBatch, PartitionBatches, Supervision
    except ImportError as error:
        raise Unavailable(f"an epoch needs the whole of ttgraph: {error}") from error
    data = load_dataset(path)
    data = metis_order(data.edge_index, data.num_nodes, EPOCH_ROW_FACTORS).apply(data)
    csr = CSR.incoming(data.edge_index, data.num_nodes)
    if batching == "full":
        whole = FullBatch(Supervision(data), adjacency(model, csr).to(run.device))
        batches = list(whole.epoch(0))
    else:
        parts = PartitionBatches(
            Supervision(data),
            csr,
            EPOCH_ROW_FACTORS,
            model=model,
            num_batches=16,
            seed=0,
            device=torch.device(run.device),
        )
        batches = list(parts.epoch(0))

    torch.manual_seed(0)
    shape = dict(hidden=_HIDDEN, layers=_LAYERS, heads=_HEADS)
    tt = TTEmbedding(data.num_nodes, EMBEDDING_DIM, rank=_RANK, row_factors=EPOCH_ROW_FACTORS, std=0.1)
    dense = torch.nn.Embedding(data.num_nodes, EMBEDDING_DIM, _weight=tt.weight.detach().clone())
    ours = NodeClassifier(tt, make_gnn(model, EMBEDDING_DIM, data.num_classes, **shape)).to(run.device)
    ours_dense = NodeClassifier(dense, make_gnn(model, EMBEDDING_DIM, data.num_classes, **shape)).to(run.device)
    kind = {"sage": GraphSAGE, "gat": partial(GAT, heads=_HEADS, add_self_loops=False)}[model]
    plain = kind(EMBEDDING_DIM, _HIDDEN, _LAYERS, data.num_classes, dropout=0.5, norm="batch").to(run.device)
    for other in (ours_dense.gnn, plain):
        other.load_state_dict(ours.gnn.state_dict())

    def plain_scores(batch: int, sparse: bool) -> Tensor:
        chosen, edges = batches[batch], graphs[sparse][batch]
        table = dense.weight if chosen.node_ids is None else dense(chosen.node_ids)
        return plain(table, edges)

    graphs = {False: [_edge_index(batch.adj) for batch in batches], True: [_unweighted(b.adj) for b in batches]}
    scores: dict[str, Callable[[int], Tensor]] = {
        "ours": lambda i: ours(batches[i].adj, batches[i].node_ids),
        "ours, dense": lambda i: ours_dense(batches[i].adj, batches[i].node_ids),
        "PyG, dense": partial(plain_scores, sparse=False),
        "PyG, dense, sparse matrix": partial(plain_scores, sparse=True),
    }
    models = {name: [ours, ours_dense][name != "ours"] for name in list(scores)[:2]}
    models |= {name: torch.nn.ModuleList([dense, plain]) for name in list(scores)[2:]}
    _check({name: partial(score, 0) for name, score in scores.items()}, models)
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=_RATE, fused=True) for name, model in models.items()}

    def epoch(name: str) -> None:
        for i, batch in enumerate(batches):
            optimizers[name].zero_grad()
            F.cross_entropy(scores[name](i)[batch.targets], batch.labels).backward()
            optimizers[name].step()

    actions = {name: partial(epoch, name) for name in scores}
    times = run.times(**actions)
    peaks = {name: timing.peak_bytes(action, run.device) for name, action in actions.items()}
    mebibytes = {name: None if peak is None else peak / 2**20 for name, peak in peaks.items()}
    for name in list(scores)[1:]:
        columns = ratio_columns(times["ours"], times[name])
        yield {"over": name, **columns, "ours MiB": mebibytes["ours"], "other MiB": mebibytes[name]}


def _edge_index(adj) -> Tensor:  # Adjacency -> (2, num_edges)
    rows = torch.repeat_interleave(torch.arange(adj.num_rows, device=adj.device), adj.offsets.diff())
    return torch.stack([adj.neighbours, rows])


def _unweighted(adj) -> Tensor:
    """The matrix of ones over which PyG itself takes the mean, or attends."""
    return replace(adj, weights=torch.ones_like(adj.weights)).to_sparse()


@torch.no_grad()
def _check(scores: dict[str, Callable[[], Tensor]], models: dict[str, torch.nn.Module]) -> None:
    """All have the same numbers in them, so all must give the same scores, dropout left out."""
    for model in models.values():
        model.eval()
    truth = scores["PyG, dense"]()
    for name, score in scores.items():
        error = float((score() - truth).norm() / truth.norm())
        if not error <= 1e-4:
            raise Mismatch(f"{name}: its scores differ from PyG's by {error:.1e}; not timed")
    for model in models.values():
        model.train()
