// Both directions of undirected edges, sorted by source and target: a counting sort in two levels.
//
// The edges are first dealt out to buckets of consecutive sources, small enough for the cache, and then
// sorted within them. The first level uses the targets' half of the result as its scratch, so that nothing
// of the size of the graph is allocated but the result.
#include <atomic>

#include "cpu/cores.h"
#include "cpu/edges.h"

namespace ttgraph {

constexpr int64_t kBucket = 1 << 16;  // entries of a bucket, about: 512 KiB
constexpr int64_t kMostBuckets = 1 << 12;

// Sources u with the same u >> shift share a bucket.
static int bucket_shift(int64_t num_nodes, int64_t num_entries) {
  const int64_t buckets = std::clamp<int64_t>(num_entries / kBucket, 1, kMostBuckets);
  int shift = 0;
  while ((num_nodes - 1) >> shift >= buckets) ++shift;
  return shift;
}

// Deals out the entries source << 32 | target to their buckets; gives where each of those begins.
static std::vector<int64_t> deal_out(const uint64_t* keys, int64_t num_keys, int shift, int64_t num_buckets,
                                     int64_t* entries) {
  const int64_t shares = count_shares(num_keys, 1 << 16);
  std::vector<std::vector<int64_t>> places(shares, std::vector<int64_t>(num_buckets));
  const auto each_end = [&](int64_t share, const auto& use) {
    const int64_t end = share_begin(num_keys, shares, share + 1);
    for (int64_t i = share_begin(num_keys, shares, share); i < end; ++i) {
      if (keys[i] == kNoEdge) continue;
      use(keys[i]);
      use(keys[i] << 32 | keys[i] >> 32);
    }
  };
  each_share(shares, [&](int64_t share) {
    int64_t* const counts = places[share].data();
    each_end(share, [&](uint64_t entry) { ++counts[entry >> 32 >> shift]; });
  });
  std::vector<int64_t> begins(num_buckets + 1);
  int64_t place = 0;
  for (int64_t bucket = 0; bucket < num_buckets; ++bucket) {
    begins[bucket] = place;
    for (auto& share : places) place += std::exchange(share[bucket], place);
  }
  begins[num_buckets] = place;
  each_share(shares, [&](int64_t share) {
    int64_t* const next = places[share].data();
    each_end(share,
             [&](uint64_t entry) { entries[next[entry >> 32 >> shift]++] = static_cast<int64_t>(entry); });
  });
  return begins;
}

// Sorts the entries of one bucket and writes their sources and targets; false if two of them are equal.
static bool sort_bucket(int64_t first_source, int64_t num_sources, int64_t size, int64_t* sources,
                        int64_t* targets, std::vector<int64_t>& ends, std::vector<uint32_t>& sorted) {
  ends.assign(num_sources + 1, 0);
  sorted.resize(size);
  const auto source_of = [&](int64_t entry) {
    return static_cast<int64_t>(static_cast<uint64_t>(entry) >> 32) - first_source;
  };
  for (int64_t e = 0; e < size; ++e) ++ends[source_of(targets[e]) + 1];
  for (int64_t u = 0; u < num_sources; ++u) ends[u + 1] += ends[u];
  // Afterwards ends[u] has moved from where the targets of u begin to where they end.
  for (int64_t e = 0; e < size; ++e)
    sorted[ends[source_of(targets[e])]++] = static_cast<uint32_t>(targets[e]);
  bool distinct = true;
  for (int64_t u = 0, e = 0; u < num_sources; ++u) {
    std::sort(sorted.begin() + e, sorted.begin() + ends[u]);
    for (const int64_t begin = e; e < ends[u]; ++e) {
      sources[e] = first_source + u;
      targets[e] = sorted[e];
      distinct &= e == begin || sorted[e] != sorted[e - 1];
    }
  }
  return distinct;
}

Tensor both_directions_of(const char* op, const uint64_t* keys, int64_t num_keys, int64_t num_edges,
                          int64_t num_nodes) {
  const Tensor result = on_large_pages(torch::stable::empty({2, 2 * num_edges}, ScalarType::Long));
  if (num_edges == 0) return result;
  int64_t* const sources = static_cast<int64_t*>(result.mutable_data_ptr());
  int64_t* const targets = sources + 2 * num_edges;
  const int shift = bucket_shift(num_nodes, 2 * num_edges);
  const int64_t num_buckets = ((num_nodes - 1) >> shift) + 1;
  const std::vector<int64_t> begins = deal_out(keys, num_keys, shift, num_buckets, targets);
  std::atomic<int64_t> next = 0;
  std::atomic<bool> distinct = true;
  each_share(count_shares(2 * num_edges, kBucket), [&](int64_t) {
    std::vector<int64_t> ends;
    std::vector<uint32_t> sorted;
    for (int64_t bucket; (bucket = next++) < num_buckets;) {
      const int64_t first = bucket << shift, begin = begins[bucket];
      if (!sort_bucket(first, std::min(num_nodes - first, int64_t{1} << shift), begins[bucket + 1] - begin,
                       sources + begin, targets + begin, ends, sorted))
        distinct = false;
    }
  });
  require(distinct, op, " needs each edge once, in one direction");
  return result;
}

Tensor both_directions(Tensor edge_index, int64_t num_nodes) {  // (2, num_edges) -> (2, 2 * num_edges)
  constexpr const char* op = "both_directions";
  require(edge_index.dim() == 2 && edge_index.size(0) == 2 && edge_index.scalar_type() == ScalarType::Long,
          op, " needs edge_index of shape (2, num_edges), int64");
  require(num_nodes >= 0 && num_nodes <= kMostNodes, op, " takes at most ", kMostNodes, " nodes, got ",
          num_nodes);
  edge_index = torch::stable::contiguous(edge_index);
  const int64_t num_edges = edge_index.size(1);
  const int64_t* const ends = static_cast<const int64_t*>(edge_index.const_data_ptr());
  std::vector<uint64_t> keys(num_edges);
  std::atomic<int64_t> wrong = -1;
  const int64_t shares = count_shares(num_edges, 1 << 16);
  each_share(shares, [&](int64_t share) {
    for (int64_t e = share_begin(num_edges, shares, share); e < share_begin(num_edges, shares, share + 1);
         ++e) {
      const int64_t u = ends[e], v = ends[num_edges + e];
      if (u < 0 || v < 0 || u >= num_nodes || v >= num_nodes || u == v)
        wrong = e;
      else
        keys[e] = edge_key(u, v);
    }
  });
  require(wrong < 0, op, " needs edges between two different nodes below num_nodes=", num_nodes, "; edge ",
          wrong.load(), " is none");
  return both_directions_of(op, keys.data(), num_edges, num_edges, num_nodes);
}

}  // namespace ttgraph
