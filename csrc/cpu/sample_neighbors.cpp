// Sampled neighbourhoods: hop by hop, distinct incoming edges of every node that the hop before found.
//
// The edges of a node are a function of the seed and the node alone, so any thread can draw them. In every
// hop all threads draw, a block of nodes at a time and asking ahead for what comes next, since in a large
// graph nothing is in the caches; then one thread numbers what they found in the order of first sight.
#include <atomic>

#include "cpu/csr.h"
#include "cpu/distinct.h"
#include "cpu/numbering.h"

namespace ttgraph {
namespace {

constexpr int64_t kBlock = 64;  // nodes whose neighbours are on their way at the same time
constexpr int64_t kGrain = 1 << 13;

// The incoming neighbours of all nodes; a hop writes to the end of `entries` and `local`.
template <class Id>
class Graph {
 public:
  Graph(const char* op, const int64_t* offsets, int64_t num_nodes, const Id* neighbours, int64_t num_edges)
      : op_(op), offsets_(offsets), num_nodes_(num_nodes), neighbours_(neighbours), num_edges_(num_edges) {}

  // Adds where the edges of each node end, and keeps where they begin in the graph.
  void count(const int64_t* nodes, int64_t size, int64_t fanout, std::vector<int64_t>& row_offsets) {
    rows_.resize(size);
    std::atomic<int64_t> wrong = -1;
    const int64_t shares = count_shares(size, kGrain);
    each_share(shares, [&](int64_t share) {
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t i = share_begin(size, shares, share); i < end; ++i) {
        if (i + kAhead < end) __builtin_prefetch(offsets_ + nodes[i + kAhead]);
        const int64_t first = offsets_[nodes[i]], after = offsets_[nodes[i] + 1];
        if (first < 0 || after < first || after > num_edges_) wrong = nodes[i];
        rows_[i] = {first, after - first};
      }
    });
    require(wrong < 0, op_, " needs offsets that never decrease, up to the number of neighbours, ",
            num_edges_, "; those of node ", wrong.load(), " do not");
    for (const Row& row : rows_)
      row_offsets.push_back(row_offsets.back() + (fanout < 0 ? row.degree : std::min(row.degree, fanout)));
  }

  // Draws the edges that were counted: their places in the graph, and the neighbours there.
  void draw(const int64_t* nodes, const int64_t* row_offsets, uint64_t stream, int64_t* entries,
            int64_t* found) {
    const int64_t size = static_cast<int64_t>(rows_.size());
    std::atomic<int64_t> wrong = -1;
    const int64_t shares =
        std::min(std::max<int64_t>(size, 1), count_shares(row_offsets[size] - row_offsets[0], kGrain));
    each_share(shares, [&](int64_t share) {
      DistinctNumbers numbers;
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t row = share_begin(size, shares, share); row < end; row += kBlock) {
        const int64_t after = std::min(row + kBlock, end), begin = row_offsets[row] - row_offsets[0];
        draw_block(row, after, nodes, row_offsets, stream, numbers, entries + begin);
        const int64_t bad = gather(entries + begin, row_offsets[after] - row_offsets[row], found + begin);
        if (bad >= 0) wrong = bad;
      }
    });
    if (wrong >= 0)
      throw std::out_of_range(message(op_, ": neighbour ", int64_t{neighbours_[wrong]}, " at position ",
                                      wrong.load(), " is not one of the graph's ", num_nodes_, " nodes"));
  }

 private:
  struct Row {
    int64_t first, degree;
  };

  void draw_block(int64_t begin, int64_t end, const int64_t* nodes, const int64_t* row_offsets,
                  uint64_t stream, DistinctNumbers& numbers, int64_t* drawn) const {
    const Id* const neighbours = neighbours_;
    const Row* const rows = rows_.data();
    // In a loop of its own, so that the processor looks for many pages of the graph at a time.
    for (int64_t row = begin; row < end; ++row) __builtin_prefetch(neighbours + rows[row].first);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t count = row_offsets[row + 1] - row_offsets[row];
      const auto [first, degree] = rows[row];
      if (count < degree)
        numbers.draw(degree, count, random_bits(stream, nodes[row]), first, drawn);
      else
        for (int64_t e = 0; e < count; ++e) drawn[e] = first + e;
      for (int64_t e = 0; e < count; ++e) __builtin_prefetch(neighbours + drawn[e]);
      drawn += count;
    }
  }

  // The neighbours at some places; gives a place of one that is no node, or -1.
  int64_t gather(const int64_t* entries, int64_t count, int64_t* found) const {
    const Id* const neighbours = neighbours_;
    const uint64_t num_nodes = static_cast<uint64_t>(num_nodes_);
    int64_t wrong = -1;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t node = neighbours[entries[e]];
      wrong = static_cast<uint64_t>(node) < num_nodes ? wrong : entries[e];
      found[e] = node;
    }
    return wrong;
  }

  const char* op_;
  const int64_t* offsets_;
  int64_t num_nodes_;
  const Id* neighbours_;
  int64_t num_edges_;
  std::vector<Row> rows_;  // of the nodes that were counted
};

Tensor to_tensor(const std::vector<int64_t>& numbers) {
  const auto size = static_cast<int64_t>(numbers.size());
  return copy_of(numbers.data(), size, size);
}

template <class Id>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sample(Graph<Id> graph, int64_t num_nodes,
                                                          const Tensor& seeds,
                                                          const std::vector<int64_t>& fanouts,
                                                          uint64_t stream) {
  const int64_t num_seeds = seeds.numel();
  const int64_t* const first = longs(seeds);
  Numbering numbering;
  numbering.reserve(num_seeds);
  for (int64_t i = 0; i < num_seeds; ++i) numbering.add_seed(first[i]);
  std::vector<int64_t> row_offsets{0}, hop_sizes{num_seeds};
  Tensor entries = empty_longs(0), local = empty_longs(0);
  for (int64_t begin = 0; const int64_t fanout : fanouts) {
    const int64_t end = numbering.size(), known = row_offsets.back();
    const int64_t* const frontier = numbering.nodes() + begin;
    graph.count(frontier, end - begin, fanout, row_offsets);
    const int64_t num_edges = row_offsets.back();
    entries = copy_of(longs(entries), known, num_edges);
    local = copy_of(longs(local), known, num_edges);
    int64_t* const found = mutable_longs(local) + known;
    graph.draw(frontier, row_offsets.data() + begin, stream, mutable_longs(entries) + known, found);
    numbering.reserve(std::min(num_nodes + num_seeds, end + num_edges - known));
    numbering.number(found, num_edges - known);
    hop_sizes.push_back(numbering.size() - end);
    begin = end;
  }
  return {copy_of(numbering.nodes(), numbering.size(), numbering.size()), to_tensor(row_offsets), local,
          entries, to_tensor(hop_sizes)};
}

}  // namespace

// Nodes, and the edges drawn for all but the last hop's: where each row begins, local numbers of the
// neighbours, places in the graph; and how many nodes each hop found.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sample_neighbors(Tensor offsets, Tensor neighbours,
                                                                    Tensor seeds,
                                                                    std::vector<int64_t> fanouts,
                                                                    int64_t seed) {
  constexpr const char* op = "sample_neighbors";
  const int64_t num_nodes = offsets.numel() - 1, num_edges = neighbours.numel();
  const auto is_row = [](const Tensor& tensor, ScalarType dtype) {
    return tensor.dim() == 1 && tensor.is_cpu() && tensor.scalar_type() == dtype;
  };
  require(is_row(offsets, ScalarType::Long) && num_nodes >= 0 && num_nodes <= Numbering::kMostNodes, op,
          " needs offsets of shape (num_nodes + 1,), int64, on the CPU, of at most ", Numbering::kMostNodes,
          " nodes");
  require(is_row(neighbours, ScalarType::Long) || is_row(neighbours, ScalarType::Int), op,
          " needs neighbours of shape (num_edges,), int64 or int32, on the CPU");
  require(is_row(seeds, ScalarType::Long), op, " needs seeds of shape (num_seeds,), int64, on the CPU");
  offsets = torch::stable::contiguous(offsets);
  neighbours = torch::stable::contiguous(neighbours);
  seeds = torch::stable::contiguous(seeds);
  const int64_t* const first = longs(seeds);
  const auto outside = [&](int64_t node) { return node < 0 || node >= num_nodes; };
  if (const auto* wrong = std::find_if(first, first + seeds.numel(), outside); wrong < first + seeds.numel())
    throw std::out_of_range(
        message(op, ": seed node ", *wrong, " is not one of the graph's ", num_nodes, " nodes"));
  const auto run = [&](auto id) {
    using Id = decltype(id);
    const auto* const ids = static_cast<const Id*>(neighbours.const_data_ptr());
    return sample(Graph<Id>(op, longs(offsets), num_nodes, ids, num_edges), num_nodes, seeds, fanouts,
                  mix(static_cast<uint64_t>(seed) + kGamma));
  };
  return neighbours.scalar_type() == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
}

}  // namespace ttgraph
