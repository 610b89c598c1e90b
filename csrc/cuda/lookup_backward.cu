// Gradients of the cores from those of the looked-up rows, or of all rows; products are made again.
#include <cub/block/block_radix_sort.cuh>

#include "cuda/gradients.cuh"
#include "cuda/levels.cuh"
#include "cuda/plan.cuh"
#include "cuda/sums.cuh"

namespace ttgraph {
namespace cuda {

constexpr int kPerThread = kMaxTile / kThreads, kTileBits = 10, kSuffixBits = 12;
using SuffixSort = cub::BlockRadixSort<uint32_t, kThreads, kPerThread>;

// The ids of a tile by group of prefixes, then by suffix, then as they come: group, suffix, id.
__device__ inline void sort_by_suffix(const Table& table, const Tile& tile, uint32_t* sorted,
                                      SuffixSort::TempStorage& temporary) {
  uint32_t keys[kPerThread];
  for (int i = 0; i < kPerThread; ++i) {
    const uint32_t e = threadIdx.x * kPerThread + i;
    // Suffixes that differ above these bits may lie mixed; who reads them compares them whole.
    keys[i] = e < tile.count
                  ? static_cast<uint32_t>(tile.prefix[e] / table.group) << (kTileBits + kSuffixBits) |
                        (tile.suffix[e] & ((1u << kSuffixBits) - 1)) << kTileBits | e
                  : ~0u;
  }
  SuffixSort(temporary).Sort(keys, kTileBits, 32);
  for (int i = 0; i < kPerThread; ++i) sorted[threadIdx.x * kPerThread + i] = keys[i];
  __syncthreads();
}

template <class S, class Sums>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Table table, const __grid_constant__ Ids ids, const S* grad,
                    const __grid_constant__ Sums sums) {
  using T = typename SumOf<S>::type;
  extern __shared__ __align__(16) char shared_bytes[];
  T* const levels = reinterpret_cast<T*>(shared_bytes);
  T* const level_grads = levels + table.level_size;
  __shared__ Tile tile;
  __shared__ uint32_t sorted[kMaxTile];
  __shared__ SuffixSort::TempStorage temporary;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int last = table.last, rank = table.ranks[last], width = table.cols[last];
  const int height = table.height[last - 1], stride = table.stride[last - 1];
  for (int i = threadIdx.x; i < 2 * table.level_size; i += kThreads) levels[i] = 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * ids.tile;
  load_tile(table, ids, begin, tile);
  prefetch_rows(table, tile, grad);
  sort_by_suffix(table, tile, sorted, temporary);
  const auto scale = sums.scales();

  for (int group = 0; group < tile.num_prefixes; group += table.group) {
    const int count = min(table.group, tile.num_prefixes - group);
    load_digits(table, ids, begin, tile, group, count);
    fill_levels<S>(table, tile, count, levels);

    Dealer dealer;
    for (int p = 0; p < count; ++p) {
      const int first = tile.start[group + p], columns = (tile.start[group + p + 1] - first) * width;
      T* const to = level_grads + table.level[last - 1] + p * height * stride;
      if (rank > 16)
        product_gradient<4>(table, tile, grad, first, columns, dealer, to);
      else
        product_gradient<2>(table, tile, grad, first, columns, dealer, to);
    }
    if (rank > 32)
      slice_gradients<4>(table, tile, sorted, group, count, grad, levels, sums, scale, dealer);
    else if (rank > 16)
      slice_gradients<2>(table, tile, sorted, group, count, grad, levels, sums, scale, dealer);
    else
      slice_gradients<1>(table, tile, sorted, group, count, grad, levels, sums, scale, dealer);
    __syncthreads();

    // Down the levels: d core k = level k-1 ^T times d level k, and d level k-1 = d level k times core k^T.
    for (int k = last - 1; k > 0; --k) {
      const int left = table.ranks[k], right = table.ranks[k + 1], m_cols = table.cols[k];
      const int columns = m_cols * right, above = table.height[k - 1];
      const T* const below = levels + table.level[k - 1];
      const T* const level_grad = level_grads + table.level[k];
      T* const below_grad = level_grads + table.level[k - 1];
      const int below_stride = table.stride[k - 1], level_stride = table.stride[k];
      Dealer chain;
      each_run(tile, k, count, [&](int run_begin, int run_end, int digit) {
        const int rows = (run_end - run_begin) * above, first = run_begin * above;
        const S* const slab = static_cast<const S*>(table.cores[k]) + digit * table.slice[k];
        constexpr int N = 4;
        const int strips = (columns + 8 * N - 1) / (8 * N);
        chain.deal((left + 15) / 16 * strips, [&](int job) {
          const int m0 = job / strips * 16, n0 = job % strips * 8 * N;
          const int k0 = min(m0 + g, left - 1), k1 = min(m0 + g + 8, left - 1);
          int offset[N];
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const int column = min(n0 + 8 * n + g, columns - 1), m = table.rank[k + 1].divide(column);
            offset[n] = (first * m_cols + m) * level_stride + column - m * right;
          }
          T c[1][N][4] = {};
          multiply(
              c, rows,
              [&](int, int t, T(&a)[4]) {
                const int t0 = (first + min(t + q, rows - 1)) * below_stride;
                const int t1 = (first + min(t + q + 4, rows - 1)) * below_stride;
                a[0] = below[t0 + k0], a[1] = below[t0 + k1], a[2] = below[t1 + k0], a[3] = below[t1 + k1];
              },
              [&](int n, int t, T(&b)[2]) {
                b[0] = t + q < rows ? level_grad[offset[n] + (t + q) * m_cols * level_stride] : T(0);
                b[1] = t + q + 4 < rows ? level_grad[offset[n] + (t + q + 4) * m_cols * level_stride] : T(0);
              });
#pragma unroll
          for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              const int row = m0 + g + i * 4, column = n0 + 8 * n + 2 * q;
              const int64_t at = digit * table.slice[k] + static_cast<int64_t>(row) * columns + column;
              if (row < left && columns % 2 == 0 && column < columns) {
                sums.add_pair(scale, k, at, c[0][n][i], c[0][n][i + 1]);
              } else if (row < left && column < columns) {
                sums.add(scale, k, at, c[0][n][i]);
                if (column + 1 < columns) sums.add(scale, k, at + 1, c[0][n][i + 1]);
              }
            }
        });
        const int tiles = (left + 7) / 8;
        chain.deal((rows + 15) / 16 * tiles, [&](int job) {
          const int m0 = job / tiles * 16, n0 = job % tiles * 8;
          const int r0 = min(m0 + g, rows - 1), r1 = min(m0 + g + 8, rows - 1);
          T c[1][1][4] = {};
          for (int m = 0; m < m_cols; ++m) {
            const T* const a0 = level_grad + ((first + r0) * m_cols + m) * level_stride + q;
            const T* const a1 = level_grad + ((first + r1) * m_cols + m) * level_stride + q;
            const S* const from =
                slab + static_cast<int64_t>(min(n0 + g, left - 1)) * columns + m * right + q;
            multiply(
                c, right,
                [&](int, int t, T(&a)[4]) { a[0] = a0[t], a[1] = a1[t], a[2] = a0[t + 4], a[3] = a1[t + 4]; },
                [&](int, int t, T(&b)[2]) {
                  b[0] = t + q < right ? load(from + t) : T(0);
                  b[1] = t + q + 4 < right ? load(from + t + 4) : T(0);
                });
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = m0 + g + i / 2 * 8, column = n0 + 2 * q + i % 2;
            if (row < rows && column < left) below_grad[(first + row) * below_stride + column] = c[0][0][i];
          }
        });
      });
      __syncthreads();
    }
    const int numbers = static_cast<int>(table.slice[0]);
    for (int i = threadIdx.x; i < count * numbers; i += kThreads) {
      const int p = i / numbers, j = i - p * numbers, row = table.rank[1].divide(j);
      sums.add(scale, 0, tile.digits[p][0] * table.slice[0] + j,
               level_grads[table.level[0] + (p * table.height[0] + row) * table.stride[0] + j -
                           row * table.ranks[1]]);
    }
    __syncthreads();
  }
}

static std::vector<Tensor> backward(const char* op, const TTShape& shape, const std::vector<Tensor>& cores,
                                    const Plan& plan, const Tensor& grad, bool deterministic) {
  std::vector<Tensor> result;
  with_storage(op, cores[0].scalar_type(), [&](auto number) {
    using S = decltype(number);
    using T = typename SumOf<S>::type;
    with_sums<S>(
        shape, cores, plan, grad, deterministic,
        [&](const auto& sums) {
          using Sums = std::decay_t<decltype(sums)>;
          if (plan.ids.size == 0) return;
          const size_t bytes = 2 * plan.table.level_size * sizeof(T);
          check(cudaFuncSetAttribute(backward_kernel<S, Sums>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
          backward_kernel<S, Sums><<<plan.blocks, kThreads, bytes, plan.stream>>>(
              plan.table, plan.ids, static_cast<const S*>(grad.const_data_ptr()), sums);
          check(cudaGetLastError());
        },
        result);
  });
  return result;
}

}  // namespace cuda

std::vector<Tensor> tt_lookup_backward_cuda(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                            bool deterministic) {
  constexpr const char* op = "tt_lookup_backward";
  const TTShape shape = check_cores(op, cores);
  check_ids(op, ids, cores[0]);
  grad = check_grad(op, grad, ids.numel(), shape.embedding_dim, cores);
  const cuda::Plan plan(op, shape, cores, ids, shape.num_rows, 2);
  return cuda::backward(op, shape, cores, plan, grad, deterministic);
}

std::vector<Tensor> tt_materialize_backward_cuda(Tensor grad, std::vector<Tensor> cores, bool deterministic) {
  constexpr const char* op = "tt_materialize_backward";
  const TTShape shape = check_cores(op, cores);
  grad = check_grad(op, grad, grad.size(0), shape.embedding_dim, cores);
  check_num_embeddings(op, shape, grad.size(0));
  const cuda::Plan plan(op, shape, cores, grad.size(0), 2);
  return cuda::backward(op, shape, cores, plan, grad, deterministic);
}

}  // namespace ttgraph
