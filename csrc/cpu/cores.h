// The cores as the kernels read them, and the product of the leading ones.
#pragma once

#include <sys/mman.h>

#include <vector>

#include "checks.h"
#include "cpu/gemm.h"
#include "prefix.h"

namespace ttgraph {

// What the numbers of a table are stored in (Row) and summed in (T).
template <class T_, class Row_>
struct Numbers {
  using T = T_;
  using Row = Row_;
  static constexpr ScalarType sum_type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
};

template <class Body>
void with_numbers(const char* op, ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) return body(Numbers<float, float>{});
  if (dtype == ScalarType::Double) return body(Numbers<double, double>{});
  if (dtype == ScalarType::BFloat16) return body(Numbers<float, BFloat16>{});
  if (dtype == ScalarType::Half) return body(Numbers<float, Float16>{});
  throw std::invalid_argument(message(op, " takes cores of dtype float32, float64, bfloat16 or float16"));
}

// The same for what is stored as it is summed.
template <class Body>
void with_number(const char* op, ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) return body(float{});
  if (dtype == ScalarType::Double) return body(double{});
  throw std::invalid_argument(message(op, " takes float32 or float64"));
}

// Contiguous cores in the type of the sums; slice(k, i) is (ranks[k], cols[k] * ranks[k + 1]).
template <class T>
class Cores {
 public:
  Cores(const TTShape& shape, const std::vector<Tensor>& cores, ScalarType sum_type, bool transposed = false)
      : shape(shape) {
    for (int64_t k = 0; k < shape.depth(); ++k) {
      Tensor core = torch::stable::to(torch::stable::contiguous(cores[k]), sum_type);
      if (transposed)  // slice(k, i) is (cols[k] * ranks[k + 1], ranks[k])
        core = torch::stable::contiguous(torch::stable::transpose(
            torch::stable::view(core, {shape.rows[k], shape.ranks[k], shape.cols[k] * shape.ranks[k + 1]}), 1,
            2));
      data_.push_back(static_cast<const T*>(core.const_data_ptr()));
      held_.push_back(std::move(core));
    }
  }

  const T* slice(int64_t k, int64_t digit) const { return data_[k] + digit * shape.slice(k); }

  const TTShape& shape;

 private:
  std::vector<Tensor> held_;
  std::vector<const T*> data_;
};

// Product of the leading slices of one prefix after another; what two of them share is kept.
template <class T>
class PrefixProduct {
 public:
  explicit PrefixProduct(const Cores<T>& cores)
      : cores_(cores),
        digits_(cores.shape.last(), -1),
        next_(digits_),
        value_(cores.shape.last()),
        held_(value_.size()) {
    for (int64_t k = 1; k < cores.shape.last(); ++k) {
      held_[k].resize(cores.shape.prefix_cols[k] * cores.shape.ranks[k + 1]);
      value_[k] = held_[k].data();
    }
  }

  // First level at which `prefix` differs from the current one; enter() moves there.
  int64_t differs_at(int64_t prefix) {
    for (int64_t k = cores_.shape.last(); k-- > 0;) {
      const int64_t above = prefix / cores_.shape.rows[k];
      next_[k] = prefix - above * cores_.shape.rows[k];
      prefix = above;
    }
    return std::mismatch(digits_.begin(), digits_.end(), next_.begin()).first - digits_.begin();
  }

  void enter(int64_t prefix) {
    const TTShape& shape = cores_.shape;
    for (int64_t k = differs_at(prefix); k < shape.last(); ++k) {
      digits_[k] = next_[k];
      const T* slice = cores_.slice(k, digits_[k]);
      if (k == 0) {
        value_[0] = slice;
        continue;
      }
      const int64_t width = shape.cols[k] * shape.ranks[k + 1];
      arithmetic<T>().gemm(shape.prefix_cols[k - 1], width, shape.ranks[k], value_[k - 1], shape.ranks[k], 1,
                           slice, width, held_[k].data(), width, false);
    }
  }

  int64_t digit(int64_t k) const { return digits_[k]; }
  const T* level(int64_t k) const { return value_[k]; }  // (prefix_cols[k], ranks[k + 1])
  const T* value() const { return value_.back(); }

 private:
  const Cores<T>& cores_;
  std::vector<int64_t> digits_, next_;
  std::vector<const T*> value_;
  std::vector<std::vector<T>> held_;
};

// How many rows are multiplied at a time, so that a block of them stays in the first-level cache.
inline int64_t rows_per_block(const TTShape& shape) {
  return std::max<int64_t>(1, 4096 / shape.embedding_dim);
}

// The same where their slices are gathered side by side, which have to stay there, too. Slices that are
// many and as wide as the widest registers are multiplied where they lie, one at a time: measured up to
// six times faster than gathered.
inline int64_t rows_per_gathered_block(const TTShape& shape) {
  constexpr int64_t kNumbers = 8192, kWide = 16;
  const int64_t rows = rows_per_block(shape), slice = shape.slice(shape.last());
  if (rows * slice < kNumbers) return rows;
  return shape.cols[shape.last()] >= kWide ? 1 : std::clamp<int64_t>(kNumbers / slice, 1, rows);
}

// The rows of sorted entries, a block of one prefix at a time: use(block, count, rows) gets the entries
// of a block, and their rows side by side as (embedding_dim / width, count * width), where width is
// the columns of the last core.
template <class T, class Use>
void each_block(const Cores<T>& cores, const SortedIds& ids, const Entry* entry, const Entry* end,
                const Use& use) {
  const TTShape& shape = cores.shape;
  const int64_t rank = shape.ranks[shape.last()], width = shape.cols[shape.last()];
  const int64_t height = shape.embedding_dim / width, most = rows_per_gathered_block(shape);
  PrefixProduct<T> product(cores);
  std::vector<T> slices(rank * width * most), rows(shape.embedding_dim * most);
  std::vector<const T*> sources(most);
  while (entry < end) {
    const int64_t place = ids.place(*entry);
    product.enter(ids.prefix(*entry));
    while (entry < end && ids.place(*entry) == place) {
      const Entry* const block = entry;
      int64_t count = 0;
      for (; count < most && entry < end && ids.place(*entry) == place; ++entry, ++count)
        sources[count] = cores.slice(shape.last(), ids.suffix(*entry));
      const int64_t columns = count * width;
      const T* factor = sources[0];
      if (count > 1) {
        moves<T, T>().gather(sources.data(), count, rank, width, slices.data(), columns);
        factor = slices.data();
      }
      arithmetic<T>().gemm(height, columns, rank, product.value(), rank, 1, factor, columns, rows.data(),
                           columns, false);
      use(block, count, rows.data());
    }
  }
}

// Asks for a row that will be read soon: the one kAhead rows from now.
constexpr int64_t kAhead = 16;
template <class Row>
inline void prefetch(const Row* row, int64_t dim) {
  for (int64_t j = 0; j < dim; j += 64 / static_cast<int64_t>(sizeof(Row))) __builtin_prefetch(row + j);
}

// Results of this size are not in the caches any more when someone reads them.
constexpr int64_t kStreamBytes = 8 << 20;

// Asks for large pages under a new tensor that has room for them: their faults are several times cheaper.
inline Tensor on_large_pages(Tensor fresh) {
  constexpr uintptr_t kLargePage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t bytes = static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
#ifdef MADV_HUGEPAGE
  if (begin + bytes > first + kLargePage)
    madvise(reinterpret_cast<void*>(first), begin + bytes - first, MADV_HUGEPAGE);
#endif
  return fresh;
}

inline Tensor empty_rows(const Tensor& like, int64_t num_rows, int64_t width) {
  return on_large_pages(torch::stable::new_empty(like, {num_rows, width}));
}

}  // namespace ttgraph
