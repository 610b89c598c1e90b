// Gradients of the cores from that of the whole table.
#include "cpu/gradients.h"

namespace ttgraph {

template <class T, class Row>
static void materialize_backward(const Cores<T>& cores, const Cores<T>& transposed, const PrefixWalk& walk,
                                 const Row* grad, CoreGradients<T>& grads, int64_t shares) {
  const TTShape& shape = cores.shape;
  const int64_t last = shape.last(), rank = shape.ranks[last], width = shape.cols[last],
                suffixes = shape.rows[last];
  const int64_t dim = shape.embedding_dim, height = dim / width, block = rows_per_block(shape);
  each_share(shares, [&](int64_t share) {
    grads.clear(share);
    PrefixGradient<T> prefix(cores, transposed, grads, share);
    std::vector<T> rows(dim * block), slice_grads(rank * width * suffixes, 0);  // (rank, suffixes * width)
    std::vector<const Row*> sources(block);
    walk.share(shares, share, [&](int64_t id, int64_t count) {
      prefix.enter(id);
      for (int64_t suffix = 0; suffix < count; suffix += block) {
        const int64_t part = std::min(block, count - suffix), columns = part * width;
        for (int64_t e = 0; e < part; ++e) {
          sources[e] = grad + (id * suffixes + suffix + e) * dim;
          prefetch(sources[e] + kAhead * dim, dim);
        }
        moves<T, Row>().gather(sources.data(), part, height, width, rows.data(), columns);
        arithmetic<T>().gemm(rank, columns, height, prefix.product(), 1, rank, rows.data(), columns,
                             slice_grads.data() + suffix * width, suffixes * width, true);
        prefix.add(rows.data(), columns, transposed.slice(last, suffix));
      }
    });
    prefix.flush();
    std::vector<T*> targets(suffixes);
    for (int64_t suffix = 0; suffix < suffixes; ++suffix) targets[suffix] = grads.slice(share, last, suffix);
    arithmetic<T>().add_blocks(targets.data(), suffixes, rank, width, slice_grads.data(), suffixes * width);
  });
}

std::vector<Tensor> tt_materialize_backward(Tensor grad, std::vector<Tensor> cores,
                                            bool /*deterministic: always*/) {
  constexpr const char* op = "tt_materialize_backward";
  const TTShape shape = check_cores(op, cores);
  grad = check_grad(op, grad, grad.size(0), shape.embedding_dim, cores);
  check_num_embeddings(op, shape, grad.size(0));
  std::vector<Tensor> result;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const PrefixWalk walk(shape, grad.size(0));
    const int64_t shares = count_gradient_shares(shape, row_work(shape, grad.size(0)));
    CoreGradients<T> grads(shape, cores[0], N::sum_type, walk.order.major(), shares);
    materialize_backward(Cores<T>(shape, cores, N::sum_type), Cores<T>(shape, cores, N::sum_type, true), walk,
                         static_cast<const typename N::Row*>(grad.const_data_ptr()), grads, shares);
    result = grads.sum(cores[0].scalar_type());
  });
  return result;
}

}  // namespace ttgraph
