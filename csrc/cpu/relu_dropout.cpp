// Rectification and dropout in one pass. No mask is kept: the gradient passes where the result is not 0.
#include <cmath>

#include "cpu/cores.h"
#include "cpu/messages.h"

namespace ttgraph {

// body(begin, end) over ranges of the entries, one a thread.
template <class Body>
static void each_range(int64_t size, const Body& body) {
  const int64_t shares = count_shares(size, 1 << 15);
  each_share(shares, [&](int64_t share) {
    body(share_begin(size, shares, share), share_begin(size, shares, share + 1));
  });
}

Tensor relu_dropout(Tensor x, double p, int64_t seed) {  // any shape -> the same
  constexpr const char* op = "relu_dropout";
  require(p >= 0 && p < 1, op, " needs p from 0 to below 1, got ", p);
  x = torch::stable::contiguous(x);
  Tensor out;
  const Dropout dropout{static_cast<uint64_t>(seed), static_cast<uint32_t>(std::floor(p * 0x1p32)),
                        1 / (1 - p)};
  with_numbers(op, x.scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const Tensor wide = torch::stable::to(x, N::sum_type);
    const Tensor result = on_large_pages(torch::stable::empty_like(wide));
    const T* const from = static_cast<const T*>(wide.const_data_ptr());
    T* const to = static_cast<T*>(result.mutable_data_ptr());
    each_range(x.numel(), [&](int64_t begin, int64_t end) {
      messages<T>().relu_dropout(dropout, from, begin, end, to);
    });
    out = torch::stable::to(result, x.scalar_type());
  });
  return out;
}

Tensor relu_dropout_backward(Tensor grad, Tensor out, double p) {  // any shape -> the same
  constexpr const char* op = "relu_dropout_backward";
  require(grad.numel() == out.numel() && grad.scalar_type() == out.scalar_type() && same_device(grad, out),
          op, " needs grad as out is, which has ", out.numel(), " entries; got ", grad.numel());
  grad = torch::stable::contiguous(grad);
  Tensor x_grad;
  with_numbers(op, grad.scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const auto wide = [](const Tensor& part) { return torch::stable::to(part, N::sum_type); };
    const Tensor wide_grad = wide(grad), wide_out = wide(torch::stable::contiguous(out));
    const Tensor result = on_large_pages(torch::stable::empty_like(wide_grad));
    const T* const from = static_cast<const T*>(wide_grad.const_data_ptr());
    const T* const kept = static_cast<const T*>(wide_out.const_data_ptr());
    T* const to = static_cast<T*>(result.mutable_data_ptr());
    each_range(grad.numel(), [&](int64_t begin, int64_t end) {
      messages<T>().relu_dropout_backward(1 / (1 - p), from + begin, kept + begin, end - begin, to + begin);
    });
    x_grad = torch::stable::to(result, grad.scalar_type());
  });
  return x_grad;
}

}  // namespace ttgraph
