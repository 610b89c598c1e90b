"""Bags of rows: a table under Zipf's law against its rivals, many tables in one call, and what the cache costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

import contenders
import ids as patterns
from contenders import Contender, Unavailable, check
from report import Row
from run import Run, ratio_columns
from ttgraph.ops import tt_embedding_bag

if TYPE_CHECKING:
    from ttgraph.nn import TTEmbeddingBag, TTEmbeddingBagCollection  # which need scipy

_BAG = 20  # ids of a bag, as of a multi-hot column
_BATCH = 100_000
_DIM = 16  # columns of a recommendation table, in the figures of whole layers
# The 26 columns of Criteo's Kaggle log, those of them whose table a tensor train makes smaller.
_TABLES = (10131227, 8351593, 7046547, 5461306, 2202608, 286181, 142572, 93145, 14992, 12517, 5683, 5652, 3194, 2173)


class _Pooled(Contender):
    """A contender whose rows are pooled in bags of one size; ids are taken in chunks of whole bags."""

    def rows(self, ids: Tensor) -> Tensor:  # (num_ids,) -> (num_ids / bag, embedding_dim)
        rows = super().rows(ids)
        return rows.view(-1, _BAG, rows.shape[1]).sum(1)

    def prepare(self) -> None:
        super().prepare()
        self.chunk = max(1, self.chunk // _BAG) * _BAG

    def backward(self, ids: Tensor, grad: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        for part, grad_part in zip(ids.split(self.chunk), grad.split(self.chunk // _BAG), strict=True):
            self.rows(part).backward(grad_part)


class Ours(_Pooled, contenders.Ours):
    """One op: rows go into their bags as they are computed."""

    name = "tt_embedding_bag"

    def rows(self, ids: Tensor) -> Tensor:
        return tt_embedding_bag(self.parameters, ids.view(-1, _BAG), mode="sum")


class Dense(_Pooled, contenders.DenseSparseAdam):
    """torch's own bags of a dense table, sparse gradients and SparseAdam."""

    name = "nn.EmbeddingBag(sparse) + SparseAdam"

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding_bag(ids.view(-1, _BAG), self.module.weight, mode="sum", sparse=True)


class GatherBmm(_Pooled, contenders.GatherBmm):
    """Gathered, multiplied and summed in plain torch."""


class TensorlyTorch(_Pooled, contenders.TensorlyTorch):
    """Looked up by tensorly-torch, summed by torch."""


class FBTT(_Pooled, contenders.FBTT):
    """FBTT-Embedding, its rows summed by torch."""


class EcoRec(_Pooled, contenders.EcoRec):
    """EcoRec, its rows summed by torch."""


def zipf_bags(run: Run) -> Iterator[Row]:
    """A step on bags of 20 rows under Zipf's law, against everybody."""
    for rank in run.ranks:
        shape = run.shape(rank)
        batch = run.batch(_BATCH) // _BAG * _BAG
        ids = patterns.zipf_bags(shape.num_embeddings, batch).to(run.device)
        grad = run.gradient(ids[::_BAG])
        ours = run.setup(Ours, shape)
        rivals = (Dense, GatherBmm, TensorlyTorch) if run.device.type == "cpu" else (Dense, GatherBmm, FBTT, EcoRec)
        for kind in rivals:
            try:
                other = run.setup(kind, shape)
            except Unavailable as error:
                print(f"without {kind.name}: {error}")
                continue
            for contender in (ours, other):
                check(contender, ids, bag=_BAG)
            for what in ("forward", "step"):
                arguments = (ids,) if what == "forward" else (ids, grad)
                actions = {"ours": getattr(ours, what), "other": getattr(other, what)}
                times = run.times(**{name: partial(action, *arguments) for name, action in actions.items()})
                labels = {"rank": rank, "ids": batch, "bag": _BAG, "what": what, "over": other.name}
                yield {**labels, **ratio_columns(times["ours"], times["other"])}


def _layers(run: Run, rank: int) -> tuple[list[TTEmbeddingBag], Tensor, Tensor]:
    """Tables, a batch of one id for each of them, and where its bags begin."""
    from ttgraph.nn import TTEmbeddingBag

    sizes = [size // 10 for size in _TABLES] if run.quick else list(_TABLES)
    generator = torch.Generator().manual_seed(0)
    tables = [TTEmbeddingBag(size, _DIM, rank, mode="sum", generator=generator, device=run.device) for size in sizes]
    batch = run.batch(2048)
    values = torch.cat([patterns.zipf_bags(size, batch, seed=table) for table, size in enumerate(sizes)])
    return tables, values.to(run.device), torch.arange(len(sizes) * batch + 1, device=run.device)


def _backward(bags: list[Tensor]) -> None:
    torch.autograd.backward(bags, [torch.ones_like(pooled) for pooled in bags])


def one_call(run: Run) -> Iterator[Row]:
    """All tables in one op over one op for each, forward and backward."""
    from ttgraph.nn import TTEmbeddingBagCollection

    for rank in run.ranks:
        tables, values, offsets = _layers(run, rank)
        collection = TTEmbeddingBagCollection({f"t{i}": table for i, table in enumerate(tables)})
        lines = values.view(len(tables), -1, 1)

        def together(collection=collection, values=values, offsets=offsets) -> list[Tensor]:
            return list(collection(values, offsets).values())

        def apart(tables=tables, lines=lines) -> list[Tensor]:
            return [table(line) for table, line in zip(tables, lines, strict=True)]

        for a, b in zip(together(), apart(), strict=True):
            torch.testing.assert_close(a, b)
        times = run.times(ours=lambda f=together: _backward(f()), other=lambda f=apart: _backward(f()))
        labels = {"rank": rank, "tables": len(tables), "ids": len(values), "what": "backward", "over": "a loop"}
        yield {**labels, **ratio_columns(times["ours"], times["other"])}


def cache(run: Run) -> Iterator[Row]:
    """Forward and backward with a cache of 10,000 rows over none, under Zipf's law."""
    from ttgraph.nn import TTEmbeddingBagCollection

    for rank in run.ranks:
        tables, values, offsets = _layers(run, rank)
        plain = TTEmbeddingBagCollection({f"t{i}": table for i, table in enumerate(tables)})
        cached = TTEmbeddingBagCollection(
            {f"t{i}": table for i, table in enumerate(tables)}, cache_rows=10_000, cache_warmup=1, cache_sparse=True
        )
        expected = list(plain(values, offsets).values())
        cached(values, offsets)
        cached.refresh_cache()
        for a, b in zip(cached(values, offsets).values(), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        times = run.times(
            ours=lambda c=cached, v=values, o=offsets: _backward(list(c(v, o).values())),
            other=lambda c=plain, v=values, o=offsets: _backward(list(c(v, o).values())),
        )
        hit_rate = float((cached.cache.find(_everywhere(cached, values)) < cached.cache.capacity).float().mean())
        labels = {"rank": rank, "ids": len(values), "hits": hit_rate, "what": "backward", "over": "no cache"}
        yield {**labels, **ratio_columns(times["ours"], times["other"])}


def _everywhere(collection: TTEmbeddingBagCollection, values: Tensor) -> Tensor:
    return (values.view(len(collection.tables), -1) + collection.first_rows[:, None]).flatten()
