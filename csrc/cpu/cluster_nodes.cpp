// Clusters of limited weight by label propagation: every node moves to the cluster of its neighbours that it
// is linked to the strongest and that still has room.
//
// One thread moves one node after another, each seeing the moves before it. That settles in fewer rounds than
// moves made at once, keeps the limit without any repair, and gives the same clusters on every machine; what
// binds are the reads of the neighbours' labels all over memory, and those are fetched ahead.
#include <algorithm>

#include "cpu/clusters.h"
#include "cpu/random.h"

namespace ttgraph {

constexpr int64_t kLabelsAhead = 32;   // neighbours whose labels are on their way
constexpr int64_t kWeightsAhead = 16;  // and those whose clusters' weights are

struct Clusters {
  int32_t* labels;   // of each node
  int64_t* weights;  // of each cluster
  int64_t max_weight;
};

// Moves each node once; gives how many went.
template <class Id>
static int64_t move_nodes(const int64_t* offsets, int64_t num_nodes, const Id* neighbours,
                          const int32_t* weights, const int32_t* node_weights, Clusters& clusters,
                          uint64_t seed, ClusterSums& sums) {
  int64_t moves = 0;
  for (int64_t node = 0; node < num_nodes; ++node) {
    const int64_t begin = offsets[node], end = offsets[node + 1];
    if (begin == end) continue;
    sums.reset(end - begin);
    for (int64_t e = begin; e < end; ++e) {
      if (e + kLabelsAhead < offsets[num_nodes]) {
        __builtin_prefetch(clusters.labels + neighbours[e + kLabelsAhead]);
        __builtin_prefetch(&clusters.weights[clusters.labels[neighbours[e + kWeightsAhead]]]);
      }
      if (neighbours[e] != node) sums.add(clusters.labels[neighbours[e]], weights ? weights[e] : 1);
    }
    const int32_t own = clusters.labels[node];
    const int64_t weight = node_weights ? node_weights[node] : 1;
    const uint64_t stream = random_bits(seed, node);
    int32_t best = own;
    int64_t strength = sums.of(own);
    for (int64_t i = 0; i < sums.size(); ++i) {
      const int32_t cluster = sums.cluster(i);
      if (cluster == own || sums.sum(i) < strength) continue;
      // Of equals a node's own cluster stays, and of others chance decides, or small ids would grow.
      if (sums.sum(i) == strength &&
          (best == own || random_bits(stream, cluster) <= random_bits(stream, best)))
        continue;
      if (clusters.weights[cluster] + weight > clusters.max_weight) continue;
      best = cluster;
      strength = sums.sum(i);
    }
    if (best == own) continue;
    clusters.weights[own] -= weight;
    clusters.weights[best] += weight;
    clusters.labels[node] = best;
    ++moves;
  }
  return moves;
}

Tensor cluster_nodes(Tensor offsets, Tensor neighbours, std::optional<Tensor> weights,
                     std::optional<Tensor> node_weights, std::optional<Tensor> labels, int64_t max_weight,
                     int64_t rounds, int64_t seed) {  // -> (num_nodes,) int32
  constexpr const char* op = "cluster_nodes";
  check_graph(op, offsets, neighbours, weights);
  const int64_t num_nodes = offsets.numel() - 1;
  node_weights = check_ints(op, "node_weights", node_weights, num_nodes);
  labels = check_ints(op, "labels", labels, num_nodes);
  const int32_t *const start = data_of(labels), *const node_weight = data_of(node_weights);
  check_range(op, "labels", start, num_nodes, num_nodes);
  // Read all over: with small pages, every read would look up its page first.
  const Tensor result = on_large_pages(torch::stable::empty({num_nodes}, ScalarType::Int));
  const Tensor sizes = on_large_pages(torch::stable::empty({num_nodes}, ScalarType::Long));
  Clusters clusters{static_cast<int32_t*>(result.mutable_data_ptr()),
                    static_cast<int64_t*>(sizes.mutable_data_ptr()), max_weight};
  std::fill_n(clusters.weights, num_nodes, 0);
  for (int64_t node = 0; node < num_nodes; ++node) {
    clusters.labels[node] = start ? start[node] : static_cast<int32_t>(node);
    clusters.weights[clusters.labels[node]] += node_weight ? node_weight[node] : 1;
  }
  ClusterSums sums;
  with_neighbours(neighbours, [&](const auto* ids) {
    for (int64_t round = 0; round < rounds; ++round)
      if (move_nodes(static_cast<const int64_t*>(offsets.const_data_ptr()), num_nodes, ids, data_of(weights),
                     node_weight, clusters, random_bits(seed, round), sums) == 0)
        break;
  });
  return result;
}

}  // namespace ttgraph
