// Sampled neighbourhoods: hop by hop, distinct incoming edges of every node that the hop before found.
//
// The edges of a node are a function of the seed and the node alone, so any thread can draw them. In every
// hop all threads draw, a block of nodes at a time and asking ahead for what comes next, since in a large
// graph nothing is in the caches; then one thread numbers what they found in the order of first sight.
#include <atomic>
#include <bit>

#include "cpu/cores.h"
#include "cpu/csr.h"
#include "cpu/random.h"

namespace ttgraph {
namespace {

constexpr int64_t kBlock = 32;  // nodes whose neighbours are on their way at the same time
constexpr int64_t kMostNodes = (int64_t{1} << 32) - 1;
constexpr int64_t kGrain = 1 << 11;

int64_t* data(const Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

Tensor empty(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

// Numbers nodes in the order of first sight: a hash table of the size of the batch.
class Numbering {
 public:
  const std::vector<int64_t>& nodes() const { return nodes_; }
  int64_t size() const { return static_cast<int64_t>(nodes_.size()); }

  // Room for `most` different nodes; a third to two thirds of the slots are in use when they have come.
  void reserve(int64_t most) {
    const uint64_t least = static_cast<uint64_t>(most) + most / 2 + 1;
    if (mask_ + 1 >= least) return;
    mask_ = std::bit_ceil(std::max<uint64_t>(least, 2)) - 1;
    held_ = on_large_pages(empty(static_cast<int64_t>(mask_ + 1)));
    slots_ = reinterpret_cast<uint64_t*>(data(held_));
    std::fill_n(slots_, mask_ + 1, kFree);
    shift_ = std::countl_zero(mask_);
    nodes_.reserve(most);
    for (int64_t local = 0; local < size(); ++local) {
      uint64_t& slot = slot_of(nodes_[local]);
      if (slot == kFree) slot = entry(nodes_[local], local);
    }
  }

  void prefetch(int64_t node) const { __builtin_prefetch(&slots_[home(node)], 1); }

  int64_t number(int64_t node) {
    uint64_t& slot = slot_of(node);
    if (slot == kFree) {
      slot = entry(node, size());
      nodes_.push_back(node);
    }
    return static_cast<int64_t>(slot & 0xffffffffu);
  }

  // A seed has a row of its own, even if it came before; others find the first.
  void add_seed(int64_t node) {
    uint64_t& slot = slot_of(node);
    if (slot == kFree) slot = entry(node, size());
    nodes_.push_back(node);
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};

  static uint64_t entry(int64_t node, int64_t local) { return static_cast<uint64_t>(node) << 32 | local; }
  uint64_t home(int64_t node) const { return static_cast<uint64_t>(node) * kGamma >> shift_; }

  // The slot that holds the node, or the free one where it belongs.
  uint64_t& slot_of(int64_t node) {
    uint64_t slot = home(node);
    while (slots_[slot] != kFree && slots_[slot] >> 32 != static_cast<uint64_t>(node))
      slot = (slot + 1) & mask_;
    return slots_[slot];
  }

  std::vector<int64_t> nodes_;
  Tensor held_;
  uint64_t* slots_ = nullptr;
  uint64_t mask_ = 0;  // one less than the number of slots
  int shift_ = 0;
};

// A uniform set of distinct numbers below a limit: Bentley, Floyd, "Programming pearls: a sample of
// brilliance" (CACM 1987).
class DistinctNumbers {
 public:
  void draw(int64_t limit, int64_t count, uint64_t stream, int64_t first, int64_t* drawn) {
    // Bits of numbers that are taken: of all of them, or of their last digits where the limit is large
    // and few agree in those.
    seen_.assign(std::bit_ceil(static_cast<uint64_t>(count)), 0);
    const int64_t low_bits = static_cast<int64_t>(64 * seen_.size()) - 1;
    for (int64_t step = 0; step < count; ++step) {
      const int64_t top = limit - count + step;
      int64_t number = below(top + 1, random_bits(stream, step));
      const uint64_t bit = uint64_t{1} << (number & 63);
      uint64_t& word = seen_[(number & low_bits) >> 6];
      if ((word & bit) &&
          (limit <= low_bits + 1 || std::find(drawn, drawn + step, first + number) != drawn + step)) {
        number = top;
        seen_[(number & low_bits) >> 6] |= uint64_t{1} << (number & 63);
      } else {
        word |= bit;
      }
      drawn[step] = first + number;
    }
  }

 private:
  std::vector<uint64_t> seen_;
};

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
    const int64_t size = static_cast<int64_t>(rows_.size()), begin = row_offsets[0];
    std::atomic<int64_t> wrong = -1;
    const int64_t shares =
        std::min(std::max<int64_t>(size, 1), count_shares(row_offsets[size] - begin, kGrain));
    each_share(shares, [&](int64_t share) {
      DistinctNumbers numbers;
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t block = share_begin(size, shares, share); block < end; block += kBlock) {
        const int64_t after = std::min(block + kBlock, end);
        for (int64_t row = block; row < after; ++row) {
          int64_t* const drawn = entries + (row_offsets[row] - begin);
          const int64_t count = row_offsets[row + 1] - row_offsets[row];
          const auto [first, degree] = rows_[row];
          if (count < degree)
            numbers.draw(degree, count, random_bits(stream, nodes[row]), first, drawn);
          else
            for (int64_t e = 0; e < count; ++e) drawn[e] = first + e;
          for (int64_t e = 0; e < count; ++e) __builtin_prefetch(neighbours_ + drawn[e]);
        }
        for (int64_t e = row_offsets[block] - begin; e < row_offsets[after] - begin; ++e) {
          found[e] = neighbours_[entries[e]];
          if (found[e] < 0 || found[e] >= num_nodes_) wrong = entries[e];
        }
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

  const char* op_;
  const int64_t* offsets_;
  int64_t num_nodes_;
  const Id* neighbours_;
  int64_t num_edges_;
  std::vector<Row> rows_;  // of the nodes that were counted
};

// The same numbers with room for more behind them.
Tensor grown(const Tensor& tensor, int64_t size) {
  const Tensor larger = on_large_pages(empty(size));
  std::copy_n(longs(tensor), tensor.numel(), data(larger));
  return larger;
}

Tensor from_vector(const std::vector<int64_t>& values) {
  const Tensor whole = on_large_pages(empty(static_cast<int64_t>(values.size())));
  std::copy(values.begin(), values.end(), data(whole));
  return whole;
}

template <class Id>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sample(Graph<Id> graph, int64_t num_nodes,
                                                          const Tensor& seeds,
                                                          const std::vector<int64_t>& fanouts,
                                                          uint64_t stream) {
  Numbering numbering;
  numbering.reserve(seeds.numel());
  for (int64_t i = 0; i < seeds.numel(); ++i) numbering.add_seed(longs(seeds)[i]);
  std::vector<int64_t> row_offsets{0}, hop_sizes{seeds.numel()};
  Tensor entries = empty(0), local = empty(0);
  for (int64_t begin = 0; const int64_t fanout : fanouts) {
    const int64_t end = numbering.size();
    graph.count(numbering.nodes().data() + begin, end - begin, fanout, row_offsets);
    const int64_t* const rows = row_offsets.data() + begin;
    const int64_t size = row_offsets.back() - rows[0];
    entries = grown(entries, row_offsets.back());
    local = grown(local, row_offsets.back());
    int64_t* const found = data(local) + rows[0];
    graph.draw(numbering.nodes().data() + begin, rows, stream, data(entries) + rows[0], found);
    numbering.reserve(std::min(num_nodes + seeds.numel(), end + size));
    for (int64_t e = 0; e < std::min(size, kAhead); ++e) numbering.prefetch(found[e]);
    for (int64_t e = 0; e < size; ++e) {
      if (e + kAhead < size) numbering.prefetch(found[e + kAhead]);
      found[e] = numbering.number(found[e]);
    }
    hop_sizes.push_back(numbering.size() - end);
    begin = end;
  }
  return {from_vector(numbering.nodes()), from_vector(row_offsets), local, entries, from_vector(hop_sizes)};
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
  require(is_row(offsets, ScalarType::Long) && num_nodes >= 0 && num_nodes <= kMostNodes, op,
          " needs offsets of shape (num_nodes + 1,), int64, on the CPU, of at most ", kMostNodes, " nodes");
  require(is_row(neighbours, ScalarType::Long) || is_row(neighbours, ScalarType::Int), op,
          " needs neighbours of shape (num_edges,), int64 or int32, on the CPU");
  require(is_row(seeds, ScalarType::Long), op, " needs seeds of shape (num_seeds,), int64, on the CPU");
  offsets = torch::stable::contiguous(offsets);
  neighbours = torch::stable::contiguous(neighbours);
  seeds = torch::stable::contiguous(seeds);
  for (int64_t i = 0; i < seeds.numel(); ++i)
    if (const int64_t node = longs(seeds)[i]; node < 0 || node >= num_nodes)
      throw std::out_of_range(
          message(op, ": seed node ", node, " is not one of the graph's ", num_nodes, " nodes"));
  const auto run = [&](auto id) {
    using Id = decltype(id);
    const auto* const ids = static_cast<const Id*>(neighbours.const_data_ptr());
    return sample(Graph<Id>(op, longs(offsets), num_nodes, ids, num_edges), num_nodes, seeds, fanouts,
                  mix(static_cast<uint64_t>(seed) + kGamma));
  };
  return neighbours.scalar_type() == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
}

}  // namespace ttgraph
