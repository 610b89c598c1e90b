// Which bag each id belongs to, and the factor by which its row counts there.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "cpu/cores.h"

namespace ttgraph {

template <class T>
class Bags {
 public:
  Bags(const char* op, const TTShape& shape, const Tensor& ids, const Tensor& offsets,
       const std::string& mode, const std::optional<Tensor>& weights, std::optional<int64_t> padding_idx,
       ScalarType sum_type)
      : num_bags(offsets.numel() - 1),
        num_ids(ids.numel()),
        is_max(mode == "max"),
        begins_(static_cast<const int64_t*>(offsets.const_data_ptr())),
        ids_(static_cast<const int64_t*>(ids.const_data_ptr())),
        padding_(padding_idx.value_or(-1)),
        op_(op),
        shape_(shape),
        bag_(new int64_t[num_ids]) {
    require(is_max || mode == "mean" || mode == "sum", op, " needs mode \"mean\", \"sum\" or \"max\", got \"",
            mode, "\"");
    require(!weights || mode == "sum", op, " takes per_sample_weights only with mode \"sum\", got \"", mode,
            "\"");
    if (weights) {
      held_ = torch::stable::to(*weights, sum_type);
      weights_ = static_cast<const T*>(held_->const_data_ptr());
    }
    if (mode == "mean") means_.resize(num_bags);
    const int64_t shares = std::min(std::max<int64_t>(num_bags, 1), count_shares(num_ids + num_bags, 8192));
    const std::vector<int64_t> firsts = split(shares);
    each_share(shares, [&](int64_t share) {
      for (int64_t bag = firsts[share]; bag < firsts[share + 1]; ++bag) {
        std::fill(bag_.get() + begins_[bag], bag_.get() + begins_[bag + 1], bag);
        if (means_.empty()) continue;
        const int64_t padded = std::count(ids_ + begins_[bag], ids_ + begins_[bag + 1], padding_);
        means_[bag] = T(1) / static_cast<T>(begins_[bag + 1] - begins_[bag] - padded);
      }
    });
  }

  // Splits the bags into ranges of about as many ids: range s is bags split[s] .. split[s + 1].
  std::vector<int64_t> split(int64_t shares) const {
    std::vector<int64_t> firsts(shares + 1, num_bags);
    for (int64_t share = 0; share < shares; ++share)
      firsts[share] =
          std::lower_bound(begins_, begins_ + num_bags, share_begin(num_ids, shares, share)) - begins_;
    return firsts;
  }

  // The ids by prefix: for every range of bags a group of its own, then those that are padding.
  SortedIds sort(const std::vector<int64_t>& firsts, int64_t num_embeddings) const {
    const int64_t shares = static_cast<int64_t>(firsts.size()) - 1;
    return sort_by_prefix(
        op_, shape_, ids_, num_ids, num_embeddings, false, shares + (padding_ >= 0), [&](int64_t row) {
          if (ids_[row] == padding_) return shares;
          const auto after = std::upper_bound(firsts.begin() + 1, firsts.end() - 1, bag_[row]);
          return static_cast<int64_t>(after - firsts.begin()) - 1;
        });
  }

  int64_t bag(int64_t row) const { return bag_[row]; }

  // Whether factors differ from 1.
  bool weighs() const { return weights_ || !means_.empty(); }

  // Factors of a block of entries.
  void factors(const Entry* block, int64_t count, T* to) const {
    for (int64_t e = 0; e < count; ++e)
      to[e] = weights_ ? weights_[block[e].row] : means_[bag_[block[e].row]];
  }

  const int64_t num_bags, num_ids;
  const bool is_max;

 private:
  const int64_t* const begins_;  // (num_bags + 1,)
  const int64_t* const ids_;     // (num_ids,)
  const int64_t padding_;        // -1, which is no id, where there is none
  const char* const op_;
  const TTShape& shape_;
  std::optional<Tensor> held_;
  const T* weights_ = nullptr;      // (num_ids,)
  std::vector<T> means_;            // 1 / number of ids of every bag
  std::unique_ptr<int64_t[]> bag_;  // (num_ids,)
};

}  // namespace ttgraph
