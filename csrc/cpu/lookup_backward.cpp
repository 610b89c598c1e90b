// Gradients of the cores from those of the looked-up rows; prefix products are computed again.
#include "cpu/gradients.h"

namespace ttgraph {

template <class T, class Row>
static void lookup_backward(const Cores<T>& cores, const Cores<T>& transposed, const SortedIds& ids,
                            int64_t size, const Row* grad, CoreGradients<T>& grads, int64_t shares) {
  const TTShape& shape = cores.shape;
  const int64_t last = shape.last(), rank = shape.ranks[last], width = shape.cols[last],
                dim = shape.embedding_dim;
  const int64_t height = dim / width, block = rows_per_block(shape);
  each_share(shares, [&](int64_t share) {
    grads.clear(share);
    PrefixGradient<T> prefix(cores, transposed, grads, share);
    std::vector<T> rows(dim * block), slices(rank * width * block), slice_grads(rank * width * block);
    std::vector<const Row*> sources(block);
    std::vector<const T*> slice_sources(block);
    std::vector<T*> targets(block);
    const Entry* entry = ids.entries.get() + share_begin(size, shares, share);
    const Entry* const end = ids.entries.get() + share_begin(size, shares, share + 1);
    while (entry < end) {
      const int64_t place = ids.place(*entry);
      prefix.enter(ids.prefix(*entry));
      while (entry < end && ids.place(*entry) == place) {
        int64_t count = 0;
        for (; count < block && entry < end && ids.place(*entry) == place; ++entry, ++count) {
          sources[count] = grad + entry->row * dim;
          if (end - entry > kAhead) prefetch(grad + entry[kAhead].row * dim, dim);
          slice_sources[count] = transposed.slice(last, ids.suffix(*entry));
          targets[count] = grads.slice(share, last, ids.suffix(*entry));
        }
        const int64_t columns = count * width;
        moves<T, Row>().gather(sources.data(), count, height, width, rows.data(), columns);
        arithmetic<T>().gemm(rank, columns, height, prefix.product(), 1, rank, rows.data(), columns,
                             slice_grads.data(), columns, false);
        arithmetic<T>().add_blocks(targets.data(), count, rank, width, slice_grads.data(), columns);
        // One block of width * rank numbers after another is the (columns, rank) factor.
        moves<T, T>().gather(slice_sources.data(), count, 1, width * rank, slices.data(), columns * rank);
        prefix.add(rows.data(), columns, slices.data());
      }
    }
    prefix.flush();
  });
}

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
    lookup_backward(Cores<T>(shape, cores, N::sum_type), Cores<T>(shape, cores, N::sum_type, true), sorted,
                    ids.numel(), static_cast<const typename N::Row*>(grad.const_data_ptr()), grads, shares);
    result = grads.sum(cores[0].scalar_type());
  });
  return result;
}

}  // namespace ttgraph
