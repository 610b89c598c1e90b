// Where many blocks add up the gradients of the cores.
//
// Sums of floating-point numbers depend on their order, and that of the blocks is not fixed. So the
// deterministic sums are kept in 64-bit fixed point, whose additions commute. Their unit follows from a
// bound on what the sums can be, about 2^-62 of it, so nothing overflows and next to nothing is lost.
#pragma once

#include "cuda/plan.cuh"

namespace ttgraph::cuda {

template <class T>
struct FloatingSums {
  T* core[kMaxDepth];

  struct None {};
  __device__ None scales() const { return {}; }
  __device__ void add(None, int k, int64_t at, T value) const { atomicAdd(core[k] + at, value); }
  __device__ void add_pair(None, int k, int64_t at, T first, T second) const {
#if __CUDA_ARCH__ >= 900
    if constexpr (std::is_same_v<T, float>) {
      atomicAdd(reinterpret_cast<float2*>(core[k] + at), make_float2(first, second));
      return;
    }
#endif
    atomicAdd(core[k] + at, first);
    atomicAdd(core[k] + at + 1, second);
  }
};

// Largest absolute values, of each core and of the rows' gradient, as floats rounded up.
struct Magnitudes {
  float of_core[kMaxDepth];
  float of_grad;
};

// The bound on the gradient of core k, summed over so many ids.
__host__ __device__ inline double bound(const Table& table, const Magnitudes& largest, double ids, int k) {
  double result = ids * largest.of_grad * static_cast<double>(table.dim) / table.cols[k];
  for (int j = 0; j <= table.last; ++j)
    if (j != k) result *= largest.of_core[j];
  for (int j = 1; j <= table.last; ++j)
    if (j != k && j != k + 1) result *= table.ranks[j];
  return result;
}

// The power of two by which sums are multiplied: they stay below 2^62.
__device__ inline double scale_of(double bound) {
  return bound > 0 && isfinite(bound) ? exp2(61 - ceil(log2(bound))) : 1.0;
}

struct FixedSums {
  unsigned long long* core[kMaxDepth];
  const Magnitudes* largest;
  Table table;
  double ids;

  struct Scales {
    double of_core[kMaxDepth];
  };
  __device__ Scales scales() const {
    Scales result;
    for (int k = 0; k <= table.last; ++k) result.of_core[k] = scale_of(bound(table, *largest, ids, k));
    return result;
  }
  template <class T>
  __device__ void add(const Scales& scale, int k, int64_t at, T value) const {
    atomicAdd(core[k] + at, static_cast<unsigned long long>(__double2ll_rn(value * scale.of_core[k])));
  }
  template <class T>
  __device__ void add_pair(const Scales& scale, int k, int64_t at, T first, T second) const {
    add(scale, k, at, first);
    add(scale, k, at + 1, second);
  }
};

// The numbers of the cores, or of their gradients, and of one more tensor.
struct Pieces {
  const void* data[kMaxDepth + 1];
  int64_t size[kMaxDepth + 1];
};

// One row of blocks for each piece.
template <class S>
__global__ void find_magnitudes(const __grid_constant__ Pieces pieces, float* largest) {
  const S* const from = static_cast<const S*>(pieces.data[blockIdx.y]);
  float found = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pieces.size[blockIdx.y];
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float value = __double2float_ru(fabs(static_cast<double>(load(from + i))));
    found = value > found || isnan(value) ? value : found;
  }
  // Non-negative floats are ordered as their bits are, and a NaN is above them all.
  const unsigned most = __reduce_max_sync(~0u, __float_as_uint(found) & 0x7fffffffu);
  if (threadIdx.x % 32 == 0) atomicMax(reinterpret_cast<unsigned*>(largest) + blockIdx.y, most);
}

template <class S, class Sums>
__global__ void finish(const __grid_constant__ Table table, const __grid_constant__ Sums sums,
                       const __grid_constant__ Pieces results) {
  const int k = blockIdx.y;
  const auto scales = sums.scales();
  S* const to = static_cast<S*>(const_cast<void*>(results.data[k]));
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < results.size[k];
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if constexpr (std::is_same_v<Sums, FixedSums>) {
      const double limit = bound(table, *sums.largest, sums.ids, k);
      const double sum = static_cast<double>(static_cast<long long>(sums.core[k][i])) / scales.of_core[k];
      store(to + i, static_cast<typename SumOf<S>::type>(isfinite(limit) ? sum : limit - limit));
    } else {
      store(to + i, sums.core[k][i]);
    }
  }
}

// Cores that share a buffer begin where pairs of numbers may.
inline int64_t padded(int64_t numbers) { return (numbers + 1) / 2 * 2; }

// Calls launch(sums) with zeroed sums and puts what they hold then into result, one gradient a core.
template <class S, class Launch>
void with_sums(const TTShape& shape, const std::vector<Tensor>& cores, const Plan& plan, const Tensor& grad,
               bool deterministic, const Launch& launch, std::vector<Tensor>& result) {
  using T = typename SumOf<S>::type;
  int64_t numbers = 0;
  Pieces results{}, measured{};
  for (int64_t k = 0; k < shape.depth(); ++k) {
    result.push_back(torch::stable::new_empty(
        cores[k], {shape.rows[k], shape.ranks[k], shape.cols[k], shape.ranks[k + 1]}));
    results.data[k] = result[k].mutable_data_ptr();
    results.size[k] = measured.size[k] = shape.core(k);
    measured.data[k] = plan.table.cores[k];
    numbers += padded(shape.core(k));
  }
  const auto place = [&](auto& sums, auto* from) {
    for (int64_t k = 0; k < shape.depth(); from += padded(shape.core(k++))) sums.core[k] = from;
  };
  const auto finish_into = [&](const auto& sums) {
    using Sums = std::decay_t<decltype(sums)>;
    finish<S, Sums>
        <<<dim3(256, static_cast<unsigned>(shape.depth())), 256, 0, plan.stream>>>(plan.table, sums, results);
    check(cudaGetLastError());
  };
  if (deterministic) {
    Tensor held = torch::stable::new_empty(grad, {numbers + kMaxDepth}, ScalarType::Long);
    auto* const begin = static_cast<unsigned long long*>(held.mutable_data_ptr());
    check(cudaMemsetAsync(begin, 0, (numbers + kMaxDepth) * sizeof(*begin), plan.stream));
    auto* const largest = reinterpret_cast<float*>(begin + numbers);
    measured.data[kMaxDepth] = grad.const_data_ptr();
    measured.size[kMaxDepth] = grad.numel();
    find_magnitudes<S><<<dim3(512, kMaxDepth + 1), 256, 0, plan.stream>>>(measured, largest);
    check(cudaGetLastError());
    FixedSums sums{};
    sums.largest = reinterpret_cast<const Magnitudes*>(largest);
    sums.table = plan.table;
    sums.ids = static_cast<double>(plan.ids.size);
    place(sums, begin);
    launch(sums);
    finish_into(sums);
    return;
  }
  FloatingSums<T> sums{};
  if constexpr (std::is_same_v<S, T>) {
    for (int64_t k = 0; k < shape.depth(); ++k) {
      sums.core[k] = static_cast<T*>(result[k].mutable_data_ptr());
      check(cudaMemsetAsync(sums.core[k], 0, shape.core(k) * sizeof(T), plan.stream));
    }
    launch(sums);
  } else {
    Tensor held = torch::stable::new_empty(grad, {numbers}, ScalarType::Float);
    check(cudaMemsetAsync(held.mutable_data_ptr(), 0, numbers * sizeof(T), plan.stream));
    place(sums, static_cast<T*>(held.mutable_data_ptr()));
    launch(sums);
    finish_into(sums);
  }
}

}  // namespace ttgraph::cuda
