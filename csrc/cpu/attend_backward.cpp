// The gradient of attention over neighbours: coefficients are made again, an edge at a time.
#include "cpu/attend.h"

namespace ttgraph {

// What the gradient of an edge takes from its row, side by side, so that it is fetched at once.
template <class T>
struct OfRow {
  T score, logsumexp, inner;  // the last is the product of the row's result and its gradient
};

// The gradients of the sources, each from the rows that hear it; the gradient of every edge's score is kept
// for the rows.
template <class T>
static void attend_sources_backward(const Attention<T>& a, const EdgeRows& sources, const T* grad,
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
static void each_row(const EdgeRows& rows, int64_t work, const Body& body) {
  each_row_range(rows.offsets, rows.num_rows, work, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) body(row);
  });
}

// -> the gradients of x, source_scores and row_scores
std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor grad, Tensor out, Tensor logsumexp, Tensor x,
                                                   Tensor source_scores, Tensor row_scores,
                                                   std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                                   std::vector<Tensor> transposed, double slope) {
  const EdgeRows rows = check_arguments(x, source_scores, row_scores, factors, matrix);
  const EdgeRows sources = check_rows(transposed, true, rows.num_rows);
  require(sources.num_rows == x.size(0) && sources.size() == rows.size(), kAttend,
          " needs the transpose of its matrix");
  for (const Tensor* part : {&grad, &out})
    require(part->dim() == 3 && part->size(0) == rows.num_rows && part->size(1) == x.size(1) &&
                part->size(2) == x.size(2) && part->scalar_type() == x.scalar_type() && part->is_cpu(),
            kAttend, " needs grad and out of shape (", rows.num_rows, ", ", x.size(1), ", ", x.size(2),
            ") in the dtype of x");
  require(logsumexp.numel() == rows.num_rows * x.size(1) && logsumexp.is_cpu(), kAttend,
          " needs its own logsumexp");
  std::tuple<Tensor, Tensor, Tensor> result;
  with_numbers(kAttend, x.scalar_type(), [&](auto numbers) {
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
