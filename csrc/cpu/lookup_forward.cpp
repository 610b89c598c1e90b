// Rows of the table, by id: sort by prefix, multiply each prefix product by the slices of its suffixes.
#include "cpu/cores.h"

namespace ttgraph {

template <class T, class Row>
static void lookup(const Cores<T>& cores, const SortedIds& ids, int64_t size, Row* out) {
  const TTShape& shape = cores.shape;
  const int64_t rank = shape.ranks[shape.last()], width = shape.cols[shape.last()];
  const int64_t height = shape.embedding_dim / width, dim = shape.embedding_dim,
                block = rows_per_block(shape);
  const int64_t shares = count_shares(size * dim * rank, 1 << 16);
  const bool stream = size * dim * static_cast<int64_t>(sizeof(Row)) >= kStreamBytes;
  each_share(shares, [&](int64_t share) {
    PrefixProduct<T> product(cores);
    std::vector<T> slices(rank * width * block), rows(dim * block);
    std::vector<const T*> sources(block);
    std::vector<Row*> targets(block);
    const Entry* entry = ids.entries.get() + share_begin(size, shares, share);
    const Entry* const end = ids.entries.get() + share_begin(size, shares, share + 1);
    while (entry < end) {
      const int64_t place = ids.place(*entry);
      product.enter(ids.prefix(*entry));
      while (entry < end && ids.place(*entry) == place) {
        int64_t count = 0;
        for (; count < block && entry < end && ids.place(*entry) == place; ++entry, ++count) {
          sources[count] = cores.slice(shape.last(), ids.suffix(*entry));
          targets[count] = out + entry->row * dim;
        }
        moves<T, T>().gather(sources.data(), count, rank, width, slices.data(), count * width);
        arithmetic<T>().gemm(height, count * width, rank, product.value(), rank, 1, slices.data(),
                             count * width, rows.data(), count * width, false);
        moves<T, Row>().scatter(targets.data(), count, height, width, rows.data(), count * width, stream);
      }
    }
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
