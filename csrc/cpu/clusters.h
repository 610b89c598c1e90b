// Undirected graphs as compressed rows, and sums over the clusters that a node's neighbours are in.
#pragma once

#include <atomic>
#include <bit>

#include "checks.h"
#include "cpu/cores.h"

namespace ttgraph {

// Calls body with the neighbours in the type in which they are stored.
template <class Body>
void with_neighbours(const Tensor& neighbours, const Body& body) {
  if (neighbours.scalar_type() == ScalarType::Int)
    body(static_cast<const int32_t*>(neighbours.const_data_ptr()));
  else
    body(static_cast<const int64_t*>(neighbours.const_data_ptr()));
}

// As contiguous int32 if it is there and has so many entries.
inline std::optional<Tensor> check_ints(const char* op, const char* name, const std::optional<Tensor>& values,
                                        int64_t size) {
  if (!values) return values;
  require(values->dim() == 1 && values->numel() == size && values->is_cpu() &&
              values->scalar_type() == ScalarType::Int,
          op, " needs ", name, " of shape (", size, "), int32, on the CPU");
  return torch::stable::contiguous(*values);
}

inline const int32_t* data_of(const std::optional<Tensor>& values) {
  return values ? static_cast<const int32_t*>(values->const_data_ptr()) : nullptr;
}

inline void check_range(const char* op, const char* name, const int32_t* values, int64_t size,
                        int64_t limit) {
  for (int64_t i = 0; values && i < size; ++i)
    require(values[i] >= 0 && values[i] < limit, op, " needs ", name, " from 0 to ", limit - 1, ", got ",
            name, "[", i, "]=", values[i]);
}

// Compressed rows that a kernel can follow anywhere: offsets int64, neighbours int32 or int64.
inline void check_graph(const char* op, Tensor& offsets, Tensor& neighbours, std::optional<Tensor>& weights) {
  require(neighbours.dim() == 1 && neighbours.is_cpu() &&
              (neighbours.scalar_type() == ScalarType::Int || neighbours.scalar_type() == ScalarType::Long),
          op, " needs neighbours of one dimension, int32 or int64, on the CPU");
  const int64_t size = neighbours.numel();
  offsets = check_offsets(op, offsets, size);
  neighbours = torch::stable::contiguous(neighbours);
  weights = check_ints(op, "weights", weights, size);
  const int64_t num_nodes = offsets.numel() - 1;
  require(num_nodes < int64_t{1} << 31, op, " takes fewer than 2147483648 nodes, got ", num_nodes);
  std::atomic<int64_t> wrong = -1;
  with_neighbours(neighbours, [&](const auto* ids) {
    const int64_t shares = count_shares(size, 1 << 16);
    each_share(shares, [&](int64_t share) {
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t e = share_begin(size, shares, share); e < end; ++e)
        if (ids[e] < 0 || ids[e] >= num_nodes) wrong = e;
    });
  });
  require(wrong < 0, op, " needs neighbours from 0 to ", num_nodes - 1, "; the one at position ",
          wrong.load(), " is none");
}

// Sums by cluster in a hash table that is small where few are added, so that it stays in the cache.
class ClusterSums {
 public:
  // Empties it for up to so many clusters.
  void reset(int64_t most) {
    for (const uint32_t slot : used_) clusters_[slot] = -1;
    used_.clear();
    const uint64_t slots = std::bit_ceil(static_cast<uint64_t>(2 * most + 2));
    if (slots > clusters_.size()) {
      clusters_.assign(slots, -1);
      sums_.resize(slots);
    }
    mask_ = static_cast<uint32_t>(slots - 1);
  }

  void add(int32_t cluster, int64_t weight) {
    const uint32_t slot = slot_of(cluster);
    if (clusters_[slot] < 0) {
      clusters_[slot] = cluster;
      sums_[slot] = 0;
      used_.push_back(slot);
    }
    sums_[slot] += weight;
  }

  int64_t of(int32_t cluster) const {
    const uint32_t slot = slot_of(cluster);
    return clusters_[slot] < 0 ? 0 : sums_[slot];
  }

  int64_t size() const { return static_cast<int64_t>(used_.size()); }
  // Clusters and sums in the order in which the clusters came.
  int32_t cluster(int64_t i) const { return clusters_[used_[i]]; }
  int64_t sum(int64_t i) const { return sums_[used_[i]]; }

 private:
  uint32_t slot_of(int32_t cluster) const {
    uint32_t slot = (static_cast<uint32_t>(cluster) * 0x9e3779b1u >> 7) & mask_;
    while (clusters_[slot] >= 0 && clusters_[slot] != cluster) slot = (slot + 1) & mask_;
    return slot;
  }

  std::vector<int32_t> clusters_;
  std::vector<int64_t> sums_;
  std::vector<uint32_t> used_;
  uint32_t mask_ = 0;
};

}  // namespace ttgraph
