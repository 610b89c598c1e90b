// Rows of the table, by id: sort by prefix, multiply each prefix product by the slices of its suffixes.
#include "cpu/cores.h"

namespace ttgraph {

template <class T, class Row>
static void lookup(const Cores<T>& cores, const SortedIds& ids, int64_t size, Row* out) {
  const TTShape& shape = cores.shape;
  const int64_t dim = shape.embedding_dim, width = shape.cols[shape.last()];
  const int64_t shares = count_shares(size * dim * shape.ranks[shape.last()], 1 << 16);
  const bool stream = size * dim * static_cast<int64_t>(sizeof(Row)) >= kStreamBytes;
  each_share(shares, [&](int64_t share) {
    std::vector<Row*> targets(rows_per_gathered_block(shape));
    const Entry* const entries = ids.entries.get();
    each_block(cores, ids, entries + share_begin(size, shares, share),
               entries + share_begin(size, shares, share + 1),
               [&](const Entry* block, int64_t count, const T* rows) {
                 for (int64_t e = 0; e < count; ++e) targets[e] = out + block[e].row * dim;
                 moves<T, Row>().scatter(targets.data(), count, dim / width, width, rows, count * width,
                                         stream);
               });
  });
}

Tensor tt_lookup(std::vector<Tensor> cores, Tensor ids,
                 int64_t num_embeddings) {  // -> (num_ids, embedding_dim)
  const TTShape shape = check_cores("tt_lookup", cores);
  check_num_embeddings("tt_lookup", shape, num_embeddings);
  check_ids("tt_lookup", ids, cores[0]);
  ids = long_ids(ids);
  Tensor out = empty_rows(cores[0], ids.numel(), shape.embedding_dim);
  with_numbers("tt_lookup", cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    const SortedIds sorted = sort_by_prefix(
        "tt_lookup", shape, static_cast<const int64_t*>(ids.const_data_ptr()), ids.numel(), num_embeddings);
    lookup(Cores<typename N::T>(shape, cores, N::sum_type), sorted, ids.numel(),
           static_cast<typename N::Row*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ttgraph
