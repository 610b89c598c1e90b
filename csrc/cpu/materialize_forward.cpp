// The whole table: every prefix in turn, its rows contiguous, nothing to sort or gather.
#include "cpu/cores.h"

namespace ttgraph {

template <class T, class Row>
static void materialize(const Cores<T>& cores, int64_t num_embeddings, Row* out) {
  const TTShape& shape = cores.shape;
  const int64_t rank = shape.ranks[shape.last()], width = shape.cols[shape.last()],
                suffixes = shape.rows[shape.last()];
  const int64_t height = shape.embedding_dim / width, dim = shape.embedding_dim,
                block = rows_per_block(shape);
  const PrefixWalk walk(shape, num_embeddings);
  const int64_t shares = std::min(walk.size(), count_shares(num_embeddings * dim * rank, 1 << 16));
  const bool stream = num_embeddings * dim * static_cast<int64_t>(sizeof(Row)) >= kStreamBytes;
  each_share(shares, [&](int64_t share) {
    PrefixProduct<T> product(cores);
    std::vector<const T*> sources(suffixes);
    for (int64_t suffix = 0; suffix < suffixes; ++suffix) sources[suffix] = cores.slice(shape.last(), suffix);
    std::vector<T> slices(rank * width * suffixes), rows(dim * block);
    std::vector<Row*> targets(block);
    moves<T, T>().gather(sources.data(), suffixes, rank, width, slices.data(), suffixes * width);
    walk.share(shares, share, [&](int64_t prefix, int64_t count) {
      product.enter(prefix);
      for (int64_t suffix = 0; suffix < count; suffix += block) {
        const int64_t part = std::min(block, count - suffix);
        for (int64_t e = 0; e < part; ++e) targets[e] = out + (prefix * suffixes + suffix + e) * dim;
        arithmetic<T>().gemm(height, part * width, rank, product.value(), rank, 1,
                             slices.data() + suffix * width, suffixes * width, rows.data(), part * width,
                             false);
        moves<T, Row>().scatter(targets.data(), part, height, width, rows.data(), part * width, stream);
      }
    });
  });
}

Tensor tt_materialize(std::vector<Tensor> cores,
                      int64_t num_embeddings) {  // -> (num_embeddings, embedding_dim)
  const TTShape shape = check_cores("tt_materialize", cores);
  check_num_embeddings("tt_materialize", shape, num_embeddings);
  Tensor out = empty_rows(cores[0], num_embeddings, shape.embedding_dim);
  with_numbers("tt_materialize", cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    materialize(Cores<typename N::T>(shape, cores, N::sum_type), num_embeddings,
                static_cast<typename N::Row*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ttgraph
