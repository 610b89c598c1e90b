// A graph that grows: every new node links to earlier ones in proportion to their degrees and to what its
// class thinks of theirs.
//
// Which class an edge leads to depends on how many ends of edges the classes have, not on whose they are. So
// it is planned for a batch of nodes ahead, and the memory that their edges need is asked for, all at once.
// The random numbers are numbered, so that the reference draws the same.
//
// Compiled without fused multiply-add, whose sums would differ from those of the reference.
#include <algorithm>

#include "checks.h"
#include "cpu/random.h"

namespace ttgraph {
namespace {

constexpr int64_t kBatch = 16;    // nodes planned at once
constexpr int kMostRepeats = 64;  // draws of a node linked already; then those that are not are listed

// The random numbers of a stream, one after another.
struct Random {
  uint64_t stream, number = 0;
  int64_t below(int64_t limit) { return ttgraph::below(limit, random_bits(stream, number++)); }
  double share() { return static_cast<double>(random_bits(stream, number++) >> 11) * 0x1p-53; }
};

// A class: the ends of the edges of its nodes, and what will be known of them once the planned edges are
// there.
struct Class {
  std::vector<int32_t> ends;     // every node as often as its degree
  std::vector<int32_t> members;  // every node
  int64_t num_ends = 0, num_members = 0;
  int64_t num_links = 0;  // of these, linked to by the node that is planned
};

struct Node {
  int32_t degree = 0;
  int32_t linked = -1;  // the last node that linked to it
};

struct Link {
  int64_t group;  // number of its class
  int64_t place;  // among the ends of the class
};

class Growth {
 public:
  Growth(const int64_t* labels, int64_t num_nodes, const double* compatibility, int64_t num_classes,
         int64_t num_edges, int64_t num_inside, int64_t seed)
      : labels_(labels),
        num_nodes_(num_nodes),
        compatibility_(compatibility),
        left_(num_edges),
        left_inside_(num_inside),
        balanced_(num_inside >= 0),
        plans_{static_cast<uint64_t>(seed)},
        repeats_{mix(static_cast<uint64_t>(seed))},
        classes_(num_classes),
        weights_(num_classes),
        nodes_(num_nodes) {}

  // Writes the edges, from new to old, and returns how many there are.
  int64_t grow(int64_t* from, int64_t* to) {
    int64_t edges = 0;
    std::vector<Link> links;
    for (int64_t first = 0; first < num_nodes_; first += kBatch) {
      const int64_t count = std::min(kBatch, num_nodes_ - first);
      int64_t ends[kBatch];
      links.clear();
      for (int64_t i = 0; i < count; ++i) {
        plan(first + i, links);
        ends[i] = static_cast<int64_t>(links.size());
      }
      for (const Link& link : links) {
        const std::vector<int32_t>& known = classes_[link.group].ends;
        if (link.place < static_cast<int64_t>(known.size()))
          __builtin_prefetch(&nodes_[known[link.place]], 1);
      }
      for (int64_t i = 0, link = 0; i < count; ++i) {
        const int64_t begin = link;
        for (; link < ends[i]; ++link) {
          from[edges] = first + i;
          to[edges++] = find(first + i, links[link]);
        }
        arrive(first + i, links.data() + begin, to + edges - (link - begin), link - begin);
      }
    }
    return edges;
  }

 private:
  // Adds the links of a new node. Of the edges that are left, each of the nodes that are left gets as many as
  // the others, but for one; an edge that cannot be had is left to later nodes.
  void plan(int64_t node, std::vector<Link>& links) {
    const int64_t own = labels_[node], nodes_left = num_nodes_ - node, begin = links.size();
    const int64_t count = left_ / nodes_left + (plans_.below(nodes_left) < left_ % nodes_left);
    double total = weigh(own);
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = balanced_ && plans_.below(left_) < left_inside_;
      const int64_t group = inside ? own : pick(total);
      if (group < 0 || is_full(group)) continue;
      Class& chosen = classes_[group];
      links.push_back({group, plans_.below(chosen.num_ends)});
      __builtin_prefetch(chosen.ends.data() + links.back().place);
      ++chosen.num_links;
      if (!inside && is_full(group)) total = weigh(own);
      --left_;
      left_inside_ -= inside;
    }
    const int64_t num_links = links.size() - begin;
    for (size_t link = begin; link < links.size(); ++link) {
      ++classes_[links[link].group].num_ends;
      classes_[links[link].group].num_links = 0;
    }
    classes_[own].num_ends += std::max<int64_t>(num_links, 1);
    ++classes_[own].num_members;
  }

  bool is_full(int64_t group) const { return classes_[group].num_links == classes_[group].num_members; }

  // How much each class attracts an edge of a class, its own only where nothing else decides on that; their
  // sum.
  double weigh(int64_t own) {
    const int64_t num_classes = static_cast<int64_t>(classes_.size());
    double total = 0;
    for (int64_t c = 0; c < num_classes; ++c) {
      const bool possible = !is_full(c) && !(balanced_ && c == own);
      const double affinity = compatibility_[own * num_classes + c];
      weights_[c] = possible ? affinity * static_cast<double>(classes_[c].num_ends) : 0.0;
      total += weights_[c];
    }
    return total;
  }

  // A class in proportion to the weights, or -1 where they are all 0.
  int64_t pick(double total) {
    if (!(total > 0)) return -1;
    const double point = plans_.share() * total;
    const int64_t num_classes = static_cast<int64_t>(classes_.size());
    double sum = 0;
    int64_t picked = -1;
    for (int64_t c = 0; c < num_classes && (picked < 0 || sum <= point); ++c) {
      sum += weights_[c];
      if (weights_[c] > 0) picked = c;
    }
    return picked;
  }

  // The node of a link: in proportion to their degrees, one of its class that `node` does not link to yet.
  int64_t find(int64_t node, const Link& link) {
    const Class& group = classes_[link.group];
    int32_t target = group.ends[link.place];
    for (int repeat = 0; nodes_[target].linked == node && repeat < kMostRepeats; ++repeat)
      target = group.ends[repeats_.below(static_cast<int64_t>(group.ends.size()))];
    if (nodes_[target].linked == node) target = list(node, group);
    nodes_[target].linked = static_cast<int32_t>(node);
    return target;
  }

  int32_t list(int64_t node, const Class& group) {
    const auto degree = [&](int32_t member) {
      return nodes_[member].linked == node ? 0 : int64_t{nodes_[member].degree};
    };
    int64_t total = 0;
    for (const int32_t member : group.members) total += degree(member);
    int64_t place = repeats_.below(total);
    for (const int32_t member : group.members) {
      place -= degree(member);
      if (place < 0) return member;
    }
    return group.members.back();  // not reached
  }

  // From now on a node is found by its edges; if it has none, as if it had one.
  void arrive(int64_t node, const Link* links, const int64_t* targets, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      classes_[links[i].group].ends.push_back(static_cast<int32_t>(targets[i]));
      ++nodes_[targets[i]].degree;
    }
    Class& own = classes_[labels_[node]];
    nodes_[node].degree = static_cast<int32_t>(std::max<int64_t>(count, 1));
    own.ends.insert(own.ends.end(), nodes_[node].degree, static_cast<int32_t>(node));
    own.members.push_back(static_cast<int32_t>(node));
  }

  const int64_t* const labels_;
  const int64_t num_nodes_;
  const double* const compatibility_;
  int64_t left_, left_inside_;  // edges that are not planned yet; of them, those within a class
  const bool balanced_;         // whether the number of those is given
  Random plans_, repeats_;
  std::vector<Class> classes_;
  std::vector<double> weights_;
  std::vector<Node> nodes_;
};

}  // namespace

// From later to earlier nodes: (2, at most num_edges).
Tensor preferential_edges(Tensor classes, Tensor compatibility, int64_t num_edges, int64_t num_inside,
                          int64_t seed) {
  constexpr const char* op = "preferential_edges";
  require(classes.dim() == 1 && classes.scalar_type() == ScalarType::Long && classes.is_cpu(), op,
          " needs classes of one dimension, int64, on the CPU");
  require(compatibility.dim() == 2 && compatibility.size(0) == compatibility.size(1) &&
              compatibility.scalar_type() == ScalarType::Double && compatibility.is_cpu(),
          op, " needs compatibility of shape (num_classes, num_classes), float64, on the CPU");
  require(num_edges >= 0 && num_inside <= num_edges, op,
          " needs num_edges of at least 0 and num_inside, got ", num_edges, " and ", num_inside);
  const int64_t num_nodes = classes.numel(), num_classes = compatibility.size(0);
  require(num_nodes < int64_t{1} << 31, op, " needs fewer than 2^31 nodes, got ", num_nodes);
  classes = torch::stable::contiguous(classes);
  compatibility = torch::stable::contiguous(compatibility);
  const int64_t* const labels = static_cast<const int64_t*>(classes.const_data_ptr());
  for (int64_t node = 0; node < num_nodes; ++node)
    require(0 <= labels[node] && labels[node] < num_classes, op, " needs classes from 0 to ", num_classes - 1,
            ", got ", labels[node], " of node ", node);
  Tensor edges = torch::stable::new_empty(classes, {2, num_edges});
  int64_t* const from = static_cast<int64_t*>(edges.mutable_data_ptr());
  Growth growth(labels, num_nodes, static_cast<const double*>(compatibility.const_data_ptr()), num_classes,
                num_edges, num_inside, seed);
  const int64_t found = growth.grow(from, from + num_edges);
  return torch::stable::contiguous(torch::stable::narrow(edges, 1, 0, found));
}

}  // namespace ttgraph
