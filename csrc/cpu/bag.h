// The bags of one table or of several: which bag each id belongs to, and how its row counts there.
#pragma once

#include <atomic>
#include <deque>
#include <exception>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/cores.h"

namespace ttgraph {

// The arguments of a call, checked, and split by table.
struct BagCall {
  BagCall(const char* op, const std::vector<Tensor>& all_cores, const std::vector<int64_t>& depths,
          const Tensor& ids, const Tensor& offsets, const std::string& mode,
          const std::optional<Tensor>& weights, const std::vector<int64_t>& padding_idx)
      : op(op), is_max(mode == "max"), is_mean(mode == "mean"), padding(padding_idx) {
    require(is_max || is_mean || mode == "sum", op, " needs mode \"mean\", \"sum\" or \"max\", got \"", mode,
            "\"");
    require(!weights || mode == "sum", op, " takes per_sample_weights only with mode \"sum\", got \"", mode,
            "\"");
    require(!depths.empty() && padding.size() == depths.size(), op,
            " needs one depth and one padding_idx a table");
    size_t first = 0;
    for (const int64_t depth : depths) {
      require(depth >= 2 && depth <= static_cast<int64_t>(all_cores.size() - first), op,
              " needs depths of 2 or more that add up to the number of cores");
      cores.emplace_back(all_cores.begin() + first, all_cores.begin() + first + depth);
      shapes.push_back(check_cores(op, cores.back()));
      require(same_device(cores.back()[0], cores[0][0]) &&
                  cores.back()[0].scalar_type() == cores[0][0].scalar_type(),
              op, " needs tables of one dtype on one device");
      first += depth;
    }
    require(first == all_cores.size(), op, " needs depths that add up to the number of cores");
    check_ids(op, ids, like());
    this->ids = long_ids(ids);
    this->offsets = check_offsets(op, offsets, ids.numel());
    require((offsets.numel() - 1) % num_tables() == 0, op, " needs as many bags of every table, got ",
            offsets.numel() - 1, " of ", num_tables(), " tables");
    num_bags = (offsets.numel() - 1) / num_tables();
    per_sample_weights = check_per_sample_weights(op, weights, ids.numel(), like());
    for (const TTShape& shape : shapes) begins.push_back(begins.back() + num_bags * shape.embedding_dim);
  }

  int64_t num_tables() const { return static_cast<int64_t>(cores.size()); }
  // Multiply-adds of a table's rows.
  int64_t row_work(int64_t table) const {
    const TTShape& shape = shapes[table];
    return (bag_begins(table)[num_bags] - bag_begins(table)[0]) * shape.embedding_dim *
           shape.ranks[shape.last()];
  }
  const Tensor& like() const { return cores[0][0]; }
  const int64_t* bag_begins(int64_t table) const {
    return static_cast<const int64_t*>(offsets.const_data_ptr()) + table * num_bags;
  }

  const char* const op;
  const bool is_max, is_mean;
  const std::vector<int64_t> padding;  // (num_tables,)
  std::vector<std::vector<Tensor>> cores;
  std::deque<TTShape> shapes;
  Tensor ids, offsets;  // (num_ids,), (num_tables * num_bags + 1,)
  std::optional<Tensor> per_sample_weights;
  int64_t num_bags = 0;
  std::vector<int64_t> begins{0};  // where the bags of a table begin among the numbers of all
};

// The numbers that a call reads, in the type of the sums.
template <class T>
struct BagNumbers {
  BagNumbers(const BagCall& call, ScalarType sum_type, bool backward = false) {
    for (int64_t table = 0; table < call.num_tables(); ++table) {
      cores.emplace_back(call.shapes[table], call.cores[table], sum_type);
      if (backward) transposed.emplace_back(call.shapes[table], call.cores[table], sum_type, true);
    }
    if (!call.per_sample_weights) return;
    held = torch::stable::to(*call.per_sample_weights, sum_type);
    weights = static_cast<const T*>(held->const_data_ptr());
  }

  std::vector<Cores<T>> cores, transposed;
  std::optional<Tensor> held;
  const T* weights = nullptr;  // (num_ids,) or none
};

// The bags of one table of a call; rows are counted from its first id on.
template <class T>
class Bags {
 public:
  // Weights are those of all ids of the call, in the type of the sums, or none.
  Bags(const BagCall& call, int64_t table, const T* weights)
      : num_bags(call.num_bags),
        first_id(call.bag_begins(table)[0]),
        num_ids(call.bag_begins(table)[num_bags] - first_id),
        is_max(call.is_max),
        begins_(call.bag_begins(table)),
        ids_(static_cast<const int64_t*>(call.ids.const_data_ptr()) + first_id),
        padding_(call.padding[table]),
        op_(call.num_tables() > 1 ? message(call.op, ", table ", table) : call.op),
        shape_(call.shapes[table]),
        weights_(weights ? weights + first_id : nullptr),
        bag_(new int64_t[num_ids]) {
    if (call.is_mean) means_.resize(num_bags);
    const int64_t shares = std::min(std::max<int64_t>(num_bags, 1), count_shares(num_ids + num_bags, 8192));
    const std::vector<int64_t> firsts = split(shares);
    each_share(shares, [&](int64_t share) {
      for (int64_t bag = firsts[share]; bag < firsts[share + 1]; ++bag) {
        std::fill(bag_.get() + begin(bag), bag_.get() + begin(bag + 1), bag);
        if (means_.empty()) continue;
        int64_t count = begin(bag + 1) - begin(bag);
        if (pads()) count -= std::count(ids_ + begin(bag), ids_ + begin(bag + 1), padding_);
        means_[bag] = T(1) / static_cast<T>(count);
      }
    });
  }

  // Splits the bags into ranges of about as many ids: range s is bags split[s] .. split[s + 1].
  std::vector<int64_t> split(int64_t shares) const {
    std::vector<int64_t> firsts(shares + 1, num_bags);
    for (int64_t share = 0; share < shares; ++share)
      firsts[share] =
          std::lower_bound(begins_, begins_ + num_bags, first_id + share_begin(num_ids, shares, share)) -
          begins_;
    return firsts;
  }

  // The ids by prefix: for every range of bags a group of its own, then those that are padding.
  SortedIds sort(const std::vector<int64_t>& firsts, int64_t num_embeddings) const {
    const int64_t shares = static_cast<int64_t>(firsts.size()) - 1;
    return sort_by_prefix(
        op_.c_str(), shape_, ids_, num_ids, num_embeddings, false, shares + pads(),
        [&](int64_t row) {
          if (pads() && ids_[row] == padding_) return shares;
          const auto after = std::upper_bound(firsts.begin() + 1, firsts.end() - 1, bag_[row]);
          return static_cast<int64_t>(after - firsts.begin()) - 1;
        },
        padding_);
  }

  int64_t bag(int64_t row) const { return bag_[row]; }

  // Whether factors differ from 1.
  bool weighs() const { return weights_ || !means_.empty(); }

  // Factors of a block of entries.
  void factors(const Entry* block, int64_t count, T* to) const {
    for (int64_t e = 0; e < count; ++e)
      to[e] = weights_ ? weights_[block[e].row] : means_[bag_[block[e].row]];
  }

  const int64_t num_bags, first_id, num_ids;
  const bool is_max;

 private:
  int64_t begin(int64_t bag) const { return begins_[bag] - first_id; }
  bool pads() const { return padding_ != kNoPadding; }

  const int64_t* const begins_;  // (num_bags + 1,) among the ids of all tables
  const int64_t* const ids_;     // (num_ids,)
  const int64_t padding_;
  const std::string op_;
  const TTShape& shape_;
  const T* const weights_;          // (num_ids,)
  std::vector<T> means_;            // 1 / number of ids of every bag
  std::unique_ptr<int64_t[]> bag_;  // (num_ids,)
};

// Calls body(table) for every table: of few tables, and of those that have more than a thread's part of all
// the work, one after the other, on all threads; of many others several at once, each on one thread, those
// with the most work first.
template <class Body>
void each_table(const BagCall& call, const Body& body) {
  const int64_t tables = call.num_tables();
  std::vector<int64_t> work(tables);  // multiply-adds
  for (int64_t table = 0; table < tables; ++table) work[table] = call.row_work(table);
  const int64_t total = std::accumulate(work.begin(), work.end(), int64_t{0});
  const int64_t threads = count_shares(total, 1 << 16);
  std::vector<int64_t> order(tables);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return work[a] > work[b]; });
  // Of the first table that has one, however many threads there are.
  std::vector<std::exception_ptr> errors(tables);
  const auto attempt = [&](int64_t table) {
    try {
      body(table);
    } catch (...) {
      errors[table] = std::current_exception();
    }
  };
  std::atomic<int64_t> next = 0;
  const bool few = threads < 2 || tables < 2 * threads;
  while (next < tables && (few || work[order[next]] > total / threads)) attempt(order[next++]);
  if (next < tables)
    each_share(threads, [&](int64_t) {
      const Alone alone;
      for (int64_t i = next++; i < tables; i = next++) attempt(order[i]);
    });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace ttgraph
