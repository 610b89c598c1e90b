// The order in which the prefixes of a table are visited, on every device.
#pragma once

#include <algorithm>

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

}  // namespace ttgraph
