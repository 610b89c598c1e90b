// Attention over neighbours: a softmax over those that a row hears, and the sum of what they say, head by
// head. Nothing is kept of an edge but its factor; its coefficients are made again for the gradient.
#include <cmath>
#include <numeric>

#include "cpu/attend.h"

namespace ttgraph {

template <class T>
static void attend_rows(const Attention<T>& a, const EdgeRows& rows, T* out, T* logsumexp) {
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

// -> (num_rows, heads, channels), and the logarithms of what the softmax divided by, (num_rows, heads)
std::tuple<Tensor, Tensor> attend(Tensor x, Tensor source_scores, Tensor row_scores,
                                  std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                  std::vector<Tensor> /*transposed*/, double slope) {
  const EdgeRows rows = check_arguments(x, source_scores, row_scores, factors, matrix);
  std::tuple<Tensor, Tensor> result;
  with_numbers(kAttend, x.scalar_type(), [&](auto numbers) {
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

}  // namespace ttgraph
