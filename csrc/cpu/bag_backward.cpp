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

std::vector<Tensor> tt_embedding_bag_backward(
    Tensor grad, std::vector<Tensor> cores, Tensor ids, Tensor offsets, Tensor winners, std::string mode,
    std::optional<Tensor> per_sample_weights,
    std::optional<int64_t> padding_idx) {  // -> one a core, and one of the weights where there are any
  constexpr const char* op = "tt_embedding_bag_backward";
  const TTShape shape = check_cores(op, cores);
  check_ids(op, ids, cores[0]);
  ids = long_ids(ids);
  offsets = check_offsets(op, offsets, ids.numel());
  per_sample_weights = check_per_sample_weights(op, per_sample_weights, ids.numel(), cores[0]);
  grad = check_grad(op, grad, offsets.numel() - 1, shape.embedding_dim, cores);
  require(winners.scalar_type() == ScalarType::Long && same_device(winners, cores[0]) &&
              (mode != "max" ||
               (winners.dim() == 2 && winners.size(0) == grad.size(0) && winners.size(1) == grad.size(1))),
          op, " needs winners as tt_embedding_bag returned them");
  winners = torch::stable::contiguous(winners);
  std::vector<Tensor> result;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    using Row = typename N::Row;
    const Bags<T> bags(op, shape, ids, offsets, mode, per_sample_weights, padding_idx, N::sum_type);
    const SortedIds sorted = bags.sort({0, bags.num_bags}, shape.num_rows);
    const int64_t size = sorted.bounds[1];  // what follows is padding
    const int64_t shares = count_gradient_shares(shape, row_work(shape, size));
    CoreGradients<T> grads(shape, cores[0], N::sum_type, sorted.order.major(), shares);
    const Cores<T> plain(shape, cores, N::sum_type), transposed(shape, cores, N::sum_type, true);
    Tensor weight_grads =
        torch::stable::new_zeros(cores[0], {per_sample_weights ? bags.num_ids : 0}, N::sum_type);
    each_share(shares, [&](int64_t share) {
      grads.clear(share);
      const BagGradients<T, Row> source(
          plain, sorted, bags, static_cast<const Row*>(grad.const_data_ptr()),
          static_cast<const int64_t*>(winners.const_data_ptr()),
          per_sample_weights ? static_cast<T*>(weight_grads.mutable_data_ptr()) : nullptr);
      const Entry* const entries = sorted.entries.get();
      add_gradients(plain, transposed, sorted, entries + share_begin(size, shares, share),
                    entries + share_begin(size, shares, share + 1), grads, share, source);
    });
    result = grads.sum(cores[0].scalar_type());
    if (per_sample_weights) result.push_back(torch::stable::to(weight_grads, cores[0].scalar_type()));
  });
  return result;
}

}  // namespace ttgraph
