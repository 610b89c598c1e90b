"""Who is compared: each contender gets the same cores, the same ids and the same gradient of the rows."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.ops import reference, tt_lookup
from ttgraph.shape import TTShape
from ttgraph.tensor_train import to_matrix

# Contenders in plain torch gather a matrix per id. In chunks of about this size they are fastest on the CPU, and fit.
_CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 32}
_MOST_BYTES = 1 << 31  # of the matrices of all ids at once, where they are not taken in chunks
_LEARNING_RATE = 1e-30  # a step does all its work and changes nothing, so that what is timed stays what was checked
_TOLERANCE = 1e-4  # of the relative error, in the Frobenius norm; float32 is far below, tf32 above


class Unavailable(RuntimeError):
    """A contender that is not installed here; the message says what would make it so."""


class Mismatch(RuntimeError):
    """A contender whose rows or gradients are not those of the reference: its time means nothing."""


class Contender:
    """A table to look rows up in, set up from cores; the base class does it through autograd.

    Attributes:
        name: For the tables.
        parameters: What it trains.
        optimizer: What trains it.
        chunk: Ids that it takes at a time.
    """

    name = ""

    def setup(self, cores: Sequence[Tensor], shape: TTShape) -> Contender:
        """Takes copies of the cores; gives itself."""
        self.shape = shape
        self.truth = [core.detach().clone() for core in cores]
        self.chunk = 1 << 62
        self.prepare()
        return self

    def prepare(self) -> None:
        """Makes ``parameters`` and ``optimizer``: here the cores as they are, and Adam in one fused loop."""
        self.parameters = [core.clone().requires_grad_() for core in self.truth]
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.parameters, lr=_LEARNING_RATE, fused=True)

    def rows(self, ids: Tensor) -> Tensor:  # (num_ids,) -> (num_ids, embedding_dim)
        """The rows, differentiable."""
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        """The rows alone.  # (num_ids, embedding_dim)"""
        with torch.no_grad():
            chunks = [self.rows(part) for part in ids.split(self.chunk)]
            return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def backward(self, ids: Tensor, grad: Tensor) -> None:  # (num_ids,), (num_ids, embedding_dim)
        """Forward, and the gradients of the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        for part, grad_part in zip(ids.split(self.chunk), grad.split(self.chunk), strict=True):
            self.rows(part).backward(grad_part)

    def step(self, ids: Tensor, grad: Tensor) -> None:
        """Forward, backward and the optimizer: a step of training."""
        self.backward(ids, grad)
        self.optimizer.step()

    def core_gradients(self, ids: Tensor, grad: Tensor) -> list[Tensor] | None:
        """The gradients in the layout of the cores, for the check; None if the parameters are no cores."""
        self.backward(ids, grad)
        return [parameter.grad for parameter in self.parameters]


class Ours(Contender):
    """The kernels of this project."""

    name = "tt_lookup"

    def rows(self, ids: Tensor) -> Tensor:
        return tt_lookup(self.parameters, ids)


class Chunked(Contender):
    """A contender that holds a matrix for every id at once, in chunks of the size that suits it best."""

    def prepare(self) -> None:
        super().prepare()
        widest = max(core[0].numel() * core.element_size() for core in self.truth)
        self.chunk = max(1, self.chunk_bytes() // widest)

    def chunk_bytes(self) -> int:
        """Bytes of the matrices of a chunk."""
        return _CHUNK_BYTES[self.truth[0].device.type]


class Reference(Chunked):
    """The readable truth, through autograd."""

    name = "reference"

    def rows(self, ids: Tensor) -> Tensor:
        return reference.tt_lookup(self.parameters, ids, self.shape.num_padded_rows)


class GatherBmm(Chunked):
    """Plain torch, tuned: gather the slices of every id and multiply them in batches, a chunk of ids at a time."""

    name = "gather + bmm in chunks"

    def rows(self, ids: Tensor) -> Tensor:
        rows = None
        for core, size, stride in zip(self.parameters, self.shape.row_factors, self.shape.row_strides, strict=True):
            slices = core.flatten(2).index_select(0, ids // stride % size)  # (num_ids, rank, columns * right rank)
            rows = slices if rows is None else torch.bmm(rows, slices)
            rows = rows.reshape(len(ids), -1, core.shape[3])
        return rows.squeeze(2)


class GatherBmmAtOnce(GatherBmm):
    """What one writes in plain torch: the same for all ids, as far as memory goes."""

    name = "gather + bmm"

    def chunk_bytes(self) -> int:
        return _MOST_BYTES


class Dense(Contender):
    """The dense table that the cores stand for, under torch's own lookup."""

    name = "dense F.embedding"
    sparse = False

    def prepare(self) -> None:
        table = to_matrix(self.truth, self.shape.num_embeddings).contiguous()
        self.module = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=self.sparse)
        self.parameters = [self.module.weight]
        optimizer = torch.optim.SparseAdam if self.sparse else torch.optim.Adam
        self.optimizer = optimizer(self.parameters, lr=_LEARNING_RATE)

    def rows(self, ids: Tensor) -> Tensor:
        return self.module(ids)

    def core_gradients(self, ids: Tensor, grad: Tensor) -> None:
        return None


class DenseSparseAdam(Dense):
    """The dense table with sparse gradients: how large tables are trained."""

    name = "nn.Embedding(sparse) + SparseAdam"
    sparse = True


class TensorlyTorch(Chunked):
    """FactorizedEmbedding of tensorly-torch, with our cores in its own layout."""

    name = "tensorly-torch"

    def prepare(self) -> None:
        try:
            import tltorch
        except ImportError as error:
            raise Unavailable(f"tensorly-torch does not import ({error}); install the extra `bench`") from error
        super().prepare()
        self.module = tltorch.FactorizedEmbedding(
            self.shape.num_padded_rows,
            self.shape.embedding_dim,
            auto_tensorize=False,
            tensorized_num_embeddings=self.shape.row_factors,
            tensorized_embedding_dim=self.shape.col_factors,
            factorization="blocktt",
            rank=self.shape.ranks,
            device=self.truth[0].device,
        )
        self.parameters = list(self.module.weight.factors)
        with torch.no_grad():
            for factor, core in zip(self.parameters, self.truth, strict=True):
                factor.copy_(core.transpose(0, 1))
        self.optimizer = torch.optim.Adam(self.parameters, lr=_LEARNING_RATE, fused=True)

    def rows(self, ids: Tensor) -> Tensor:
        return self.module(ids)

    def core_gradients(self, ids: Tensor, grad: Tensor) -> list[Tensor]:
        self.backward(ids, grad)
        return [factor.grad.transpose(0, 1) for factor in self.parameters]


class FBTT(Contender):
    """FBTT-Embedding of TT-Rec, from the folder in TTGRAPH_BENCH_FBTT; gradients for torch's Adam, no cache."""

    name = "FBTT-Embedding"

    def prepare(self) -> None:
        _needs_cuda(self)
        _put_on_path(self, "TTGRAPH_BENCH_FBTT")
        try:
            from tt_embeddings_ops import TTEmbeddingBag
        except ImportError as error:
            raise Unavailable(f"{self.name} does not import: {error}") from error
        self.module = TTEmbeddingBag(**_bag_arguments(self.shape), sparse=False, use_cache=False, weight_dist="uniform")
        self._take_cores()
        self.optimizer = torch.optim.Adam(self.parameters, lr=_LEARNING_RATE, fused=True)

    def _take_cores(self) -> None:
        self.parameters = list(self.module.tt_cores)
        with torch.no_grad():
            for parameter, core in zip(self.parameters, self.truth, strict=True):
                parameter.copy_(core.reshape(parameter.shape))
        self.offsets = torch.empty(0, dtype=torch.int64)

    def rows(self, ids: Tensor) -> Tensor:
        if len(self.offsets) != len(ids) + 1:  # every id is a bag of its own
            self.offsets = torch.arange(len(ids) + 1, device=ids.device)
        return self.module(ids, self.offsets)

    def core_gradients(self, ids: Tensor, grad: Tensor) -> list[Tensor]:
        self.backward(ids, grad)
        return [p.grad.reshape(core.shape) for p, core in zip(self.parameters, self.truth, strict=True)]


class EcoRec(FBTT):
    """EcoRec, from the folder in TTGRAPH_BENCH_ECOREC; its backward is a step of SGD, in place."""

    name = "EcoRec"

    def prepare(self) -> None:
        _needs_cuda(self)
        _put_on_path(self, "TTGRAPH_BENCH_ECOREC")
        try:
            from ecorec.tt_emb import TTEmbeddingBag
        except ImportError as error:
            raise Unavailable(f"{self.name} does not import: {error}") from error
        self.module = TTEmbeddingBag(
            **_bag_arguments(self.shape), learning_rate=_LEARNING_RATE, device=self.truth[0].device
        )
        self._take_cores()

    def step(self, ids: Tensor, grad: Tensor) -> None:
        self.backward(ids, grad)

    def core_gradients(self, ids: Tensor, grad: Tensor) -> list[Tensor]:
        before, rate = [parameter.detach().clone() for parameter in self.parameters], self.module.learning_rate
        self.module.learning_rate = 1.0
        self.backward(ids, grad)
        self.module.learning_rate = rate
        with torch.no_grad():
            moved = [
                (old - p).reshape(core.shape) for old, p, core in zip(before, self.parameters, self.truth, strict=True)
            ]
            for old, parameter in zip(before, self.parameters, strict=True):
                parameter.copy_(old)
        return moved


def check(contender: Contender, ids: Tensor, *, bag: int = 1, num_samples: int = 256) -> None:
    """Compares rows, and gradients where there are any, with the reference in float64; to be called before timing.

    The contender works on all ids, as it will when timed; the reference on a sample of them. For the
    gradients, only the sampled rows get a gradient other than zero.

    Args:
        contender: Set up, not yet trained.
        ids: The ids to be timed.  # (num_ids,)
        bag: How many ids one after the other are summed up in a row.
        num_samples: Size of the sample, in such rows.

    Raises:
        Mismatch: If anything differs by more than rounding does, or is not a number.
    """
    generator = torch.Generator().manual_seed(len(ids))
    bags = ids.view(-1, bag)
    sample = torch.randperm(len(bags), generator=generator)[:num_samples].to(ids.device)
    rows, sampled = contender.forward(ids), bags[sample].flatten()
    check_rows(contender.name, rows[sample], contender.truth, sampled, bag=bag)
    grad = torch.zeros_like(rows)
    grad[sample] = torch.randn(len(sample), rows.shape[1], generator=generator).to(grad)
    got = contender.core_gradients(ids, grad)
    if got is not None:
        wide = [core.double() for core in contender.truth]
        of_rows = grad[sample].double().repeat_interleave(bag, 0)
        truth = reference.tt_lookup_backward(of_rows, wide, sampled, True)
        for k, (actual, expected) in enumerate(zip(got, truth, strict=True)):
            _refuse_unless_close(f"{contender.name}: the gradient of core {k}", actual, expected)


def check_rows(name: str, rows: Tensor, cores: Sequence[Tensor], ids: Tensor, *, bag: int = 1) -> None:
    """Compares rows with the reference in float64.

    Args:
        name: Whose rows they are, for the message.
        rows: The rows, or sums of them.  # (num_ids / bag, embedding_dim)
        cores: The cores they should come from.
        ids: Their ids.  # (num_ids,)
        bag: How many ids one after the other are summed up in a row.

    Raises:
        Mismatch: If they differ by more than rounding does.
    """
    truth = reference.tt_lookup([core.double() for core in cores], ids, math.prod(core.shape[0] for core in cores))
    _refuse_unless_close(f"{name}: the rows", rows, truth.view(-1, bag, truth.shape[1]).sum(1))


def _refuse_unless_close(what: str, actual: Tensor, expected: Tensor) -> None:
    error = float((actual.double() - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:  # so that NaN is refused, too
        raise Mismatch(f"{what} differ from the reference by {error:.1e}, more than {_TOLERANCE:.0e}; not timed")


def _needs_cuda(contender: Contender) -> None:
    if contender.truth[0].device.type != "cuda":
        raise Unavailable(f"{contender.name} has no CPU kernels; pass --device cuda")


def _put_on_path(contender: Contender, variable: str) -> None:
    folder = os.environ.get(variable)
    if not folder:
        raise Unavailable(f"{contender.name} is not here; set {variable} to the folder of its built package")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _bag_arguments(shape: TTShape) -> dict[str, object]:
    """What the bags of FBTT-Embedding and of its descendants call the parts of a shape."""
    return {
        "num_embeddings": shape.num_embeddings,
        "embedding_dim": shape.embedding_dim,
        "tt_ranks": list(shape.ranks[1:-1]),
        "tt_p_shapes": list(shape.row_factors),
        "tt_q_shapes": list(shape.col_factors),
    }
