// Gradients of the cores, and of the weights of the ids, from those of the bags.
#include "cpu/bag.h"
#include "cpu/gradients.h"

namespace ttgraph {

// What requested rows take from the gradients of their bags, for one share.
template <class T, class Row_>
class BagGradients {
 public:
  using Row = Row_;

  BagGradients(const Cores<T>& cores, const SortedIds& ids, const Bags<T>& bags, const Row* grad,
               const int64_t* winners, T* weight_grads)
      : cores_(cores),
        ids_(ids),
        bags_(bags),
        grad_(grad),
        winners_(winners),
        weight_grads_(weight_grads),
        factors_(rows_per_gathered_block(cores.shape)) {}

  const Row* row(int64_t row) const { return grad_ + bags_.bag(row) * cores_.shape.embedding_dim; }

  // Of a maximum, every row has the columns that it won.
  void mask(const Entry* block, int64_t count, T* rows) const {
    if (!bags_.is_max) return;
    const TTShape& shape = cores_.shape;
    const int64_t width = shape.cols[shape.last()], height = shape.embedding_dim / width;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t* const winners = winners_ + bags_.bag(block[e].row) * shape.embedding_dim;
      for (int64_t i = 0; i < height; ++i) {
        T* const row = rows + (i * count + e) * width;
        for (int64_t j = 0; j < width; ++j) row[j] = winners[i * width + j] == block[e].row ? row[j] : T(0);
      }
    }
  }

  bool weighs() const { return bags_.weighs(); }

  // The gradient of a weight is the row times that of its bag; the slice times its gradient is the same.
  void weigh(const Entry* block, int64_t count, T* slices, T* slice_grads) const {
    if (!weighs()) return;
    bags_.factors(block, count, factors_.data());
    const TTShape& shape = cores_.shape;
    const int64_t rank = shape.ranks[shape.last()], width = shape.cols[shape.last()];
    for (int64_t e = 0; e < count && weight_grads_; ++e) {
      const T* const slice = cores_.slice(shape.last(), ids_.suffix(block[e]));
      T sum = 0;
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t j = 0; j < width; ++j)
          sum += slice[r * width + j] * slice_grads[(r * count + e) * width + j];
      weight_grads_[block[e].row] = sum;
    }
    arithmetic<T>().scale_blocks(factors_.data(), count, rank, width, slice_grads, count * width);
    arithmetic<T>().scale_blocks(factors_.data(), count, 1, width * rank, slices, count * width * rank);
  }

 private:
  const Cores<T>& cores_;
  const SortedIds& ids_;
  const Bags<T>& bags_;
  const Row* const grad_;         // (num_bags, embedding_dim)
  const int64_t* const winners_;  // (num_bags, embedding_dim)
  T* const weight_grads_;         // (num_ids,)
  mutable std::vector<T> factors_;
};

// Gradients of the cores of one table, and what its ids add to those of their weights.
template <class N>
static std::vector<Tensor> table_gradients(const BagCall& call, int64_t table,
                                           const BagNumbers<typename N::T>& held, const Tensor& grad,
                                           const Tensor& winners, typename N::T* weight_grads) {
  using T = typename N::T;
  using Row = typename N::Row;
  const TTShape& shape = call.shapes[table];
  const Bags<T> bags(call, table, held.weights);
  const SortedIds sorted = bags.sort({0, bags.num_bags}, shape.num_rows);
  const int64_t size = sorted.bounds[1];  // what follows is padding
  const int64_t shares = count_gradient_shares(shape, row_work(shape, size));
  CoreGradients<T> grads(shape, call.like(), N::sum_type, sorted.order.major(), shares);
  const Cores<T>&plain = held.cores[table], &transposed = held.transposed[table];
  each_share(shares, [&](int64_t share) {
    grads.clear(share);
    const BagGradients<T, Row> source(
        plain, sorted, bags, static_cast<const Row*>(grad.const_data_ptr()) + call.begins[table],
        static_cast<const int64_t*>(winners.const_data_ptr()) + (call.is_max ? call.begins[table] : 0),
        weight_grads ? weight_grads + bags.first_id : nullptr);
    const Entry* const entries = sorted.entries.get();
    add_gradients(plain, transposed, sorted, entries + share_begin(size, shares, share),
                  entries + share_begin(size, shares, share + 1), grads, share, source);
  });
  return grads.sum(call.like().scalar_type());
}

std::vector<Tensor> tt_embedding_bags_backward(
    Tensor grad, std::vector<Tensor> cores, std::vector<int64_t> depths, Tensor ids, Tensor offsets,
    Tensor winners, std::string mode, std::optional<Tensor> per_sample_weights,
    std::vector<int64_t> padding_idx) {  // -> one a core, and one of the weights where there are any
  constexpr const char* op = "tt_embedding_bag_backward";
  const BagCall call(op, cores, depths, ids, offsets, mode, per_sample_weights, padding_idx);
  require(grad.dim() == 1 && grad.numel() == call.begins.back() && same_device(grad, call.like()) &&
              grad.scalar_type() == call.like().scalar_type(),
          op, " needs grad of shape (", call.begins.back(), ") in the dtype of the cores, on their device");
  grad = torch::stable::contiguous(grad);
  require(winners.scalar_type() == ScalarType::Long && same_device(winners, call.like()) &&
              winners.numel() == (call.is_max ? grad.numel() : 0),
          op, " needs winners as tt_embedding_bags returned them");
  winners = torch::stable::contiguous(winners);
  std::vector<Tensor> result;
  with_numbers(op, call.like().scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const BagNumbers<T> held(call, N::sum_type, true);
    Tensor weight_grads =
        torch::stable::new_zeros(call.like(), {per_sample_weights ? ids.numel() : 0}, N::sum_type);
    T* const of_weights = per_sample_weights ? static_cast<T*>(weight_grads.mutable_data_ptr()) : nullptr;
    std::vector<std::vector<Tensor>> grads(call.num_tables());
    each_table(call, [&](int64_t table) {
      grads[table] = table_gradients<N>(call, table, held, grad, winners, of_weights);
    });
    for (const std::vector<Tensor>& of_table : grads)
      result.insert(result.end(), of_table.begin(), of_table.end());
    if (per_sample_weights) result.push_back(torch::stable::to(weight_grads, call.like().scalar_type()));
  });
  return result;
}

}  // namespace ttgraph
