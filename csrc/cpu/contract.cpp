// The quotient of a graph by clusters of its nodes: one node a cluster, and between two of them the weight of
// all edges that there are.
//
// The nodes of a cluster are all over memory. So the clusters are taken in ranges: for each, all labels are
// read in order, and the neighbours of the nodes that are in it are copied to rows, one a cluster. What is
// left to be read at random are the labels of those, which can be asked for ahead.
#include "cpu/clusters.h"

namespace ttgraph {

constexpr int64_t kRangeEdges = 1 << 24;  // of the clusters of a range, about
constexpr int64_t kLabelsAhead = 32;      // neighbours whose labels are on their way

template <class Id>
struct Graph {
  const int64_t* offsets;
  const Id* neighbours;
  const int32_t* weights;  // of the edges, or none
  int64_t num_nodes;
};

// The rows of a range of clusters.
struct Quotient {
  std::vector<int64_t> sizes;
  std::vector<int32_t> others, totals;
};

// The edges from the nodes of clusters first .. last - 1, by cluster; begins[c] is where those of c begin.
template <class Id>
struct Rows {
  Rows(const Graph<Id>& graph, const int32_t* labels, const int64_t* begins, int64_t first, int64_t last)
      : ends(begins + first, begins + last), ids(begins[last] - begins[first]) {
    if (graph.weights) weights.resize(ids.size());
    for (int64_t& end : ends) end -= begins[first];
    for (int64_t node = 0; node < graph.num_nodes; ++node) {
      if (labels[node] < first || labels[node] >= last) continue;
      int64_t& end = ends[labels[node] - first];
      for (int64_t e = graph.offsets[node]; e < graph.offsets[node + 1]; ++e, ++end) {
        ids[end] = static_cast<int32_t>(graph.neighbours[e]);
        if (graph.weights) weights[end] = graph.weights[e];
      }
    }
  }

  std::vector<int64_t> ends;  // of each cluster's row
  std::vector<int32_t> ids, weights;
};

// False where a sum is more than an int32 holds.
template <class Id>
static bool sum_rows(const Rows<Id>& rows, const int32_t* labels, int64_t first, Quotient& quotient) {
  ClusterSums sums;
  int64_t e = 0;
  for (size_t row = 0; row < rows.ends.size(); ++row) {
    sums.reset(rows.ends[row] - e);
    for (; e < rows.ends[row]; ++e) {
      if (e + kLabelsAhead < static_cast<int64_t>(rows.ids.size()))
        __builtin_prefetch(labels + rows.ids[e + kLabelsAhead]);
      const int32_t cluster = labels[rows.ids[e]];
      if (cluster != first + static_cast<int64_t>(row))
        sums.add(cluster, rows.weights.empty() ? 1 : rows.weights[e]);
    }
    const int64_t begin = static_cast<int64_t>(quotient.others.size());
    for (int64_t i = 0; i < sums.size(); ++i) quotient.others.push_back(sums.cluster(i));
    std::sort(quotient.others.begin() + begin, quotient.others.end());
    for (int64_t i = begin; i < begin + sums.size(); ++i) {
      const int64_t total = sums.of(quotient.others[i]);
      if (total != static_cast<int32_t>(total)) return false;
      quotient.totals.push_back(static_cast<int32_t>(total));
    }
    quotient.sizes.push_back(sums.size());
  }
  return true;
}

// Where the edges of each cluster would begin, one after the other.
static std::vector<int64_t> begins_of(const int64_t* offsets, const int32_t* labels, int64_t num_nodes,
                                      int64_t num_clusters) {
  std::vector<int64_t> begins(num_clusters + 1);
  for (int64_t node = 0; node < num_nodes; ++node)
    begins[labels[node] + 1] += offsets[node + 1] - offsets[node];
  for (int64_t c = 0; c < num_clusters; ++c) begins[c + 1] += begins[c];
  return begins;
}

// The rows of all clusters, range by range.
template <class Id>
static std::vector<Quotient> quotients_of(const char* op, const Graph<Id>& graph, const int32_t* labels,
                                          int64_t num_clusters) {
  const std::vector<int64_t> begins = begins_of(graph.offsets, labels, graph.num_nodes, num_clusters);
  std::vector<int64_t> firsts{0};
  while (firsts.back() < num_clusters) {
    const int64_t limit = begins[firsts.back()] + kRangeEdges;
    const auto next = std::upper_bound(begins.begin() + firsts.back() + 1, begins.end() - 1, limit);
    firsts.push_back(next - begins.begin());
  }
  std::vector<Quotient> quotients(firsts.size() - 1);
  std::atomic<bool> fits = true;
  each_share(static_cast<int64_t>(quotients.size()), [&](int64_t share) {
    const int64_t first = firsts[share], last = firsts[share + 1];
    const Rows<Id> rows(graph, labels, begins.data(), first, last);
    if (!sum_rows(rows, labels, first, quotients[share])) fits = false;
  });
  require(fits, op, " got weights whose sum between two clusters is more than an int32 holds");
  return quotients;
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

  std::vector<Quotient> quotients;
  with_neighbours(neighbours, [&](const auto* ids) {
    const Graph graph{static_cast<const int64_t*>(offsets.const_data_ptr()), ids, data_of(weights),
                      num_nodes};
    quotients = quotients_of(op, graph, label, num_clusters);
  });
  int64_t num_links = 0;
  for (const Quotient& part : quotients) num_links += static_cast<int64_t>(part.others.size());
  const Tensor begins = torch::stable::empty({num_clusters + 1}, ScalarType::Long);
  const Tensor others = torch::stable::empty({num_links}, ScalarType::Int);
  const Tensor totals = torch::stable::empty({num_links}, ScalarType::Int);
  int64_t* begin = static_cast<int64_t*>(begins.mutable_data_ptr());
  int32_t* other = static_cast<int32_t*>(others.mutable_data_ptr());
  int32_t* total = static_cast<int32_t*>(totals.mutable_data_ptr());
  *begin = 0;
  for (Quotient& part : quotients) {
    for (const int64_t size : part.sizes) begin[1] = *begin + size, ++begin;
    other = std::copy(part.others.begin(), part.others.end(), other);
    total = std::copy(part.totals.begin(), part.totals.end(), total);
    part = {};  // its memory is the result's now
  }
  return {begins, others, totals};
}

}  // namespace ttgraph
