// What both directions of attention are given: its numbers, its rows and their checks.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/csr.h"
#include "cpu/messages.h"

namespace ttgraph {

constexpr const char* kAttend = "attend";

template <class T>
const T* numbers_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_numbers_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// What both directions are given, contiguous and in the type of the sums.
template <class T>
struct Attention {
  Attention(ScalarType type, const Tensor& x, const Tensor& source_scores, const Tensor& row_scores,
            const std::optional<Tensor>& factors, double slope)
      : heads(x.size(1)),
        channels(x.size(2)),
        width(heads * channels),
        slope(static_cast<T>(slope)),
        type_(type) {
    this->x = read(x);
    this->source_scores = read(source_scores);
    this->row_scores = read(row_scores);
    this->factors = factors ? read(*factors) : nullptr;
  }

  const T* read(const Tensor& tensor) {
    held_.push_back(torch::stable::to(torch::stable::contiguous(tensor), type_));
    return numbers_of<T>(held_.back());
  }

  T factor(int64_t entry, int64_t head) const { return factors ? factors[entry * heads + head] : T(1); }
  // Signs are at random, and a branch would be guessed wrong half of the time.
  T leaky(T score) const { return std::max(score, T(0)) + slope * std::min(score, T(0)); }
  T rise(T score) const { return slope + (T(1) - slope) * static_cast<T>(score > T(0)); }

  int64_t heads, channels, width;
  T slope;
  const T* x;              // (num_sources, heads, channels)
  const T* source_scores;  // (num_sources, heads)
  const T* row_scores;     // (num_rows, heads)
  const T* factors;        // (num_edges, heads), or null where all are 1

 private:
  ScalarType type_;
  std::vector<Tensor> held_;
};

// Compressed rows; `entries` says which edge of the untransposed matrix each one is, where it is the
// transpose.
struct EdgeRows {
  const int64_t *offsets, *neighbours, *entries;
  int64_t num_rows;

  int64_t size() const { return offsets[num_rows]; }
};

inline void check_numbers(const Tensor& x, const Tensor& tensor, const char* name, int64_t size) {
  require(tensor.dim() == 2 && tensor.size(0) == size && tensor.size(1) == x.size(1) &&
              same_device(tensor, x) && tensor.scalar_type() == x.scalar_type(),
          kAttend, " needs ", name, " of shape (", size, ", ", x.size(1),
          ") in the dtype of x, on its device");
}

inline EdgeRows check_rows(std::vector<Tensor>& parts, bool transposed, int64_t num_sources) {
  const size_t wanted = transposed ? 3 : 2;
  require(parts.size() == wanted, kAttend, " needs ", wanted, " tensors of ",
          transposed ? "the transpose" : "the matrix", ", got ", parts.size());
  for (Tensor& part : parts) {
    require(part.dim() == 1 && part.is_cpu() && part.scalar_type() == ScalarType::Long, kAttend,
            " needs offsets, neighbours and entries of one dimension, int64");
    part = torch::stable::contiguous(part);
  }
  require(parts[0].numel() > 0 && parts.back().numel() == parts[1].numel(), kAttend,
          " needs at least one offset, and as many entries as neighbours");
  const EdgeRows rows{longs(parts[0]), longs(parts[1]), transposed ? longs(parts[2]) : nullptr,
                      parts[0].numel() - 1};
  check_entries(kAttend, rows.offsets, rows.num_rows, rows.neighbours, parts[1].numel(), num_sources);
  for (int64_t e = 0; transposed && e < rows.size(); ++e)
    require(rows.entries[e] >= 0 && rows.entries[e] < rows.size(), kAttend, " got entry ", rows.entries[e],
            " of ", rows.size());
  return rows;
}

inline EdgeRows check_arguments(const Tensor& x, const Tensor& source_scores, const Tensor& row_scores,
                                const std::optional<Tensor>& factors, std::vector<Tensor>& matrix) {
  require(x.dim() == 3, kAttend, " needs x of shape (num_sources, heads, channels), got ", x.dim(),
          " dimensions");
  const EdgeRows rows = check_rows(matrix, false, x.size(0));
  check_numbers(x, source_scores, "source_scores", x.size(0));
  check_numbers(x, row_scores, "row_scores", rows.num_rows);
  if (factors) check_numbers(x, *factors, "factors", rows.size());
  return rows;
}

}  // namespace ttgraph
