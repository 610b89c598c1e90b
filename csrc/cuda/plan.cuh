// What a call of an op decides on the host: levels, groups, tiles, and the ids sorted by prefix.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <bit>
#include <cassert>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "cuda/table.cuh"

namespace ttgraph::cuda {

template <class Body>
void with_storage(const char* op, ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) return body(float{});
  if (dtype == ScalarType::Double) return body(double{});
  if (dtype == ScalarType::BFloat16) return body(__nv_bfloat16{});
  if (dtype == ScalarType::Half) return body(__half{});
  throw std::invalid_argument(message(op, " takes cores of dtype float32, float64, bfloat16 or float16"));
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("torch has no current CUDA stream for the device of the cores");
  return static_cast<cudaStream_t>(stream);
}

template <class Id>
__global__ void make_keys(const __grid_constant__ Table table, int suffix_bits, const Id* ids, int64_t size,
                          uint64_t* keys, int32_t* positions) {
  const int64_t suffixes = table.rows[table.last];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t id = ids[i];
    // The host is not waited for, so the error surfaces as torch's own do: at the next synchronisation.
    assert(id >= 0 && id < table.num_embeddings && "tt_lookup: id is out of range for num_embeddings");
    const int64_t prefix = id / suffixes;
    keys[i] = static_cast<uint64_t>(table.order.place(prefix)) << suffix_bits |
              static_cast<uint64_t>(id - prefix * suffixes);
    positions[i] = static_cast<int32_t>(i);
  }
}

// Shared memory of a block: its share among those that the registers let run at a time, and the most.
struct Budget {
  int share, most;
};

inline Budget shared_memory_budget(int device, int blocks) {
  int most = 0, all = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  return {all / blocks, most};
}

inline Divisor divisor(int64_t value) {
  const auto number = static_cast<uint64_t>(value);
  return {static_cast<int>(value), std::has_single_bit(number) ? std::countr_zero(number) : -1};
}

class Plan {
 public:
  // For the given ids. `copies` counts the levels kept: 1, or 2 with their gradients.
  Plan(const char* op, const TTShape& shape, const std::vector<Tensor>& cores, const Tensor& lookup_ids,
       int64_t num_embeddings, int copies)
      : guard_(cores[0].get_device_index()), stream(current_stream(cores[0])) {
    arrange(op, shape, cores, num_embeddings, copies);
    const int64_t size = lookup_ids.numel();
    ids.size = size;
    require(size <= std::numeric_limits<int32_t>::max(), op, " takes at most 2^31 - 1 ids on a GPU, got ",
            size);
    if (size == 0) return;
    sort(shape, cores[0], torch::stable::contiguous(lookup_ids));
    cut(copies);
  }

  // For every row of the table.
  Plan(const char* op, const TTShape& shape, const std::vector<Tensor>& cores, int64_t num_embeddings,
       int copies)
      : guard_(cores[0].get_device_index()), stream(current_stream(cores[0])) {
    arrange(op, shape, cores, num_embeddings, copies);
    require(num_embeddings <= std::numeric_limits<int32_t>::max(), op,
            " makes at most 2^31 - 1 rows on a GPU, got ", num_embeddings);
    ids.keys = nullptr;
    const int64_t suffixes = shape.rows[shape.last()], used = (num_embeddings + suffixes - 1) / suffixes;
    ids.rest = table.order.used_rest(used);
    ids.size = table.order.used_digits(used) * ids.rest * suffixes;
    cut(copies);
  }

 private:
  void arrange(const char* op, const TTShape& shape, const std::vector<Tensor>& cores, int64_t num_embeddings,
               int copies) {
    require(shape.depth() <= kMaxDepth, op, " takes at most ", kMaxDepth, " cores on a GPU, got ",
            shape.depth());
    table.last = static_cast<int>(shape.last());
    table.num_embeddings = num_embeddings;
    table.dim = shape.embedding_dim;
    table.order = PrefixOrder(shape);
    table.width = divisor(shape.cols[shape.last()]);
    for (int k = 0; k <= shape.depth(); ++k) table.rank[k] = divisor(shape.ranks[k]);
    int64_t numbers = 0;  // of all levels of one prefix
    for (int k = 0; k < shape.depth(); ++k) {
      held_.push_back(torch::stable::contiguous(cores[k]));
      table.cores[k] = held_[k].const_data_ptr();
      require(std::max({shape.rows[k], shape.slice(k), shape.prefix_cols[k]}) <=
                  std::numeric_limits<int32_t>::max(),
              op, " takes slices and row factors below 2^31 on a GPU; cores[", k, "] is larger");
      table.rows[k] = static_cast<int>(shape.rows[k]);
      table.cols[k] = static_cast<int>(shape.cols[k]);
      table.ranks[k] = static_cast<int>(shape.ranks[k]);
      table.ranks[k + 1] = static_cast<int>(shape.ranks[k + 1]);
      table.slice[k] = shape.slice(k);
      table.height[k] = static_cast<int>(shape.prefix_cols[k]);
      // Distances that spread what a warp reads at a time over all banks: it reads (g, q) of a product,
      // and (q, g) on the way back.
      table.stride[k] = (table.ranks[k + 1] + 7) / 8 * 8;
      if (copies == 1)
        table.stride[k] += 4;
      else if (table.stride[k] % 16 == 0)
        table.stride[k] += 8;
      if (k < table.last) numbers += static_cast<int64_t>(table.height[k]) * table.stride[k];
    }
    const Budget budget = shared_memory_budget(cores[0].get_device_index(), copies == 1 ? 3 : 2);
    const int64_t bytes = numbers * copies * (cores[0].scalar_type() == ScalarType::Double ? 8 : 4);
    const int64_t most = budget.most - kStaticBytes;
    require(bytes <= most, op, " needs ", bytes,
            " bytes of shared memory for the product of one prefix, and the ", "GPU has ", most,
            "; use a smaller rank or a larger last col_factor");
    table.group = static_cast<int>(std::clamp<int64_t>((budget.share - kStaticBytes) / bytes, 1, kMaxGroup));
    if (table.group > 8) table.group = table.group / 4 * 4;
    int size = 0;
    for (int k = 0; k < table.last; ++k) {
      table.level[k] = size;
      size += table.group * table.height[k] * table.stride[k];
    }
    table.level_size = size;
  }

  void sort(const TTShape& shape, const Tensor& like, const Tensor& lookup_ids) {
    const int64_t size = ids.size;
    ids.suffix_bits = std::bit_width(static_cast<uint64_t>(shape.rows[shape.last()] - 1));
    const int place_bits = std::bit_width(static_cast<uint64_t>(shape.num_prefixes - 1));
    Tensor keys = scratch(like, 2 * size, ScalarType::Long);
    Tensor positions = scratch(like, 2 * size, ScalarType::Int);
    auto* const key = static_cast<uint64_t*>(keys.mutable_data_ptr());
    auto* const position = static_cast<int32_t*>(positions.mutable_data_ptr());
    const int blocks = static_cast<int>(std::min<int64_t>((size + 255) / 256, 4096));
    if (lookup_ids.scalar_type() == ScalarType::Long)
      make_keys<<<blocks, 256, 0, stream>>>(table, ids.suffix_bits,
                                            static_cast<const int64_t*>(lookup_ids.const_data_ptr()), size,
                                            key, position);
    else
      make_keys<<<blocks, 256, 0, stream>>>(table, ids.suffix_bits,
                                            static_cast<const int32_t*>(lookup_ids.const_data_ptr()), size,
                                            key, position);
    check(cudaGetLastError());
    cub::DoubleBuffer<uint64_t> key_buffer(key, key + size);
    cub::DoubleBuffer<int32_t> position_buffer(position, position + size);
    // Four passes group up to 2^32 prefixes; beyond, those that share the leading 32 bits lie mixed,
    // which costs products made twice, never exactness.
    const int first_bit = ids.suffix_bits + std::max(0, place_bits - 32);
    const int end_bit = std::max(ids.suffix_bits + place_bits, first_bit + 1);
    size_t bytes = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, key_buffer, position_buffer, size, first_bit,
                                          end_bit, stream));
    Tensor temporary = scratch(like, static_cast<int64_t>(bytes), ScalarType::Byte);
    check(cub::DeviceRadixSort::SortPairs(temporary.mutable_data_ptr(), bytes, key_buffer, position_buffer,
                                          size, first_bit, end_bit, stream));
    ids.keys = key_buffer.Current();
    ids.positions = position_buffer.Current();
  }

  // Tiles large enough to share prefixes, small enough that every multiprocessor gets several.
  void cut(int copies) {
    int processors = 0, device = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    const int largest = copies == 1 ? 256 : kMaxTile;
    ids.tile = 32;
    while (ids.tile < largest && ids.size / (2 * ids.tile) >= 4 * processors) ids.tile *= 2;
    blocks = static_cast<unsigned>((ids.size + ids.tile - 1) / ids.tile);
  }

  Tensor scratch(const Tensor& like, int64_t size, ScalarType dtype) {
    held_.push_back(torch::stable::new_empty(like, {size}, dtype));
    return held_.back();
  }

  static constexpr int kStaticBytes = 28 << 10;  // of a block, for its tile and its sort
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> held_;  // until the kernels that use them are queued

 public:
  cudaStream_t stream;
  Table table{};
  Ids ids{};
  unsigned blocks = 0;
};

}  // namespace ttgraph::cuda
