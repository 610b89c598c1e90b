// Gradients of the cores from those of the looked-up rows; prefix products are computed again.
#include "cpu/gradients.h"

namespace ttgraph {

// Every requested row has a gradient of its own, taken as it is.
template <class T, class Row_>
struct RowGradients {
  using Row = Row_;
  const Row* grad;
  int64_t dim;

  const Row* row(int64_t row) const { return grad + row * dim; }
  void mask(const Entry*, int64_t, T*) const {}
  bool weighs() const { return false; }
  void weigh(const Entry*, int64_t, T*, T*) const {}
};

std::vector<Tensor> tt_lookup_backward(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                       bool /*deterministic: always*/) {
  constexpr const char* op = "tt_lookup_backward";
  const TTShape shape = check_cores(op, cores);
  check_ids(op, ids, cores[0]);
  ids = long_ids(ids);
  grad = check_grad(op, grad, ids.numel(), shape.embedding_dim, cores);
  std::vector<Tensor> result;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const SortedIds sorted = sort_by_prefix(op, shape, static_cast<const int64_t*>(ids.const_data_ptr()),
                                            ids.numel(), shape.num_rows);
    const int64_t shares = count_gradient_shares(shape, row_work(shape, ids.numel()));
    CoreGradients<T> grads(shape, cores[0], N::sum_type, sorted.order.major(), shares);
    const Cores<T> plain(shape, cores, N::sum_type), transposed(shape, cores, N::sum_type, true);
    const RowGradients<T, typename N::Row> source{static_cast<const typename N::Row*>(grad.const_data_ptr()),
                                                  shape.embedding_dim};
    each_share(shares, [&](int64_t share) {
      grads.clear(share);
      const Entry* const entries = sorted.entries.get();
      add_gradients(plain, transposed, sorted, entries + share_begin(ids.numel(), shares, share),
                    entries + share_begin(ids.numel(), shares, share + 1), grads, share, source);
    });
    result = grads.sum(cores[0].scalar_type());
  });
  return result;
}

}  // namespace ttgraph
