// Arguments of the ops: checked once, named in the error, made contiguous, described by a TTShape.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace ttgraph {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sizes of a tensor-train table; core k is (rows[k], ranks[k], cols[k], ranks[k + 1]).
struct TTShape {
  std::vector<int64_t> rows, cols, ranks;
  std::vector<int64_t> prefix_cols;  // columns of the product of the first k + 1 cores
  int64_t num_prefixes = 1;          // product of all rows but the last
  int64_t num_rows = 1;
  int64_t embedding_dim = 1;

  int64_t depth() const { return static_cast<int64_t>(rows.size()); }
  int64_t last() const { return depth() - 1; }
  int64_t slice(int64_t k) const { return ranks[k] * cols[k] * ranks[k + 1]; }  // numbers per row digit
  int64_t core(int64_t k) const { return rows[k] * slice(k); }
};

template <class... Parts>
std::string message(const Parts&... parts) {
  std::string text;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      text += std::to_string(part);
    else
      text += part;
  };
  (add(parts), ...);
  return text;
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(message(parts...));
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline TTShape check_cores(const char* op, const std::vector<Tensor>& cores) {
  TTShape shape;
  require(cores.size() >= 2, op, " needs at least 2 cores, got ", cores.size());
  shape.ranks.push_back(1);
  for (size_t k = 0; k < cores.size(); ++k) {
    const Tensor& core = cores[k];
    require(core.dim() == 4, op, " needs cores of 4 dimensions, got cores[", k, "] of ", core.dim());
    require(same_device(core, cores[0]) && core.scalar_type() == cores[0].scalar_type(), op,
            " needs cores of one dtype on one device; cores[", k, "] differs");
    require(core.size(1) == shape.ranks.back(), op, " needs cores[", k, "] of left rank ", shape.ranks.back(),
            ", got ", core.size(1));
    for (int64_t d = 0; d < 4; ++d) require(core.size(d) > 0, op, " got cores[", k, "] without entries");
    shape.rows.push_back(core.size(0));
    shape.cols.push_back(core.size(2));
    shape.ranks.push_back(core.size(3));
    require(!__builtin_mul_overflow(shape.embedding_dim, core.size(2), &shape.embedding_dim), op,
            " got column factors that multiply to more than an int64 holds");
    shape.prefix_cols.push_back(shape.embedding_dim);
    shape.num_prefixes = shape.num_rows;
    require(!__builtin_mul_overflow(shape.num_rows, core.size(0), &shape.num_rows), op,
            " got row factors that multiply to more than an int64 holds");
  }
  require(shape.ranks.back() == 1, op, " needs the last core to end with rank 1, got ", shape.ranks.back());
  return shape;
}

inline void check_num_embeddings(const char* op, const TTShape& shape, int64_t num_embeddings) {
  require(num_embeddings >= 0 && num_embeddings <= shape.num_rows, op, ": row_factors multiply to ",
          shape.num_rows, ", fewer than num_embeddings=", num_embeddings);
}

inline void check_ids(const char* op, const Tensor& ids, const Tensor& core) {  // (num_ids,)
  const bool integer = ids.scalar_type() == ScalarType::Long || ids.scalar_type() == ScalarType::Int;
  require(ids.dim() == 1 && same_device(ids, core) && integer, op,
          " needs ids of one dimension, int32 or int64, on the device of the cores");
}

// Where each bag begins, and at last the number of ids, as contiguous int64; read here, so on the CPU.
inline Tensor check_offsets(const char* op, Tensor offsets, int64_t num_ids) {  // (num_bags + 1,)
  require(offsets.dim() == 1 && offsets.numel() > 0 && offsets.is_cpu() &&
              offsets.scalar_type() == ScalarType::Long,
          op, " needs offsets of one dimension, int64, not empty, on the CPU");
  offsets = torch::stable::contiguous(offsets);
  const int64_t* const begins = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t last = offsets.numel() - 1;
  for (int64_t bag = 0; bag <= last; ++bag) {
    const int64_t least = bag == last ? num_ids : bag ? begins[bag - 1] : 0, most = bag ? num_ids : 0;
    require(least <= begins[bag] && begins[bag] <= most, op,
            " needs offsets that start at 0, never decrease and end at the number of ids, ", num_ids,
            "; got offsets[", bag, "]=", begins[bag]);
  }
  return offsets;
}

// A weight for every id, or none, contiguous in the dtype of the cores.
inline std::optional<Tensor> check_per_sample_weights(const char* op, const std::optional<Tensor>& weights,
                                                      int64_t num_ids, const Tensor& core) {
  if (!weights) return weights;
  require(weights->dim() == 1 && weights->numel() == num_ids && same_device(*weights, core) &&
              weights->scalar_type() == core.scalar_type(),
          op, " needs per_sample_weights of shape (", num_ids,
          ") in the dtype of the cores, on their device");
  return torch::stable::contiguous(*weights);
}

inline Tensor check_grad(const char* op, const Tensor& grad, int64_t num_rows, int64_t width,
                         const std::vector<Tensor>& cores) {
  require(grad.dim() == 2 && grad.size(0) == num_rows && grad.size(1) == width &&
              same_device(grad, cores[0]) && grad.scalar_type() == cores[0].scalar_type(),
          op, " needs grad of shape (", num_rows, ", ", width,
          ") in the dtype of the cores, on their device");
  return torch::stable::contiguous(grad);
}

inline Tensor check_weight(const char* op, const TTShape& shape, const Tensor& weight,
                           const std::vector<Tensor>& cores) {
  require(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == shape.embedding_dim &&
              same_device(weight, cores[0]) && weight.scalar_type() == cores[0].scalar_type(),
          op, " needs weight of shape (out_features, ", shape.embedding_dim,
          ") in the dtype of the cores, on their device");
  return torch::stable::contiguous(weight);
}

}  // namespace ttgraph
