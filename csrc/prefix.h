// Row ids grouped by their shared leading digits.
//
// A row id is prefix * rows[last] + suffix. The prefixes are visited digit by digit of one of them,
// the major digit: that of the largest leading core. So one slice of that core stays in the cache
// while it is in use, and its gradient is written by one thread after another, never by two at once.
#pragma once

#include <algorithm>
#include <bit>
#include <future>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "checks.h"
#include "prefix_order.h"

namespace ttgraph {

// While one lives, its thread shares no work with others: it is one of several that have work of their own.
class Alone {
 public:
  Alone() { alone = true; }
  ~Alone() { alone = false; }
  inline static thread_local bool alone = false;
};

#ifndef TTGRAPH_SANITIZE

// Splits work into shares, one a thread; a share is worth a thread if it holds at least `grain`.
inline int64_t count_shares(int64_t work, int64_t grain) {
  if (Alone::alone) return 1;
  return std::clamp<int64_t>(work / std::max<int64_t>(grain, 1), 1, torch::stable::get_num_threads());
}

template <class Body>
void each_share(int64_t shares, const Body& body) {
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) body(share);
  });
}

#else

// Every share is worth a thread, so that small tables show what shares do to each other.
inline int64_t count_shares(int64_t work, int64_t /*grain*/) {
  if (Alone::alone) return 1;
  return std::clamp<int64_t>(work, 1, torch::stable::get_num_threads());
}

// Threads of our own: ThreadSanitizer does not see how those of torch wait for each other. An exception
// of a share reaches the caller here, too, and not before every share has ended.
template <class Body>
void each_share(int64_t shares, const Body& body) {
  std::vector<std::future<void>> threads;
  for (int64_t share = 0; share < shares; ++share)
    threads.push_back(std::async(std::launch::async, [&body, share] { body(share); }));
  for (auto& thread : threads) thread.get();
}

#endif

// Where share number `share` of `size` things begins; exact for any size.
inline int64_t share_begin(int64_t size, int64_t shares, int64_t share) {
  return size / shares * share + std::min(size % shares, share);
}

// Every prefix of a table of `num_embeddings` rows, in that order, with the number of its rows.
class PrefixWalk {
 public:
  PrefixWalk(const TTShape& shape, int64_t num_embeddings)
      : order(shape), suffixes_(shape.rows[shape.last()]), num_embeddings_(num_embeddings) {
    const int64_t used = (num_embeddings + suffixes_ - 1) / suffixes_;
    rest_ = order.used_rest(used);
    size_ = order.used_digits(used) * rest_;
  }

  int64_t size() const { return size_; }

  template <class Body>
  void share(int64_t shares, int64_t share, const Body& body) const {
    const int64_t end = share_begin(size_, shares, share + 1);
    for (int64_t i = share_begin(size_, shares, share); i < end; ++i) {
      const int64_t digit = i / rest_, prefix = order.prefix(digit, i - digit * rest_);
      const int64_t count = std::min(suffixes_, num_embeddings_ - prefix * suffixes_);
      if (count > 0) body(prefix, count);
    }
  }

  const PrefixOrder order;

 private:
  int64_t suffixes_, num_embeddings_, rest_, size_;
};

// Stands for "no id is left out".
constexpr int64_t kNoPadding = std::numeric_limits<int64_t>::min();

inline Tensor long_ids(const Tensor& ids) {
  return torch::stable::contiguous(torch::stable::to(ids, ScalarType::Long));
}

// One requested row: sorted by group and place, in the order of the request within a prefix.
struct Entry {
  uint64_t key;  // group, place and suffix, each in bits of its own
  int64_t row;   // which of the requested rows
};

struct SortedIds {
  PrefixOrder order;
  int suffix_bits, place_bits;
  std::unique_ptr<Entry[]> entries;
  std::vector<int64_t> bounds;  // group g is entries bounds[g] .. bounds[g + 1]

  int64_t place(const Entry& entry) const {
    return static_cast<int64_t>((entry.key >> suffix_bits) & ((uint64_t{1} << place_bits) - 1));
  }
  int64_t prefix(const Entry& entry) const { return order.prefix(place(entry)); }
  int64_t suffix(const Entry& entry) const {
    return static_cast<int64_t>(entry.key & ((uint64_t{1} << suffix_bits) - 1));
  }
};

// Stable radix sort of the ids by prefix, least significant bits first, over shares of the ids; above
// the prefix by group(row) < groups, for those that sort several sets of rows at once. The prefix is
// that of RowDigits, `reversed` or not. Ids that are `padding` are no rows: they only have a group.
template <class Group>
SortedIds sort_by_prefix(const char* op, const TTShape& shape, const int64_t* ids, int64_t size,
                         int64_t num_embeddings, bool reversed, int64_t groups, const Group& group,
                         int64_t padding = kNoPadding) {
  const PrefixOrder order(shape);
  const RowDigits digits(shape, reversed);
  constexpr int kMaxBits = 11;
  const int64_t suffixes = shape.rows[shape.last()];
  const int suffix_bits = std::bit_width(static_cast<uint64_t>(suffixes - 1));
  const int place_bits = std::bit_width(static_cast<uint64_t>(shape.num_prefixes - 1));
  const int group_bits = std::bit_width(static_cast<uint64_t>(groups - 1));
  const int group_shift = place_bits + suffix_bits, sort_bits = place_bits + group_bits;
  require(groups == 1 || group_shift + group_bits < 64, op, " cannot number ", groups, " groups of ",
          shape.num_rows, " rows in 64 bits; use smaller row factors");
  const int passes = (sort_bits + kMaxBits - 1) / kMaxBits;
  const int64_t shares = count_shares(size, 8192);
  std::unique_ptr<Entry[]> entries(new Entry[size]), other(new Entry[passes ? size : 0]);

  std::vector<int64_t> offender(shares, size);
  each_share(shares, [&](int64_t share) {
    const int64_t end = share_begin(size, shares, share + 1);
    for (int64_t row = share_begin(size, shares, share); row < end; ++row) {
      const int64_t id = ids[row];
      if (id == padding && padding != kNoPadding) {
        entries[row] = {static_cast<uint64_t>(group(row)) << group_shift, row};
        continue;
      }
      if (id < 0 || id >= num_embeddings) {
        offender[share] = row;
        return;
      }
      const auto [prefix, suffix] = digits.prefix_and_suffix(id);
      uint64_t key =
          static_cast<uint64_t>(order.place(prefix)) << suffix_bits | static_cast<uint64_t>(suffix);
      if (groups > 1) key |= static_cast<uint64_t>(group(row)) << group_shift;
      entries[row] = {key, row};
    }
  });
  const int64_t first = *std::min_element(offender.begin(), offender.end());
  if (first < size)
    throw std::out_of_range(message(op, ": id ", ids[first], " at position ", first,
                                    " is out of range for num_embeddings=", num_embeddings));

  for (int pass = 0; pass < passes; ++pass) {
    const int shift = suffix_bits + sort_bits * pass / passes;
    const int64_t bins = int64_t{1} << (suffix_bits + sort_bits * (pass + 1) / passes - shift);
    const auto bin = [&](const Entry& entry) {
      return static_cast<int64_t>(entry.key >> shift) & (bins - 1);
    };
    std::vector<int64_t> next(shares * bins, 0);
    each_share(shares, [&](int64_t share) {
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t i = share_begin(size, shares, share); i < end; ++i) ++next[share * bins + bin(entries[i])];
    });
    int64_t total = 0;
    for (int64_t b = 0; b < bins; ++b)
      for (int64_t share = 0; share < shares; ++share) total += std::exchange(next[share * bins + b], total);
    each_share(shares, [&](int64_t share) {
      const int64_t end = share_begin(size, shares, share + 1);
      for (int64_t i = share_begin(size, shares, share); i < end; ++i)
        other[next[share * bins + bin(entries[i])]++] = entries[i];
    });
    entries.swap(other);
  }
  std::vector<int64_t> bounds{0};
  for (int64_t g = 1; g < groups; ++g) {
    const auto before = [&](const Entry& entry) {
      return static_cast<int64_t>(entry.key >> group_shift) < g;
    };
    bounds.push_back(std::partition_point(entries.get(), entries.get() + size, before) - entries.get());
  }
  bounds.push_back(size);
  return {order, suffix_bits, place_bits, std::move(entries), std::move(bounds)};
}

inline SortedIds sort_by_prefix(const char* op, const TTShape& shape, const int64_t* ids, int64_t size,
                                int64_t num_embeddings, bool reversed = false) {
  return sort_by_prefix(op, shape, ids, size, num_embeddings, reversed, 1, [](int64_t) { return 0; });
}

}  // namespace ttgraph
