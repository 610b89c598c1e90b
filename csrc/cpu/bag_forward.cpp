// Rows of the table, pooled in bags as they are computed. A thread owns a range of bags.
#include "cpu/bag.h"

namespace ttgraph {

template <class T>
static void embedding_bag(const Cores<T>& cores, const Bags<T>& bags, int64_t num_embeddings, T* out,
                          int64_t* winners) {
  const TTShape& shape = cores.shape;
  const int64_t dim = shape.embedding_dim, width = shape.cols[shape.last()], height = dim / width;
  const int64_t shares = count_shares(bags.num_ids * dim * shape.ranks[shape.last()], 1 << 16);
  const SortedIds ids = bags.sort(bags.split(shares), num_embeddings);
  each_share(shares, [&](int64_t share) {
    std::vector<T> factors(rows_per_gathered_block(shape));
    std::vector<T*> targets(rows_per_gathered_block(shape));
    const Entry* const entries = ids.entries.get();
    each_block(cores, ids, entries + ids.bounds[share], entries + ids.bounds[share + 1],
               [&](const Entry* block, int64_t count, T* rows) {
                 const int64_t columns = count * width;
                 if (bags.is_max) {
                   for (int64_t e = 0; e < count; ++e) {
                     const int64_t first = bags.bag(block[e].row) * dim;
                     arithmetic<T>().take_larger(block[e].row, rows + e * width, columns, height, width,
                                                 out + first, winners + first);
                   }
                   return;
                 }
                 for (int64_t e = 0; e < count; ++e) targets[e] = out + bags.bag(block[e].row) * dim;
                 if (bags.weighs()) {
                   bags.factors(block, count, factors.data());
                   arithmetic<T>().scale_blocks(factors.data(), count, height, width, rows, columns);
                 }
                 arithmetic<T>().add_blocks(targets.data(), count, height, width, rows, columns);
               });
  });
}

std::tuple<Tensor, Tensor> tt_embedding_bag(
    std::vector<Tensor> cores, Tensor ids, Tensor offsets, int64_t num_embeddings, std::string mode,
    std::optional<Tensor> per_sample_weights,
    std::optional<int64_t> padding_idx) {  // -> (num_bags, embedding_dim) and, for max, who won
  constexpr const char* op = "tt_embedding_bag";
  const TTShape shape = check_cores(op, cores);
  check_num_embeddings(op, shape, num_embeddings);
  check_ids(op, ids, cores[0]);
  ids = long_ids(ids);
  offsets = check_offsets(op, offsets, ids.numel());
  per_sample_weights = check_per_sample_weights(op, per_sample_weights, ids.numel(), cores[0]);
  Tensor out, winners;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const Bags<T> bags(op, shape, ids, offsets, mode, per_sample_weights, padding_idx, N::sum_type);
    out = torch::stable::new_zeros(cores[0], {bags.num_bags, shape.embedding_dim}, N::sum_type);
    winners = torch::stable::new_empty(cores[0], {bags.is_max ? bags.num_bags : 0, shape.embedding_dim},
                                       ScalarType::Long);
    torch::stable::fill_(winners, -1);
    embedding_bag(Cores<T>(shape, cores, N::sum_type), bags, num_embeddings,
                  static_cast<T*>(out.mutable_data_ptr()), static_cast<int64_t*>(winners.mutable_data_ptr()));
    out = torch::stable::to(out, cores[0].scalar_type());
  });
  return {out, winners};
}

}  // namespace ttgraph
