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

std::tuple<Tensor, Tensor> tt_embedding_bags(
    std::vector<Tensor> cores, std::vector<int64_t> depths, Tensor ids, Tensor offsets,
    std::vector<int64_t> num_embeddings, std::string mode, std::optional<Tensor> per_sample_weights,
    std::vector<int64_t> padding_idx) {  // -> the bags of one table after another, and, for max, who won
  const BagCall call("tt_embedding_bag", cores, depths, ids, offsets, mode, per_sample_weights, padding_idx);
  require(num_embeddings.size() == depths.size(), call.op, " needs one num_embeddings a table");
  for (int64_t table = 0; table < call.num_tables(); ++table)
    check_num_embeddings(call.op, call.shapes[table], num_embeddings[table]);
  Tensor out, winners;
  with_numbers(call.op, call.like().scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    out = torch::stable::new_zeros(call.like(), {call.begins.back()}, N::sum_type);
    winners = torch::stable::new_empty(call.like(), {call.is_max ? call.begins.back() : 0}, ScalarType::Long);
    torch::stable::fill_(winners, -1);
    T* const bags = static_cast<T*>(out.mutable_data_ptr());
    int64_t* const won = static_cast<int64_t*>(winners.mutable_data_ptr());
    const BagNumbers<T> held(call, N::sum_type);
    each_table(call, [&](int64_t table) {
      embedding_bag(held.cores[table], Bags<T>(call, table, held.weights), num_embeddings[table],
                    bags + call.begins[table], won + (call.is_max ? call.begins[table] : 0));
    });
    out = torch::stable::to(out, call.like().scalar_type());
  });
  return {out, winners};
}

}  // namespace ttgraph
