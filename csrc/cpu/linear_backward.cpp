// Gradients of the cores and of the weight from those of the rows times the weight; the contracted
// weights are computed again.
#include "cpu/gradients.h"
#include "cpu/linear.h"

namespace ttgraph {

template <class T, class Row>
class LinearBackward {
 public:
  LinearBackward(const Cores<T>& cores, const Cores<T>& transposed, const LinearShape& linear,
                 const std::vector<T>& weight, const Row* grad, CoreGradients<T>& grads, T* weight_grad,
                 int64_t share)
      : transposed_(transposed),
        linear_(linear),
        weight_(weight),
        grad_(grad),
        weight_grad_(weight_grad),
        prefix_(cores, transposed, grads, share),
        columns_(linear.out * linear.width),
        contracted_(linear.out * linear.slice),
        contracted_grad_(contracted_.size()),
        flipped_(linear.rank * linear.height),
        results_(linear.out * linear.block),
        slices_(linear.slice * linear.block),
        slice_grads_(slices_.size()),
        last_grad_(cores.shape.core(cores.shape.last()), T{0}),
        sources_(linear.block),
        slice_sources_(linear.block),
        targets_(linear.block) {}

  void enter(int64_t prefix) {
    prefix_.enter(prefix);
    arithmetic<T>().gemm(columns_, linear_.rank, linear_.height, weight_.data(), 1, columns_,
                         prefix_.product(), linear_.rank, contracted_.data(), linear_.rank, false);
    pending_ = false;
  }

  void rows(int64_t count, const int64_t* suffixes, const int64_t* rows) {
    for (int64_t e = 0; e < count; ++e) {
      sources_[e] = grad_ + rows[e] * linear_.out;
      slice_sources_[e] = transposed_.slice(transposed_.shape.last(), suffixes[e]);
      targets_[e] = last_grad_.data() + suffixes[e] * linear_.slice;
    }
    moves<T, Row>().gather(sources_.data(), count, 1, linear_.out, results_.data(), count * linear_.out);
    moves<T, T>().gather(slice_sources_.data(), count, 1, linear_.slice, slices_.data(),
                         count * linear_.slice);
    arithmetic<T>().gemm(count, linear_.slice, linear_.out, results_.data(), linear_.out, 1,
                         contracted_.data(), linear_.slice, slice_grads_.data(), linear_.slice, false);
    arithmetic<T>().add_blocks(targets_.data(), count, 1, linear_.slice, slice_grads_.data(),
                               count * linear_.slice);
    arithmetic<T>().gemm(linear_.out, linear_.slice, count, results_.data(), 1, linear_.out, slices_.data(),
                         linear_.slice, contracted_grad_.data(), linear_.slice, pending_);
    pending_ = true;
  }

  void leave() {
    const T* product = prefix_.product();
    for (int64_t a = 0; a < linear_.height; ++a)
      for (int64_t k = 0; k < linear_.rank; ++k) flipped_[k * linear_.height + a] = *product++;
    arithmetic<T>().gemm(columns_, linear_.height, linear_.rank, contracted_grad_.data(), linear_.rank, 1,
                         flipped_.data(), linear_.height, weight_grad_, linear_.height, true);
    prefix_.add(weight_.data(), columns_, contracted_grad_.data());
  }

  // Hands on what is still held: the gradients of the leading cores and of the last one.
  void finish(CoreGradients<T>& grads, int64_t share) {
    prefix_.flush();
    const TTShape& shape = transposed_.shape;
    const T* from = last_grad_.data();
    for (int64_t suffix = 0; suffix < shape.rows[shape.last()]; ++suffix) {
      T* const slice = grads.slice(share, shape.last(), suffix);
      for (int64_t b = 0; b < linear_.width; ++b)
        for (int64_t k = 0; k < linear_.rank; ++k) slice[k * linear_.width + b] += *from++;
    }
  }

 private:
  const Cores<T>& transposed_;
  const LinearShape& linear_;
  const std::vector<T>& weight_;  // (height, out * width)
  const Row* const grad_;
  T* const weight_grad_;  // (out * width, height)
  PrefixGradient<T> prefix_;
  const int64_t columns_;                        // out * width
  std::vector<T> contracted_, contracted_grad_;  // (out * width, rank), which is (out, width * rank)
  std::vector<T> flipped_;                       // the prefix product, (rank, height)
  std::vector<T> results_, slices_, slice_grads_;
  std::vector<T> last_grad_;  // (suffixes, width * rank)
  std::vector<const Row*> sources_;
  std::vector<const T*> slice_sources_;
  std::vector<T*> targets_;
  bool pending_ = false;
};

// Adds up the shares' gradients, (out * width, height) each, and returns (out, height * width).
template <class T>
static Tensor sum_weight_grads(const LinearShape& linear, std::vector<std::vector<T>>& shares,
                               const Tensor& weight, ScalarType sum_type) {
  std::vector<T>& total = shares[0];
  for (size_t share = 1; share < shares.size(); ++share)
    for (size_t i = 0; i < total.size(); ++i) total[i] += shares[share][i];
  Tensor grad = torch::stable::new_empty(weight, {linear.out, linear.height * linear.width}, sum_type);
  T* to = static_cast<T*>(grad.mutable_data_ptr());
  for (int64_t o = 0; o < linear.out; ++o)
    for (int64_t a = 0; a < linear.height; ++a)
      for (int64_t b = 0; b < linear.width; ++b) *to++ = total[(o * linear.width + b) * linear.height + a];
  return torch::stable::to(grad, weight.scalar_type());
}

template <class N, class Rows>
static std::vector<Tensor> linear_backward(const TTShape& shape, const std::vector<Tensor>& cores,
                                           const Tensor& weight, const Tensor& grad, const Rows& rows) {
  using T = typename N::T;
  using Row = typename N::Row;
  const LinearShape linear(shape, weight);
  const Cores<T> wide(shape, cores, N::sum_type), transposed(shape, cores, N::sum_type, true);
  const std::vector<T> by_height = weight_by_height<T>(linear, weight, N::sum_type, false);
  const int64_t shares =
      std::min(rows.max_shares(), count_gradient_shares(shape, linear.work(rows.num_rows()), weight.numel()));
  CoreGradients<T> grads(shape, cores[0], N::sum_type, rows.major(), shares);
  std::vector<std::vector<T>> weight_grads(shares);
  each_share(shares, [&](int64_t share) {
    grads.clear(share);
    weight_grads[share].resize(weight.numel(), T{0});
    LinearBackward<T, Row> backward(wide, transposed, linear, by_height,
                                    static_cast<const Row*>(grad.const_data_ptr()), grads,
                                    weight_grads[share].data(), share);
    rows.share(shares, share, linear.block, backward);
    backward.finish(grads, share);
  });
  std::vector<Tensor> result = grads.sum(cores[0].scalar_type());
  result.push_back(sum_weight_grads(linear, weight_grads, weight, N::sum_type));
  return result;
}

std::vector<Tensor> tt_lookup_linear_backward(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                              Tensor weight, bool reversed) {
  constexpr const char* op = "tt_lookup_linear_backward";
  const TTShape shape = check_cores(op, cores);
  check_ids(op, ids, cores[0]);
  ids = long_ids(ids);
  weight = check_weight(op, shape, weight, cores);
  grad = check_grad(op, grad, ids.numel(), weight.size(0), cores);
  const SortedIds sorted = sort_by_prefix(op, shape, static_cast<const int64_t*>(ids.const_data_ptr()),
                                          ids.numel(), shape.num_rows, reversed);
  std::vector<Tensor> result;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    result = linear_backward<decltype(numbers)>(shape, cores, weight, grad, IdRows{sorted, ids.numel()});
  });
  return result;
}

std::vector<Tensor> tt_materialize_linear_backward(Tensor grad, std::vector<Tensor> cores, Tensor weight,
                                                   bool reversed) {
  constexpr const char* op = "tt_materialize_linear_backward";
  const TTShape shape = check_cores(op, cores);
  weight = check_weight(op, shape, weight, cores);
  grad = check_grad(op, grad, grad.size(0), weight.size(0), cores);
  check_num_embeddings(op, shape, grad.size(0));
  std::vector<Tensor> result;
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    result = linear_backward<decltype(numbers)>(shape, cores, weight, grad,
                                                TableRows(shape, grad.size(0), reversed));
  });
  return result;
}

}  // namespace ttgraph
