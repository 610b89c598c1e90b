// Distinct random numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "cpu/random.h"

namespace ttgraph {

// Uniform sets of `count` distinct numbers below a limit: Bentley, Floyd, "Programming pearls: a sample of
// brilliance" (CACM 1987). `first` is added to each.
class DistinctNumbers {
 public:
  void draw(int64_t limit, int64_t count, uint64_t stream, int64_t first, int64_t* drawn) {
    if (limit > 64) return draw_of_many(limit, count, stream, first, drawn);
    uint64_t taken = 0;
    for (int64_t step = 0, top = limit - count; step < count; ++step, ++top) {
      const int64_t number = below(top + 1, random_bits(stream, step));
      // Without a branch: whether a number is taken may be as good as a coin.
      const int64_t again = -static_cast<int64_t>(taken >> number & 1);
      const int64_t free = number ^ ((number ^ top) & again);
      taken |= uint64_t{1} << free;
      drawn[step] = first + free;
    }
  }

 private:
  void draw_of_many(int64_t limit, int64_t count, uint64_t stream, int64_t first, int64_t* drawn) {
    // A bit for every number, or for all that agree in their last digits, where few of those taken do.
    taken_.assign(std::bit_ceil(static_cast<uint64_t>(count)), 0);
    const int64_t last_digits = static_cast<int64_t>(64 * taken_.size()) - 1;
    const auto word = [&](int64_t number) -> uint64_t& { return taken_[(number & last_digits) >> 6]; };
    const auto bit = [](int64_t number) { return uint64_t{1} << (number & 63); };
    for (int64_t step = 0, top = limit - count; step < count; ++step, ++top) {
      int64_t number = below(top + 1, random_bits(stream, step));
      if ((word(number) & bit(number)) &&
          (limit <= last_digits + 1 || std::find(drawn, drawn + step, first + number) != drawn + step))
        number = top;
      word(number) |= bit(number);
      drawn[step] = first + number;
    }
  }

  std::vector<uint64_t> taken_;
};

}  // namespace ttgraph
