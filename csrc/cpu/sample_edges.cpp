// Distinct undirected edges between ranges of nodes, with ends in proportion to weights.
//
// A draw is a function of the seed, its stratum and its number, so any thread can make it. Draws are made
// in rounds: in each a stratum draws as many edges as it lacks. Within a round they are numbered through,
// and of equal edges the first is kept, whatever the number of threads: blocks of draws are made by all
// threads at once, and entered into a hash set of which each thread owns a part. What is still missing
// after the last round is taken from the free pairs of the stratum, one by one.
#include <bit>
#include <functional>

#include "cpu/cores.h"
#include "cpu/edges.h"
#include "cpu/random.h"

namespace ttgraph {

constexpr int kRounds = 64;
constexpr int64_t kBlock = 1 << 18;  // draws made before they are entered
constexpr int64_t kBatch = 64;       // draws made side by side, so that their memory accesses overlap
constexpr int64_t kMostPairs = int64_t{1} << 28;  // that are gone through one by one

// Nodes [begin, end), of which an end of an edge is drawn.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

struct Stratum {
  Range a, b;
  int64_t count;      // edges asked for
  bool apart;         // whether the two ends must be of different groups
  uint64_t stream;    // of its random numbers
  int64_t drawn = 0;  // draws made in earlier rounds
  int64_t missing = 0;

  int64_t num_pairs() const { return a == b ? a.size() * (a.size() - 1) / 2 : a.size() * b.size(); }
};

// What the draws read: the nodes and their weights.
class Nodes {
 public:
  Nodes(const int64_t* cumulative, int64_t size, const int64_t* new_ids, const int64_t* groups)
      : cumulative_(cumulative), ids_(size), groups_(groups) {
    const int64_t shares = count_shares(size, 1 << 16);
    each_share(shares, [&](int64_t share) {
      for (int64_t node = share_begin(size, shares, share); node < share_begin(size, shares, share + 1);
           ++node)
        ids_[node] = static_cast<uint32_t>(new_ids ? new_ids[node] : node);
    });
    // A guide for every 2^shift of weight, about as many as nodes.
    while (cumulative[size] >> shift_ > size) ++shift_;
    guides_.resize((cumulative[size] >> shift_) + 2, static_cast<uint32_t>(size - 1));
    int64_t node = 0;
    for (size_t guide = 0; guide + 1 < guides_.size(); ++guide) {
      while (node + 1 < size && cumulative[node + 1] <= static_cast<int64_t>(guide) << shift_) ++node;
      guides_[guide] = static_cast<uint32_t>(node);
    }
  }

  // Edges number first .. first + count of a stratum; kNoEdge for a draw that is none.
  void draw(const Stratum& stratum, int64_t first, int64_t count, uint64_t* keys) const {
    for (; count > 0; first += kBatch, count -= kBatch, keys += kBatch)
      draw_batch(stratum, first, std::min(count, kBatch), keys);
  }

  uint64_t key(const Stratum& stratum, int64_t u, int64_t v) const {
    return u == v || (stratum.apart && groups_[u] == groups_[v]) ? kNoEdge : edge_key(ids_[u], ids_[v]);
  }

 private:
  // Every step asks for what the next one reads.
  void draw_batch(const Stratum& stratum, int64_t first, int64_t count, uint64_t* keys) const {
    int64_t points[2 * kBatch];
    uint32_t nodes[2 * kBatch];
    const int64_t low[2] = {cumulative_[stratum.a.begin], cumulative_[stratum.b.begin]};
    const int64_t total[2] = {cumulative_[stratum.a.end] - low[0], cumulative_[stratum.b.end] - low[1]};
    for (int64_t i = 0; i < 2 * count; ++i) {
      points[i] = low[i & 1] + below(total[i & 1], random_bits(stratum.stream, 2 * first + i));
      __builtin_prefetch(&guides_[points[i] >> shift_]);
    }
    for (int64_t i = 0; i < 2 * count; ++i) {
      nodes[i] = guides_[points[i] >> shift_];
      __builtin_prefetch(cumulative_ + nodes[i] + 1);
    }
    for (int64_t i = 0; i < 2 * count; ++i) {
      nodes[i] = find(points[i], nodes[i]);
      __builtin_prefetch(&ids_[nodes[i]]);
      if (stratum.apart) __builtin_prefetch(groups_ + nodes[i]);
    }
    for (int64_t i = 0; i < count; ++i) keys[i] = key(stratum, nodes[2 * i], nodes[2 * i + 1]);
  }

  // The node whose share of the weights holds a point: at or after its guide, not after the next one.
  uint32_t find(int64_t point, uint32_t node) const {
    uint32_t last = guides_[(point >> shift_) + 1];
    while (last - node > 8) {
      const uint32_t middle = node + (last - node) / 2;
      if (cumulative_[middle + 1] <= point)
        node = middle + 1;
      else
        last = middle;
    }
    while (cumulative_[node + 1] <= point) ++node;
    return node;
  }

  const int64_t* cumulative_;  // (num_nodes + 1)
  std::vector<uint32_t> ids_;
  const int64_t* groups_;
  int shift_ = 0;
  std::vector<uint32_t> guides_;  // the node at point guide << shift_
};

// A hash set in regions: a key stays in the region it hashes to, so that one thread can own it.
class EdgeSet {
 public:
  // With 2^16 slots a region, two thirds of them in use, one that overflows is never seen; a small set
  // is one region.
  explicit EdgeSet(int64_t num_edges) {
    const int64_t least = num_edges + num_edges / 2 + 1;
    region_ = std::min<int64_t>(std::bit_ceil(static_cast<uint64_t>(least)), 1 << 16);
    size_ = (least + region_ - 1) / region_ * region_;
    held_ = on_large_pages(torch::stable::empty({size_}, ScalarType::Long));
    slots_ = static_cast<uint64_t*>(held_.mutable_data_ptr());
    const int64_t shares = count_shares(size_, 1 << 20);
    each_share(shares, [&](int64_t share) {
      std::fill(slots_ + share_begin(size_, shares, share), slots_ + share_begin(size_, shares, share + 1),
                kNoEdge);
    });
  }

  const uint64_t* slots() const { return slots_; }
  int64_t size() const { return size_; }
  int64_t num_regions() const { return size_ / region_; }
  int64_t region_begin(int64_t region) const { return region * region_; }
  int64_t home(uint64_t key) const { return below(size_, mix(key)); }
  void prefetch(int64_t slot) const { __builtin_prefetch(&slots_[slot], 1); }
  bool contains(uint64_t key) const { return slots_[place(key, home(key))] == key; }

  // False if it was there.
  bool insert(uint64_t key, int64_t home) {
    uint64_t& slot = slots_[place(key, home)];
    return std::exchange(slot, key) != key;
  }

 private:
  // The slot that holds the key, or the free one where it belongs.
  int64_t place(uint64_t key, int64_t slot) const {
    const int64_t first = slot & ~(region_ - 1);
    while (slots_[slot] != kNoEdge && slots_[slot] != key) slot = first | ((slot + 1) & (region_ - 1));
    return slot;
  }

  int64_t region_, size_;
  Tensor held_;
  uint64_t* slots_;
};

class Sampler {
 public:
  Sampler(const Nodes& nodes, std::vector<Stratum>& strata, EdgeSet& edges)
      : nodes_(nodes), strata_(strata), edges_(edges), begins_(strata.size() + 1) {}

  // One round; whether any edge is missing after it.
  bool round() {
    int64_t total = 0;
    for (size_t s = 0; s < strata_.size(); ++s) {
      begins_[s] = total;
      total += strata_[s].missing;
    }
    begins_.back() = total;
    std::vector<int64_t> lacking(strata_.size());
    keys_.resize(std::min(total, kBlock));
    rejected_.resize(keys_.size());
    for (int64_t begin = 0; begin < total; begin += kBlock) {
      const int64_t size = std::min(kBlock, total - begin);
      draw(begin, size);
      enter(size);
      size_t s = stratum_of(begin);
      for (int64_t i = 0; i < size; ++i) {
        if (!rejected_[i]) continue;
        while (begins_[s + 1] <= begin + i) ++s;
        ++lacking[s];
      }
    }
    bool any = false;
    for (size_t s = 0; s < strata_.size(); ++s) {
      strata_[s].drawn += std::exchange(strata_[s].missing, lacking[s]);
      any |= lacking[s] > 0;
    }
    return any;
  }

  // Takes what a stratum lacks from its free pairs, all of them alike.
  void exhaust(Stratum& stratum) {
    if (stratum.missing == 0 || stratum.num_pairs() > kMostPairs) return;
    const auto each_free_pair = [&](const auto& use) {
      for (int64_t u = stratum.a.begin; u < stratum.a.end; ++u)
        for (int64_t v = stratum.a == stratum.b ? u + 1 : stratum.b.begin; v < stratum.b.end; ++v) {
          const uint64_t key = nodes_.key(stratum, u, v);
          if (key != kNoEdge && !edges_.contains(key)) use(key);
        }
    };
    int64_t free = 0;
    each_free_pair([&](uint64_t) { ++free; });
    uint64_t number = 2 * stratum.drawn;
    each_free_pair([&](uint64_t key) {
      if (below(free--, random_bits(stratum.stream, number++)) >= stratum.missing) return;
      edges_.insert(key, edges_.home(key));
      --stratum.missing;
    });
  }

 private:
  size_t stratum_of(int64_t place) const {
    return std::upper_bound(begins_.begin(), begins_.end(), place) - begins_.begin() - 1;
  }

  // Draws number begin .. begin + size of the round.
  void draw(int64_t begin, int64_t size) {
    const int64_t shares = count_shares(size, 1 << 10);
    each_share(shares, [&](int64_t share) {
      int64_t place = begin + share_begin(size, shares, share);
      const int64_t end = begin + share_begin(size, shares, share + 1);
      for (size_t s = stratum_of(place); place < end; ++s) {
        const int64_t count = std::min(end, begins_[s + 1]) - place;
        nodes_.draw(strata_[s], strata_[s].drawn + place - begins_[s], count, keys_.data() + (place - begin));
        place += count;
      }
    });
  }

  // Enters the drawn keys in their order, and notes which of them are no edges or are there already.
  void enter(int64_t size) {
    constexpr int64_t kChunk = 1 << 10;
    const int64_t shares = std::min(count_shares(size, 1 << 10), edges_.num_regions());
    each_share(shares, [&](int64_t share) {
      const auto bound = [&](int64_t s) {
        return edges_.region_begin(share_begin(edges_.num_regions(), shares, s));
      };
      const int64_t low = bound(share), high = bound(share + 1);
      int64_t homes[kChunk], places[kChunk];
      for (int64_t begin = 0; begin < size; begin += kChunk) {
        int64_t count = 0;
        for (int64_t i = begin; i < std::min(begin + kChunk, size); ++i) {
          homes[count] = edges_.home(keys_[i]);
          places[count] = i;
          count += (homes[count] >= low) & (homes[count] < high);
        }
        for (int64_t i = 0; i < std::min(count, kAhead); ++i) edges_.prefetch(homes[i]);
        for (int64_t i = 0; i < count; ++i) {
          if (i + kAhead < count) edges_.prefetch(homes[i + kAhead]);
          const uint64_t key = keys_[places[i]];
          rejected_[places[i]] = key == kNoEdge || !edges_.insert(key, homes[i]);
        }
      }
    });
  }

  const Nodes& nodes_;
  std::vector<Stratum>& strata_;
  EdgeSet& edges_;
  std::vector<int64_t> begins_;  // where the draws of each stratum begin within the round
  std::vector<uint64_t> keys_;   // of a block of draws
  std::vector<uint8_t> rejected_;
};

static Stratum read_stratum(const char* op, const int64_t* row, int64_t index, int64_t seed,
                            int64_t num_nodes, bool grouped) {
  Stratum stratum{{row[0], row[1]}, {row[2], row[3]}, row[4], row[5] != 0, 0};
  const Range &a = stratum.a, &b = stratum.b;
  const auto inside = [&](const Range& range) {
    return 0 <= range.begin && range.begin < range.end && range.end <= num_nodes;
  };
  require(inside(a) && inside(b) && (a == b || a.end <= b.begin || b.end <= a.begin), op,
          " needs strata between ranges of nodes that are the same or apart and not empty; strata[", index,
          "] is not");
  require(stratum.count >= 0 && stratum.count <= stratum.num_pairs(), op, ": strata[", index, "] has ",
          stratum.num_pairs(), " pairs of nodes, got count ", stratum.count);
  require(grouped || !stratum.apart, op, " needs groups, as strata[", index, "] is apart");
  stratum.missing = stratum.count;
  stratum.stream = mix(mix(static_cast<uint64_t>(seed) + kGamma) + (index + 1) * kGamma);
  return stratum;
}

std::tuple<Tensor, Tensor> sample_edges(Tensor cumulative, Tensor strata, int64_t seed,
                                        std::optional<Tensor> new_ids, std::optional<Tensor> groups) {
  constexpr const char* op = "sample_edges";
  const int64_t num_nodes = cumulative.numel() - 1;
  const auto is_long = [](const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Long; };
  require(cumulative.dim() == 1 && is_long(cumulative) && num_nodes >= 1 && num_nodes <= kMostNodes, op,
          " needs cumulative of shape (num_nodes + 1,), int64, of 1 to ", kMostNodes, " nodes");
  require(strata.dim() == 2 && strata.size(1) == 6 && is_long(strata), op,
          " needs strata of shape (num_strata, 6), int64");
  for (const auto* part : {&new_ids, &groups})
    require(!*part || ((*part)->dim() == 1 && (*part)->numel() == num_nodes && is_long(**part)), op,
            " needs new_ids and groups of shape (num_nodes,), int64");
  const auto numbers = [](Tensor& tensor) {
    tensor = torch::stable::contiguous(tensor);
    return static_cast<const int64_t*>(tensor.const_data_ptr());
  };
  const int64_t* const points = numbers(cumulative);
  require(points[0] == 0 && std::adjacent_find(points, points + num_nodes + 1, std::greater_equal<>()) ==
                                points + num_nodes + 1,
          op, " needs cumulative that starts at 0 and rises");
  std::vector<Stratum> rows;
  int64_t num_edges = 0;
  for (int64_t s = 0; s < strata.size(0); ++s) {
    rows.push_back(read_stratum(op, numbers(strata) + 6 * s, s, seed, num_nodes, groups.has_value()));
    num_edges += rows.back().count;
  }
  const int64_t* const ids = new_ids ? numbers(*new_ids) : nullptr;
  require(!ids || std::all_of(ids, ids + num_nodes, [&](int64_t id) { return 0 <= id && id < num_nodes; }),
          op, " needs new_ids from 0 to num_nodes - 1");
  const Nodes nodes(points, num_nodes, ids, groups ? numbers(*groups) : nullptr);
  EdgeSet edges(num_edges);
  Sampler sampler(nodes, rows, edges);
  for (int round = 0; round < kRounds && sampler.round(); ++round) {
  }
  const Tensor missing = torch::stable::new_empty(strata, {strata.size(0)});
  int64_t* lacking = static_cast<int64_t*>(missing.mutable_data_ptr());
  for (auto& stratum : rows) {
    sampler.exhaust(stratum);
    num_edges -= stratum.missing;
    *lacking++ = stratum.missing;
  }
  return {both_directions_of(op, edges.slots(), edges.size(), num_edges, num_nodes), missing};
}

}  // namespace ttgraph
