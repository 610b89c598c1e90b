"""What of the benchmarks can be tested without a clock."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import contenders
import ids as patterns
import kernels
import timing
from ttgraph.shape import TTShape

CPU = torch.device("cpu")
SHAPE = TTShape((7, 5, 6), (2, 3, 4), (1, 4, 3, 1))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def setup(contender, shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return contender().setup([torch.randn(sizes, generator=generator) for sizes in shape.core_shapes], shape)


def test_uniform_and_sweep():
    ids = patterns.uniform(50, 5000)
    assert torch.bincount(ids, minlength=50).min() > 50
    assert len(torch.bincount(ids)) == 50
    assert patterns.sweep(7).tolist() == list(range(7))


def test_zipf_follows_its_law():
    num_rows, num_ids = 1000, 200_000
    ids = patterns.zipf_bags(num_rows, num_ids)
    counts = torch.bincount(ids, minlength=num_rows)
    assert len(counts) == num_rows
    order = counts.argsort(descending=True)
    weights = torch.arange(1, num_rows + 1, dtype=torch.float64).pow(-1.05)
    expected = num_ids * weights / weights.sum()
    assert ((counts[order[:20]] - expected[:20]).abs() < 6 * expected[:20].sqrt()).all()
    assert (order[1:20] - order[:19]).abs().float().mean() > 50  # popular rows are no neighbours


@pytest.mark.parametrize("rows_per_prefix", [1, 4, 6])
def test_shared_rows_share_as_many_as_asked(rows_per_prefix):
    ids = patterns.shared(SHAPE.row_factors, 30, rows_per_prefix)
    assert len(ids.unique()) == len(ids) == 30 // rows_per_prefix * rows_per_prefix
    _, counts = (ids // 6).unique(return_counts=True)
    assert set(counts.tolist()) == {rows_per_prefix}
    assert ids.max() < SHAPE.num_embeddings
    with pytest.raises(ValueError, match="36 prefixes .* 35 of 6"):
        patterns.shared(SHAPE.row_factors, 36 * rows_per_prefix, rows_per_prefix)


def test_neighbour_blocks_are_the_same_nodes_in_two_orders():
    pytest.importorskip("torch_geometric")
    pytest.importorskip("pymetis")
    side = torch.arange(400).view(20, 20)
    edges = torch.cat(
        [torch.stack([a.flatten(), b.flatten()]) for a, b in ((side[1:], side[:-1]), (side.T[1:], side.T[:-1]))], 1
    )
    edges = torch.cat([edges, edges.flip(0)], 1)
    blocks = patterns.neighbour_blocks(edges, 400, (5, 8, 10), batch_size=16, fanouts=(2, 2), num_blocks=3)
    prefixes = {}
    for kind in ("random", "parts"):
        for metis, shuffled in zip(blocks[kind]["metis"], blocks[kind]["random"], strict=True):
            assert len(metis) == len(shuffled) == len(metis.unique()) == len(shuffled.unique())
            assert metis.max() < 400
        prefixes[kind] = [sum(len((ids // 10).unique()) for ids in blocks[kind][o]) for o in ("metis", "random")]
    assert prefixes["random"][0] < prefixes["random"][1]
    assert prefixes["parts"][0] < prefixes["parts"][1] / 2


@pytest.mark.parametrize(
    "contender",
    [
        contenders.Ours,
        contenders.Reference,
        contenders.GatherBmm,
        contenders.GatherBmmAtOnce,
        contenders.Dense,
        contenders.DenseSparseAdam,
        pytest.param(
            contenders.TensorlyTorch,
            marks=pytest.mark.skipif(importlib.util.find_spec("tltorch") is None, reason="the extra `bench`"),
        ),
    ],
)
def test_contenders_pass_the_check_and_a_step_changes_nothing(contender, monkeypatch):
    monkeypatch.setattr(contenders, "_CHUNK_BYTES", {"cpu": 1 << 10})  # so that chunks do occur
    monkeypatch.setattr(contenders, "_MOST_BYTES", 1 << 12)
    table = setup(contender)
    ids = patterns.uniform(SHAPE.num_embeddings, 300)
    contenders.check(table, ids)
    before = [parameter.detach().clone() for parameter in table.parameters]
    table.step(ids, torch.randn(300, SHAPE.embedding_dim))
    assert all(torch.equal(a, b) for a, b in zip(before, table.parameters, strict=True))
    contenders.check(table, ids)


class WrongRow(contenders.GatherBmm):
    name = "wrong row"

    def rows(self, ids):
        return super().rows(ids + (ids == 17).long())


class WrongGradient(contenders.GatherBmm):
    name = "wrong gradient"

    def core_gradients(self, ids, grad):
        first, *others = super().core_gradients(ids, grad)
        return [first * 1.001, *others]


class NotANumber(contenders.GatherBmm):
    name = "nan"

    def rows(self, ids):
        return super().rows(ids) * torch.where(ids == 17, math.nan, 1.0)[:, None]


@pytest.mark.parametrize("wrong", [WrongRow, WrongGradient, NotANumber])
def test_the_check_refuses_a_wrong_contender(wrong, tmp_path, monkeypatch, capsys):
    with pytest.raises(contenders.Mismatch, match=f"{wrong.name}: the .* not timed"):
        contenders.check(setup(wrong), patterns.sweep(210))
    monkeypatch.setitem(kernels.FIGURES, 1, kernels.Figure("wrong", lambda run: run_one(run, wrong)))

    def run_one(run, wrong):
        monkeypatch.setattr(type(run), "times", lambda *_, **__: pytest.fail("it was timed"))
        yield run.versus("backward", setup(contenders.Ours), setup(wrong), patterns.sweep(210))

    with pytest.raises(SystemExit, match="wrong results"):
        kernels.main(["--figure", "1", "--out", str(tmp_path)])
    assert "refused" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("contender", "variable", "module"),
    [
        (contenders.FBTT, "TTGRAPH_BENCH_FBTT", "tt_embeddings_ops.py"),
        (contenders.EcoRec, "TTGRAPH_BENCH_ECOREC", "ecorec/tt_emb.py"),
    ],
)
def test_adapters_of_gpu_libraries(contender, variable, module, tmp_path, monkeypatch):
    """Against a stand-in with the two libraries' interface; theirs needs a GPU."""
    with pytest.raises(contenders.Unavailable, match="--device cuda"):
        setup(contender)
    monkeypatch.setattr(contenders, "_needs_cuda", lambda contender: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(contenders.Unavailable, match=variable):
        setup(contender)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(contenders.Unavailable, match="does not import"):
        setup(contender)
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(
        textwrap.dedent("""
        import torch

        class TTEmbeddingBag(torch.nn.Module):
            def __init__(self, num_embeddings, embedding_dim, tt_ranks, tt_p_shapes, tt_q_shapes, learning_rate=None,
                         **options):
                super().__init__()
                self.ranks, self.sizes, self.learning_rate = [1, *tt_ranks, 1], tt_q_shapes, learning_rate
                self.tt_cores = torch.nn.ParameterList(
                    torch.nn.Parameter(torch.zeros(p, r * q * s))
                    for p, r, q, s in zip(tt_p_shapes, self.ranks, tt_q_shapes, self.ranks[1:])
                )
                if learning_rate is not None:
                    for core in self.tt_cores:
                        core.register_post_accumulate_grad_hook(self.update)

            def update(self, core):
                with torch.no_grad():
                    core -= self.learning_rate * core.grad

            def forward(self, indices, offsets):
                assert torch.equal(offsets, torch.arange(len(indices) + 1))
                rows = torch.ones(len(indices), 1, 1)
                for k in reversed(range(3)):
                    core = self.tt_cores[k]
                    digit, indices = indices % len(core), indices // len(core)
                    part = core[digit].view(-1, self.ranks[k], self.sizes[k], self.ranks[k + 1])
                    rows = torch.einsum("nrqs,nsb->nrqb", part, rows.reshape(len(part), self.ranks[k + 1], -1))
                    rows = rows.flatten(2)
                return rows[:, 0]
        """)
    )
    importlib.invalidate_caches()
    table = setup(contender)
    contenders.check(table, patterns.uniform(SHAPE.num_embeddings, 300))
    table.step(patterns.sweep(9), torch.ones(9, SHAPE.embedding_dim))
    for parameter, core in zip(table.parameters, table.truth, strict=True):
        assert torch.equal(parameter.view(core.shape), core)


def test_actions_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(timing, "_time", lambda action, repeats, device: turns.append(action()) or len(turns))
    times = timing.interleaved({"a": lambda: "a", "b": lambda: "b"}, CPU, seconds=0, min_rounds=3)
    assert "".join(turns) == "ab" + "abbaab"  # warm-up, then the rounds
    assert times == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_ratio_and_its_quartiles():
    ratio = timing.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (ratio.low, ratio.median, ratio.high) == (2, 3, 4)
    assert timing.ratio([1.0], [4.0]).median == 0.25


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux measures it")
def test_peak_memory():
    peak = timing.peak_bytes(lambda: torch.ones(1 << 24).add(1).sum(), CPU)
    assert 0.95 < peak / 2**27 < 1.3


def test_work_counts_what_has_to_be_multiplied():
    """By hand: prefix products of 2 x 4 by 4 x (3 * 3), rows of 6 x 3 by 3 x 4."""
    ids = torch.tensor([0, 1, 1, 6, 209])  # three prefixes, four rows
    per_prefix, per_row = 2 * 2 * 4 * 9, 2 * 6 * 3 * 4
    assert kernels._work(SHAPE, ids) == (3 * per_prefix + 4 * per_row, 9 * per_prefix + 8 * per_row)


def test_quick_run_writes_valid_json(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TTGRAPH_BENCH_ARXIV", raising=False)
    arguments = ["--figure", "3,8,10", "--quick", "--ranks", "4", "--ids", "50", "--out", str(tmp_path), "--plots"]
    kernels.main(arguments)
    out = capsys.readouterr().out
    assert "8. neighbourhoods of ogbn-arxiv in METIS order over random order: skipped: " in out
    assert "set TTGRAPH_BENCH_ARXIV" in out
    assert "10. roofline: skipped" in out
    figure = json.loads((tmp_path / "figure-03.json").read_text())
    assert figure["figure"] == 3
    assert {row["pattern"] for row in figure["rows"]} == {"uniform", "sweep", "zipf"}
    for row in figure["rows"]:
        assert (row["rank"], row["ids"]) == (4, 50)
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["ours ms"] > 0
    assert {row["over"] for row in figure["rows"]} == {"gather + bmm", "gather + bmm in chunks"}
    assert sum(row["worst"] for row in figure["rows"]) >= 1
    assert figure["machine"]["threads"] == 1
    plots = {"ratio-against-rank.png"} if importlib.util.find_spec("matplotlib") else set()
    assert {path.name for path in tmp_path.iterdir()} == {"figure-03.json"} | plots


def test_bags_and_layers_are_compared_too(tmp_path):
    kernels.main(["--figure", "18,19,20", "--quick", "--ranks", "4", "--ids", "60", "--out", str(tmp_path)])
    bags, call, cache = (
        json.loads((tmp_path / f"figure-{number}.json").read_text())["rows"] for number in (18, 19, 20)
    )
    assert {"nn.EmbeddingBag(sparse) + SparseAdam", "gather + bmm in chunks"} <= {row["over"] for row in bags}
    assert {row["what"] for row in bags} == {"forward", "step"}
    assert [row["tables"] for row in call] == [14]
    assert [row["hits"] > 0.9 for row in cache] == [True]
    assert all(row["ratio"] > 0 for row in (*bags, *call, *cache))


def test_it_starts_with_torch_alone():
    """What a GPU machine has; a module set to None does not import."""
    missing = ("scipy", "torch_geometric", "matplotlib", "tyro", "tltorch", "pymetis", "tabulate", "networkx", "yaml")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); sys.path.insert(0, {kernels.__file__!r}[:-11]);"
    done = subprocess.run([sys.executable, "-c", code + "import kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
