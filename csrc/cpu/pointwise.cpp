// Many rows times a small matrix: what a 1x1 convolution is of images whose channels lie side by side.
#include <cstring>

#include "cpu/cores.h"

namespace ttgraph {

// Rows at a time: they, their gradients and the products stay in the caches of one core, and the sums over
// rows are read and written once for so many of them.
constexpr int64_t kRows = 128;

struct PointwiseShape {
  int64_t num_rows, in, out;

  int64_t shares() const { return count_shares(num_rows * in * out, 1 << 18); }

  // body(row, count) for each block of one share.
  template <class Body>
  void each_block(int64_t shares, int64_t share, const Body& body) const {
    const int64_t end = share_begin(num_rows, shares, share + 1);
    for (int64_t row = share_begin(num_rows, shares, share); row < end; row += kRows)
      body(row, std::min(kRows, end - row));
  }
};

static PointwiseShape check_pointwise(const char* op, const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& bias) {
  require(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(0), op,
          " needs x (num_rows, in_features) and weight (in_features, out_features)");
  const auto alike = [&](const Tensor& other) {
    return same_device(x, other) && x.scalar_type() == other.scalar_type();
  };
  require(alike(weight) && (!bias || alike(*bias)), op,
          " needs x, weight and bias of one dtype on one device");
  require(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(1)), op, " needs bias (out_features)");
  return {x.size(0), weight.size(0), weight.size(1)};
}

// Rows that are read block by block; asks for the next block while this one is worked on.
template <class T>
class ReadRows {
 public:
  ReadRows(const Tensor& rows, int64_t width)
      : width_(width), from_(static_cast<const T*>(rows.const_data_ptr())), end_(from_ + rows.numel()) {}

  const T* block(int64_t row, int64_t count) const {
    const T* const block = from_ + row * width_;
    const T* const next = block + count * width_;
    prefetch(next, std::min(count * width_, end_ - next));
    return block;
  }

 private:
  int64_t width_;
  const T *from_, *end_;
};

// Rows that are written block by block, past the caches where they are too many to stay there.
template <class T>
class WrittenRows {
 public:
  WrittenRows(const Tensor& rows, int64_t width)
      : width_(width),
        to_(static_cast<T*>(rows.mutable_data_ptr())),
        stream_(rows.numel() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes),
        held_(stream_ ? new T[kRows * width] : nullptr) {}

  T* block(int64_t row) { return stream_ ? held_.get() : to_ + row * width_; }

  void done(int64_t row, int64_t count) {
    T* const to = to_ + row * width_;
    if (stream_) moves<T, T>().scatter(&to, 1, 1, count * width_, held_.get(), count * width_, true);
  }

 private:
  int64_t width_;
  T* to_;
  bool stream_;
  std::unique_ptr<T[]> held_;
};

// (num_rows, in), (in, out), (out,) -> (num_rows, out)
Tensor pointwise(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  constexpr const char* op = "pointwise";
  const PointwiseShape shape = check_pointwise(op, x, weight, bias);
  x = torch::stable::contiguous(x);
  weight = torch::stable::contiguous(weight);
  if (bias) bias = torch::stable::contiguous(*bias);
  const Tensor result = empty_rows(x, shape.num_rows, shape.out);
  with_number(op, x.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const ReadRows<T> from(x, shape.in);
    const T* const factor = static_cast<const T*>(weight.const_data_ptr());
    const T* const start = bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
    const int64_t shares = shape.shares();
    each_share(shares, [&](int64_t share) {
      WrittenRows<T> to(result, shape.out);
      shape.each_block(shares, share, [&](int64_t row, int64_t count) {
        T* const block = to.block(row);
        for (int64_t i = 0; start && i < count; ++i)
          std::memcpy(block + i * shape.out, start, shape.out * sizeof(T));
        arithmetic<T>().gemm(count, shape.out, shape.in, from.block(row, count), shape.in, 1, factor,
                             shape.out, block, shape.out, start);
        to.done(row, count);
      });
    });
  });
  return result;
}

// Columns of the widest tile of a product.
constexpr int64_t kTile = 32;

// The sums over all rows that make up the gradients of weight and bias: one copy a thread, added in order.
template <class T>
class PointwiseSums {
 public:
  // Vectors go along the shorter side of the weight, whose rows lie closer together, if it fills a tile.
  PointwiseSums(const PointwiseShape& shape, bool with_bias, int64_t shares)
      : shape_(shape),
        along_in_(std::min(shape.in, shape.out) < kTile ? shape.in > shape.out : shape.in < shape.out),
        weight_(shape.in * shape.out),
        size_(weight_ + (with_bias ? shape.out : 0)),
        shares_(shares),
        sums_(new T[shares * size_]) {}

  void clear(int64_t share) { std::memset(sums_.get() + share * size_, 0, size_ * sizeof(T)); }

  void add(int64_t share, int64_t count, const T* x, const T* grad) {
    T* const own = sums_.get() + share * size_;
    const auto [in, out] = std::pair(shape_.in, shape_.out);
    if (along_in_)
      arithmetic<T>().gemm(out, in, count, grad, 1, out, x, in, own, in, true);
    else
      arithmetic<T>().gemm(in, out, count, x, 1, in, grad, out, own, out, true);
    if (size_ > weight_) {
      constexpr T one = 1;
      arithmetic<T>().gemm(1, out, count, &one, 0, 0, grad, out, own + weight_, out, true);
    }
  }

  void sum(Tensor weight_grad, Tensor bias_grad) {
    T* const total = sums_.get();
    for (int64_t share = 1; share < shares_; ++share)
      arithmetic<T>().add_blocks(&total, 1, 1, size_, total + share * size_, size_);
    T* const to = static_cast<T*>(weight_grad.mutable_data_ptr());
    if (along_in_)
      transpose(total, to);
    else
      std::memcpy(to, total, weight_ * sizeof(T));
    if (size_ > weight_)
      std::memcpy(bias_grad.mutable_data_ptr(), total + weight_, (size_ - weight_) * sizeof(T));
  }

 private:
  // (out, in) -> (in, out), a few rows at a time, so that what is read of a line is used at once.
  void transpose(const T* from, T* to) const {
    constexpr int64_t few = 16;
    for (int64_t begin = 0; begin < shape_.in; begin += few)
      for (int64_t j = 0; j < shape_.out; ++j)
        for (int64_t i = begin; i < std::min(begin + few, shape_.in); ++i)
          to[i * shape_.out + j] = from[j * shape_.in + i];
  }

  const PointwiseShape& shape_;
  bool along_in_;
  int64_t weight_, size_, shares_;
  std::unique_ptr<T[]> sums_;
};

// grad (num_rows, out) -> gradients of x (num_rows, in), weight (in, out) and bias (out,), in one pass over
// the rows; that of x or of the bias is empty where it is not wanted.
std::tuple<Tensor, Tensor, Tensor> pointwise_backward(Tensor grad, Tensor x, Tensor weight, bool with_x,
                                                      bool with_bias) {
  constexpr const char* op = "pointwise_backward";
  const PointwiseShape shape = check_pointwise(op, x, weight, std::nullopt);
  grad = check_grad(op, grad, shape.num_rows, shape.out, {weight});
  x = torch::stable::contiguous(x);
  const Tensor transposed = torch::stable::contiguous(torch::stable::transpose(weight, 0, 1));
  const Tensor x_grad = empty_rows(x, with_x ? shape.num_rows : 0, shape.in);
  const Tensor weight_grad = torch::stable::new_empty(x, {shape.in, shape.out});
  const Tensor bias_grad = torch::stable::new_empty(x, {with_bias ? shape.out : 0});
  with_number(op, x.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const ReadRows<T> from(x, shape.in), above(grad, shape.out);
    const T* const factor = static_cast<const T*>(transposed.const_data_ptr());
    const int64_t shares = shape.shares();
    PointwiseSums<T> sums(shape, with_bias, shares);
    each_share(shares, [&](int64_t share) {
      WrittenRows<T> to(x_grad, shape.in);
      sums.clear(share);
      shape.each_block(shares, share, [&](int64_t row, int64_t count) {
        const T* const grads = above.block(row, count);
        if (with_x) {
          arithmetic<T>().gemm(count, shape.in, shape.out, grads, shape.out, 1, factor, shape.in,
                               to.block(row), shape.in, false);
          to.done(row, count);
        }
        sums.add(share, count, from.block(row, count), grads);
      });
    });
    sums.sum(weight_grad, bias_grad);
  });
  return {x_grad, weight_grad, bias_grad};
}

}  // namespace ttgraph
