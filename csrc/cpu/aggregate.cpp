// Weighted sums over neighbours: a sparse matrix times rows. The gradient is the same op on its transpose.
#include "cpu/cores.h"
#include "cpu/csr.h"
#include "cpu/messages.h"

namespace ttgraph {

static void check_matrix(const char* op, const std::vector<Tensor>& matrix, const Tensor& x) {
  require(matrix.size() == 3, op, " needs offsets, neighbours and weights, got ", matrix.size(), " tensors");
  const Tensor &offsets = matrix[0], &neighbours = matrix[1], &weights = matrix[2];
  for (const Tensor* part : {&offsets, &neighbours, &weights})
    require(part->dim() == 1 && same_device(*part, x), op,
            " needs offsets, neighbours and weights of one dimension on the device of x");
  require(offsets.scalar_type() == ScalarType::Long && neighbours.scalar_type() == ScalarType::Long &&
              offsets.numel() > 0,
          op, " needs offsets, at least one, and neighbours as int64");
  require(weights.numel() == neighbours.numel() && weights.scalar_type() == x.scalar_type(), op,
          " needs a weight for each of the ", neighbours.numel(), " neighbours, in the dtype of x");
}

template <class T>
static void aggregate_rows(const T* x, const int64_t* offsets, int64_t num_rows, const int64_t* neighbours,
                           const T* weights, int64_t width, const T* root, T* out) {
  const int64_t size = offsets[num_rows];
  each_row_range(offsets, num_rows, width, [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      const int64_t begin = offsets[row], after = offsets[row + 1];
      messages<T>().weighted_sum(after - begin, size - after, neighbours + begin, weights + begin, x, width,
                                 width, root ? root + row * width : nullptr, out + row * width);
    }
  });
}

Tensor aggregate(Tensor x, std::vector<Tensor> matrix, std::vector<Tensor> /*transposed*/,
                 std::optional<Tensor> root) {  // (num_sources, width) -> (num_rows, width)
  constexpr const char* op = "aggregate";
  require(x.dim() == 2, op, " needs x of two dimensions, got ", x.dim());
  check_matrix(op, matrix, x);
  const int64_t num_rows = matrix[0].numel() - 1, width = x.size(1);
  require(!root || (root->dim() == 2 && root->size(0) == num_rows && root->size(1) == width &&
                    same_device(*root, x) && root->scalar_type() == x.scalar_type()),
          op, " needs root of shape (", num_rows, ", ", width, ") in the dtype of x, on its device");
  for (Tensor& part : matrix) part = torch::stable::contiguous(part);
  const auto* const offsets = static_cast<const int64_t*>(matrix[0].const_data_ptr());
  const auto* const neighbours = static_cast<const int64_t*>(matrix[1].const_data_ptr());
  check_entries(op, offsets, num_rows, neighbours, matrix[1].numel(), x.size(0));
  Tensor out;
  with_numbers(op, x.scalar_type(), [&](auto numbers) {
    using N = decltype(numbers);
    using T = typename N::T;
    const auto wide = [](const Tensor& rows) {
      return torch::stable::to(torch::stable::contiguous(rows), N::sum_type);
    };
    const Tensor sources = wide(x), weights = wide(matrix[2]), start = wide(root.value_or(x));
    const Tensor sums = empty_rows(sources, num_rows, width);
    aggregate_rows(static_cast<const T*>(sources.const_data_ptr()), offsets, num_rows, neighbours,
                   static_cast<const T*>(weights.const_data_ptr()), width,
                   root ? static_cast<const T*>(start.const_data_ptr()) : nullptr,
                   static_cast<T*>(sums.mutable_data_ptr()));
    out = torch::stable::to(sums, x.scalar_type());
  });
  return out;
}

}  // namespace ttgraph
