import sys, torch
sys.path.insert(0, ".")
from ttgraph.ops import tt_lookup, tt_materialize
from ttgraph._library import HAS_LIBRARY
import torch.nn.functional as F
print(torch.cuda.get_device_name(), HAS_LIBRARY)
def timed(f, n=20):
    for _ in range(3): f()
    torch.cuda.synchronize()
    ts = []
    for _ in range(n):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record(); f(); b.record(); torch.cuda.synchronize(); ts.append(a.elapsed_time(b))
    return sorted(ts)[n // 2] * 1e3
rf, cf = (140, 140, 125), tuple(map(int, (sys.argv[1] if len(sys.argv) > 1 else "4,4,8").split(",")))
x = torch.empty(1 << 28, device="cuda"); y = torch.empty_like(x)
t = timed(lambda: y.copy_(x)); print("copy TB/s", 2 * x.numel() * 4 / t / 1e6); del x, y
dense = torch.randn(2_450_000, 128, device="cuda")
for n in (100_000, 1_000_000):
    ids = torch.randint(2_450_000, (n,), device="cuda")
    g = torch.randn(n, 128, device="cuda")
    print(n, "dense", timed(lambda: F.embedding(ids, dense)))
    for r in (8, 16, 32, 64):
        cores = [torch.randn(a, p, b, q, device="cuda") * .3 for a, p, b, q in zip(rf, (1, r, r), cf, (r, r, 1))]
        bwd = torch.ops.ttgraph.tt_lookup_backward
        print(n, "rank", r, "fwd us", round(timed(lambda: tt_lookup(cores, ids))), "bwd us", round(timed(lambda: bwd(g, cores, ids, False))),
              "det", round(timed(lambda: bwd(g, cores, ids, True))), "mat", round(timed(lambda: tt_materialize(cores, 2_450_000))))
