// Attention over neighbours: a softmax over those that a row hears, and the sum of what they say, head by
// head. Nothing is kept of an edge but its factor; its coefficients are made again for the gradient.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/csr.h"
#include "cpu/messages.h"

namespace ttgraph {
namespace {

constexpr const char* kOp = "attend";

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
struct Rows {
  const int64_t *offsets, *neighbours, *entries;
  int64_t num_rows;

  int64_t size() const { return offsets[num_rows]; }
};

template <class T>
void attend_rows(const Attention<T>& a, const Rows& rows, T* out, T* logsumexp) {
  each_row_range(rows.offsets, rows.num_rows, a.width, [&](int64_t row, int64_t end) {
    std::vector<T> held;  // (heads, count)
    for (; row < end; ++row) {
      const int64_t first = rows.offsets[row], count = rows.offsets[row + 1] - first;
      const int64_t* const neighbours = rows.neighbours + first;
      const T* const row_scores = a.row_scores + row * a.heads;
      held.resize(a.heads * count);
      for (int64_t e = 0; e < count; ++e)
        for (int64_t h = 0; h < a.heads; ++h)
          held[h * count + e] = a.leaky(a.source_scores[neighbours[e] * a.heads + h] + row_scores[h]);
      for (int64_t h = 0; h < a.heads; ++h) {
        T* const shares = held.data() + h * count;
        T most = count ? shares[0] : T(0);
        for (int64_t e = 1; e < count; ++e) most = shares[e] > most ? shares[e] : most;
        for (int64_t e = 0; e < count; ++e) shares[e] -= most;
        messages<T>().exponentials(count, shares);
        const T total = count ? std::accumulate(shares, shares + count, T(0)) : T(1);
        logsumexp[row * a.heads + h] = most + std::log(total);
        for (int64_t e = 0; e < count; ++e) shares[e] *= a.factor(first + e, h) / total;
        messages<T>().weighted_sum(count, rows.size() - first - count, neighbours, shares,
                                   a.x + h * a.channels, a.channels, a.width, nullptr,
                                   out + row * a.width + h * a.channels);
      }
    }
  });
}

// What the gradient of an edge takes from its row, side by side, so that it is fetched at once.
template <class T>
struct OfRow {
  T score, logsumexp, inner;  // the last is the product of the row's result and its gradient
};

// The gradients of the sources, each from the rows that hear it; the gradient of every edge's score is kept
// for the rows.
template <class T>
void attend_sources_backward(const Attention<T>& a, const Rows& sources, const T* grad,
                             const OfRow<T>* of_rows, T* x_grad, T* source_grad, T* edge_grad) {
  each_row_range(sources.offsets, sources.num_rows, 2 * a.width, [&](int64_t source, int64_t end) {
    std::vector<T> held, dots;  // (heads, count)
    for (; source < end; ++source) {
      const int64_t first = sources.offsets[source], count = sources.offsets[source + 1] - first;
      const int64_t *const rows = sources.neighbours + first, *const entries = sources.entries + first;
      const T* const scores = a.source_scores + source * a.heads;
      T* const score_grads = source_grad + source * a.heads;
      held.resize(a.heads * count), dots.resize(a.heads * count);
      for (int64_t e = 0; e < count; ++e)
        for (int64_t h = 0; h < a.heads; ++h) {
          const OfRow<T>& row = of_rows[rows[e] * a.heads + h];
          held[h * count + e] = a.leaky(scores[h] + row.score) - row.logsumexp;
        }
      messages<T>().exponentials(a.heads * count, held.data());
      const int64_t ahead = sources.size() - first - count;
      for (int64_t h = 0; h < a.heads; ++h)
        messages<T>().dots(count, ahead, rows, grad + h * a.channels, a.x + source * a.width + h * a.channels,
                           a.channels, a.width, dots.data() + h * count);
      std::fill_n(score_grads, a.heads, T(0));
      for (int64_t e = 0; e < count; ++e)
        for (int64_t h = 0; h < a.heads; ++h) {
          const OfRow<T>& row = of_rows[rows[e] * a.heads + h];
          T& share = held[h * count + e];
          const T factor = a.factor(entries[e], h);
          const T score_grad =
              share * (factor * dots[h * count + e] - row.inner) * a.rise(scores[h] + row.score);
          edge_grad[entries[e] * a.heads + h] = score_grad;
          score_grads[h] += score_grad;
          share *= factor;
        }
      for (int64_t h = 0; h < a.heads; ++h)
        messages<T>().weighted_sum(count, ahead, rows, held.data() + h * count, grad + h * a.channels,
                                   a.channels, a.width, nullptr, x_grad + source * a.width + h * a.channels);
    }
  });
}

// body(row) for every row, whatever it hears.
template <class Body>
void each_row(const Rows& rows, int64_t work, const Body& body) {
  each_row_range(rows.offsets, rows.num_rows, work, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) body(row);
  });
}

void check_numbers(const Tensor& x, const Tensor& tensor, const char* name, int64_t size) {
  require(tensor.dim() == 2 && tensor.size(0) == size && tensor.size(1) == x.size(1) &&
              same_device(tensor, x) && tensor.scalar_type() == x.scalar_type(),
          kOp, " needs ", name, " of shape (", size, ", ", x.size(1), ") in the dtype of x, on its device");
}

Rows check_rows(std::vector<Tensor>& parts, bool transposed, int64_t num_sources) {
  const size_t wanted = transposed ? 3 : 2;
  require(parts.size() == wanted, kOp, " needs ", wanted, " tensors of ",
          transposed ? "the transpose" : "the matrix", ", got ", parts.size());
  for (Tensor& part : parts) {
    require(part.dim() == 1 && part.is_cpu() && part.scalar_type() == ScalarType::Long, kOp,
            " needs offsets, neighbours and entries of one dimension, int64");
    part = torch::stable::contiguous(part);
  }
  require(parts[0].numel() > 0 && parts.back().numel() == parts[1].numel(), kOp,
          " needs at least one offset, and as many entries as neighbours");
  const Rows rows{longs(parts[0]), longs(parts[1]), transposed ? longs(parts[2]) : nullptr,
                  parts[0].numel() - 1};
  check_entries(kOp, rows.offsets, rows.num_rows, rows.neighbours, parts[1].numel(), num_sources);
  for (int64_t e = 0; transposed && e < rows.size(); ++e)
    require(rows.entries[e] >= 0 && rows.entries[e] < rows.size(), kOp, " got entry ", rows.entries[e],
            " of ", rows.size());
  return rows;
}

Rows check_arguments(const Tensor& x, const Tensor& source_scores, const Tensor& row_scores,
                     const std::optional<Tensor>& factors, std::vector<Tensor>& matrix) {
  require(x.dim() == 3, kOp, " needs x of shape (num_sources, heads, channels), got ", x.dim(),
          " dimensions");
  const Rows rows = check_rows(matrix, false, x.size(0));
  check_numbers(x, source_scores, "source_scores", x.size(0));
  check_numbers(x, row_scores, "row_scores", rows.num_rows);
  if (factors) check_numbers(x, *factors, "factors", rows.size());
  return rows;
}

}  // namespace

// -> (num_rows, heads, channels), and the logarithms of what the softmax divided by, (num_rows, heads)
std::tuple<Tensor, Tensor> attend(Tensor x, Tensor source_scores, Tensor row_scores,
                                  std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                  std::vector<Tensor> /*transposed*/, double slope) {
  const Rows rows = check_arguments(x, source_scores, row_scores, factors, matrix);
  std::tuple<Tensor, Tensor> result;
  with_numbers(kOp, x.scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const Attention<T> a(N::sum_type, x, source_scores, row_scores, factors, slope);
    const auto fresh = [&](std::vector<int64_t> sizes) {
      return on_large_pages(torch::stable::new_empty(x, sizes, N::sum_type));
    };
    const Tensor out = fresh({rows.num_rows, a.heads, a.channels}),
                 logsumexp = fresh({rows.num_rows, a.heads});
    attend_rows(a, rows, mutable_numbers_of<T>(out), mutable_numbers_of<T>(logsumexp));
    result = {torch::stable::to(out, x.scalar_type()), logsumexp};
  });
  return result;
}

// -> the gradients of x, source_scores and row_scores
std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor grad, Tensor out, Tensor logsumexp, Tensor x,
                                                   Tensor source_scores, Tensor row_scores,
                                                   std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                                   std::vector<Tensor> transposed, double slope) {
  const Rows rows = check_arguments(x, source_scores, row_scores, factors, matrix);
  const Rows sources = check_rows(transposed, true, rows.num_rows);
  require(sources.num_rows == x.size(0) && sources.size() == rows.size(), kOp,
          " needs the transpose of its matrix");
  for (const Tensor* part : {&grad, &out})
    require(part->dim() == 3 && part->size(0) == rows.num_rows && part->size(1) == x.size(1) &&
                part->size(2) == x.size(2) && part->scalar_type() == x.scalar_type() && part->is_cpu(),
            kOp, " needs grad and out of shape (", rows.num_rows, ", ", x.size(1), ", ", x.size(2),
            ") in the dtype of x");
  require(logsumexp.numel() == rows.num_rows * x.size(1) && logsumexp.is_cpu(), kOp,
          " needs its own logsumexp");
  std::tuple<Tensor, Tensor, Tensor> result;
  with_numbers(kOp, x.scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    Attention<T> a(N::sum_type, x, source_scores, row_scores, factors, slope);
    const T *const grads = a.read(grad), *const outs = a.read(out), *const sums = a.read(logsumexp);
    const auto fresh = [&](std::vector<int64_t> sizes) {
      return on_large_pages(torch::stable::new_empty(x, sizes, N::sum_type));
    };
    const Tensor x_grad = fresh({x.size(0), a.heads, a.channels}), source_grad = fresh({x.size(0), a.heads});
    const Tensor row_grad = fresh({rows.num_rows, a.heads}), edge_grad = fresh({rows.size(), a.heads});
    std::vector<OfRow<T>> of_rows(rows.num_rows * a.heads);
    each_row(rows, a.width, [&](int64_t row) {
      for (int64_t at = row * a.heads; at < (row + 1) * a.heads; ++at) {
        const int64_t itself = 0, own = at * a.channels;
        of_rows[at] = {a.row_scores[at], sums[at], T(0)};
        messages<T>().dots(1, 0, &itself, grads + own, outs + own, a.channels, a.width, &of_rows[at].inner);
      }
    });
    T* const of_edges = mutable_numbers_of<T>(edge_grad);
    attend_sources_backward(a, sources, grads, of_rows.data(), mutable_numbers_of<T>(x_grad),
                            mutable_numbers_of<T>(source_grad), of_edges);
    T* const row_grads = mutable_numbers_of<T>(row_grad);
    each_row(rows, a.heads, [&](int64_t row) {
      std::fill_n(row_grads + row * a.heads, a.heads, T(0));
      for (int64_t e = rows.offsets[row] * a.heads; e < rows.offsets[row + 1] * a.heads; ++e)
        row_grads[row * a.heads + e % a.heads] += of_edges[e];
    });
    const auto narrow = [&](const Tensor& tensor) { return torch::stable::to(tensor, x.scalar_type()); };
    result = {narrow(x_grad), narrow(source_grad), narrow(row_grad)};
  });
  return result;
}

}  // namespace ttgraph
