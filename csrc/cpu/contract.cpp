// The quotient of a graph by clusters of its nodes: one node a cluster, and between two of them the weight of
// all edges that there are.
//
// Each cluster's row is summed twice, to count its entries and to write them: so nothing is allocated beside
// the result but the nodes by cluster.
#include "cpu/clusters.h"

namespace ttgraph {

constexpr int64_t kClusters = 1 << 10;  // that a thread takes at a time

// The nodes of cluster c are order[begins[c]] .. order[begins[c + 1] - 1], ascending.
struct Members {
  Members(const int32_t* labels, int64_t num_nodes, int64_t num_clusters)
      : begins(num_clusters + 1), order(num_nodes) {
    for (int64_t node = 0; node < num_nodes; ++node) ++begins[labels[node]];
    int64_t place = 0;
    for (int64_t& begin : begins) place += std::exchange(begin, place);
    for (int64_t node = 0; node < num_nodes; ++node)
      order[begins[labels[node]]++] = static_cast<int32_t>(node);
    for (int64_t c = num_clusters; c > 0; --c) begins[c] = begins[c - 1];
    begins[0] = 0;
  }

  std::vector<int64_t> begins;
  std::vector<int32_t> order;
};

// Asks for what will be read of the nodes to come: their offsets, then their neighbours, then the labels of
// these.
template <class Id>
static void ask_ahead(const int64_t* offsets, const Id* neighbours, const int32_t* labels,
                      const std::vector<int32_t>& order, int64_t place) {
  constexpr int64_t kOffsets = 12, kNeighbours = 8, kLabels = 4, kMostLabels = 16;
  const int64_t left = static_cast<int64_t>(order.size()) - place;
  if (left <= kOffsets) return;
  __builtin_prefetch(offsets + order[place + kOffsets]);
  __builtin_prefetch(neighbours + offsets[order[place + kNeighbours]]);
  const int32_t node = order[place + kLabels];
  const int64_t end = std::min(offsets[node + 1], offsets[node] + kMostLabels);
  for (int64_t e = offsets[node]; e < end; ++e) __builtin_prefetch(labels + neighbours[e]);
}

// Gives use(cluster, sums) the edges from each cluster to the others.
template <class Id, class Use>
static void each_cluster(const int64_t* offsets, const Id* neighbours, const int32_t* weights,
                         const int32_t* labels, const Members& members, const Use& use) {
  const int64_t num_clusters = static_cast<int64_t>(members.begins.size()) - 1;
  std::atomic<int64_t> next = 0;
  each_share(count_shares(num_clusters, kClusters), [&](int64_t) {
    ClusterSums sums;
    for (int64_t first; (first = kClusters * next++) < num_clusters;)
      for (int64_t c = first; c < std::min(first + kClusters, num_clusters); ++c) {
        int64_t most = 0;
        for (int64_t i = members.begins[c]; i < members.begins[c + 1]; ++i)
          most += offsets[members.order[i] + 1] - offsets[members.order[i]];
        sums.reset(std::min(most, num_clusters));
        for (int64_t i = members.begins[c]; i < members.begins[c + 1]; ++i) {
          ask_ahead(offsets, neighbours, labels, members.order, i);
          for (int64_t e = offsets[members.order[i]]; e < offsets[members.order[i] + 1]; ++e)
            if (labels[neighbours[e]] != c) sums.add(labels[neighbours[e]], weights ? weights[e] : 1);
        }
        use(c, sums);
      }
  });
}

std::tuple<Tensor, Tensor, Tensor> contract(Tensor offsets, Tensor neighbours, std::optional<Tensor> weights,
                                            Tensor labels, int64_t num_clusters) {
  constexpr const char* op = "contract";
  check_graph(op, offsets, neighbours, weights);
  const int64_t num_nodes = offsets.numel() - 1;
  require(num_clusters >= 0 && num_clusters < int64_t{1} << 31, op,
          " needs num_clusters from 0 to 2147483647, got ", num_clusters);
  labels = *check_ints(op, "labels", labels, num_nodes);
  const int32_t* const given = static_cast<const int32_t*>(labels.const_data_ptr());
  check_range(op, "labels", given, num_nodes, num_clusters);
  // Read all over: with small pages, every read would look up its page first.
  const Tensor near = on_large_pages(torch::stable::empty({num_nodes}, ScalarType::Int));
  int32_t* const label = static_cast<int32_t*>(near.mutable_data_ptr());
  std::copy_n(given, num_nodes, label);
  const Members members(label, num_nodes, num_clusters);
  const auto each = [&](const auto& use) {
    with_neighbours(neighbours, [&](const auto* ids) {
      each_cluster(static_cast<const int64_t*>(offsets.const_data_ptr()), ids, data_of(weights), label,
                   members, use);
    });
  };

  const Tensor begins = torch::stable::empty({num_clusters + 1}, ScalarType::Long);
  int64_t* const begin = static_cast<int64_t*>(begins.mutable_data_ptr());
  std::atomic<bool> fits = true;
  each([&](int64_t c, const ClusterSums& sums) {
    begin[c + 1] = sums.size();
    for (int64_t i = 0; i < sums.size(); ++i)
      if (sums.sum(i) != static_cast<int32_t>(sums.sum(i))) fits = false;
  });
  require(fits, op, " got weights whose sum between two clusters is more than an int32 holds");
  begin[0] = 0;
  for (int64_t c = 0; c < num_clusters; ++c) begin[c + 1] += begin[c];

  const Tensor others = torch::stable::empty({begin[num_clusters]}, ScalarType::Int);
  const Tensor totals = torch::stable::empty({begin[num_clusters]}, ScalarType::Int);
  int32_t* const other = static_cast<int32_t*>(others.mutable_data_ptr());
  int32_t* const total = static_cast<int32_t*>(totals.mutable_data_ptr());
  each([&](int64_t c, const ClusterSums& sums) {
    for (int64_t i = 0; i < sums.size(); ++i) other[begin[c] + i] = sums.cluster(i);
    std::sort(other + begin[c], other + begin[c + 1]);
    for (int64_t e = begin[c]; e < begin[c + 1]; ++e) total[e] = static_cast<int32_t>(sums.of(other[e]));
  });
  return {begins, others, totals};
}

}  // namespace ttgraph
