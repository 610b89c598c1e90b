// How a row id splits into prefix and suffix, and the order in which prefixes are visited on every device.
#pragma once

#include <algorithm>
#include <utility>

#include "checks.h"

namespace ttgraph {

// The order in which prefixes are visited: a bijection between prefixes and places.
class PrefixOrder {
 public:
  PrefixOrder() = default;
  explicit PrefixOrder(const TTShape& shape) {
    for (int64_t k = 1; k < shape.last(); ++k)
      if (shape.core(k) > shape.core(major_)) major_ = k;
    stride_ = 1;
    for (int64_t k = major_ + 1; k < shape.last(); ++k) stride_ *= shape.rows[k];
    rows_ = shape.rows[major_];
    num_rest_ = shape.num_prefixes / rows_;
  }

  int64_t major() const { return major_; }

  constexpr int64_t place(int64_t prefix) const {
    const int64_t above = prefix / stride_, low = prefix - above * stride_;
    const int64_t high = above / rows_, digit = above - high * rows_;
    return digit * num_rest_ + high * stride_ + low;
  }

  constexpr int64_t prefix(int64_t place) const {
    const int64_t digit = place / num_rest_;
    return prefix(digit, place - digit * num_rest_);
  }

  constexpr int64_t prefix(int64_t digit, int64_t rest) const {
    const int64_t high = rest / stride_, low = rest - high * stride_;
    return (high * rows_ + digit) * stride_ + low;
  }

  // The prefixes below `used` all have digits below used_digits() and the rest below used_rest().
  int64_t used_digits(int64_t used) const { return std::min(rows_, (used + stride_ - 1) / stride_); }
  int64_t used_rest(int64_t used) const { return (used + rows_ * stride_ - 1) / (rows_ * stride_) * stride_; }

 private:
  int64_t major_ = 0, stride_ = 1, rows_ = 1, num_rest_ = 1;
};

// Row ids in digits. The cores of a table come most significant digit first; where they are given
// `reversed`, the last one first, the prefix of a row is its trailing digits, the last one first, and
// its suffix the leading digit. The rows themselves stay where they are.
class RowDigits {
 public:
  RowDigits(const TTShape& shape, bool reversed) : shape_(shape), reversed_(reversed) {}

  // Between the rows of one suffix and the next of the same prefix.
  int64_t suffix_stride() const { return reversed_ ? shape_.num_prefixes : 1; }

  // The row of suffix 0.
  int64_t first_row(int64_t prefix) const {
    if (!reversed_) return prefix * shape_.rows[shape_.last()];
    int64_t row = 0;
    for (int64_t k = shape_.last(); k-- > 0; prefix /= shape_.rows[k])
      row = row * shape_.rows[k] + prefix % shape_.rows[k];
    return row;
  }

  std::pair<int64_t, int64_t> prefix_and_suffix(int64_t row) const {
    const int64_t stride = reversed_ ? shape_.num_prefixes : shape_.rows[shape_.last()];
    const int64_t high = row / stride;
    int64_t low = row - high * stride;
    if (!reversed_) return {high, low};
    int64_t prefix = 0;
    for (int64_t k = 0; k < shape_.last(); ++k, low /= shape_.rows[k - 1])
      prefix = prefix * shape_.rows[k] + low % shape_.rows[k];
    return {prefix, high};
  }

 private:
  const TTShape& shape_;
  const bool reversed_;
};

}  // namespace ttgraph
