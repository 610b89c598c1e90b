// Compressed sparse rows as the kernels read them.
#pragma once

#include "cpu/cores.h"
#include "prefix.h"

namespace ttgraph {

inline const int64_t* longs(const Tensor& tensor) {
  return static_cast<const int64_t*>(tensor.const_data_ptr());
}

inline int64_t* mutable_longs(const Tensor& tensor) {
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

inline Tensor empty_longs(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

// So many of the numbers, with room for `size` of them.
inline Tensor copy_of(const int64_t* numbers, int64_t count, int64_t size) {
  const Tensor copy = empty_longs(size);
  std::copy_n(numbers, count, mutable_longs(copy));
  return copy;
}

// body(begin, end) over ranges of rows, one a thread, with about as many entries each; rows count as much as
// entries, because empty ones are written, too. An entry is `width` numbers of work.
template <class Body>
void each_row_range(const int64_t* offsets, int64_t num_rows, int64_t width, const Body& body) {
  const int64_t size = offsets[num_rows], shares = count_shares((size + num_rows) * width, 1 << 16);
  const auto first_row = [&](int64_t share) {
    int64_t low = 0, high = num_rows;
    const int64_t work = share_begin(size + num_rows, shares, share);
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (offsets[middle] + middle < work)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  each_share(shares, [&](int64_t share) {
    body(first_row(share), share + 1 == shares ? num_rows : first_row(share + 1));
  });
}

// Offsets and neighbours that would make a kernel read or write elsewhere are refused.
inline void check_entries(const char* op, const int64_t* offsets, int64_t num_rows, const int64_t* neighbours,
                          int64_t size, int64_t num_sources) {
  const int64_t shares = count_shares(num_rows + size, 1 << 16);
  std::vector<int64_t> wrong_row(shares, -1), wrong_entry(shares, -1);
  each_share(shares, [&](int64_t share) {
    for (int64_t row = share_begin(num_rows, shares, share); row < share_begin(num_rows, shares, share + 1);
         ++row)
      if (offsets[row] > offsets[row + 1]) wrong_row[share] = row;
    for (int64_t e = share_begin(size, shares, share); e < share_begin(size, shares, share + 1); ++e)
      if (neighbours[e] < 0 || neighbours[e] >= num_sources) wrong_entry[share] = e;
  });
  for (int64_t share = 0; share < shares; ++share) {
    require(wrong_row[share] < 0 && offsets[0] == 0 && offsets[num_rows] == size, op,
            " needs offsets that start at 0, never decrease and end at the number of neighbours, ", size);
    if (wrong_entry[share] >= 0)
      throw std::out_of_range(message(op, ": neighbour ", neighbours[wrong_entry[share]], " at position ",
                                      wrong_entry[share], " is out of range for ", num_sources, " rows"));
  }
}

}  // namespace ttgraph
