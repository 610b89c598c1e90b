// Gradients of the cores from those of the looked-up rows, or of all rows; products are made again.
#include <cub/block/block_radix_sort.cuh>

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
    keys[i] = e < tile.count ? static_cast<uint32_t>(tile.prefix[e] / table.group) << (kTileBits + kSuffixBits) |
                                   (tile.suffix[e] & ((1u << kSuffixBits) - 1)) << kTileBits | e
                             : ~0u;
  }
  SuffixSort(temporary).Sort(keys, kTileBits, 32);
  for (int i = 0; i < kPerThread; ++i) sorted[threadIdx.x * kPerThread + i] = keys[i];
  __syncthreads();
}

template <class S, class Sums>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ Table table,
                                                            const __grid_constant__ Ids ids, const S* grad,
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
  T* const product = levels + table.level[last - 1];
  T* const product_grad = level_grads + table.level[last - 1];
  const S* const core = static_cast<const S*>(table.cores[last]);
  const int64_t slice = table.slice[last];
  for (int i = threadIdx.x; i < 2 * table.level_size; i += kThreads) levels[i] = 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * ids.tile;
  load_tile(table, ids, begin, tile);
  sort_by_suffix(table, tile, sorted, temporary);
  const auto scale = sums.scales();

  for (int group = 0; group < tile.num_prefixes; group += table.group) {
    const int count = min(table.group, tile.num_prefixes - group);
    load_digits(table, ids, begin, tile, group, count);
    fill_levels<S>(table, tile, count, levels);

    // d product (height, rank) = rows' gradients (height, columns) times their slices (columns, rank)
    Dealer dealer;
    for (int p = 0; p < count; ++p) {
      constexpr int N = 2;
      const int first = tile.start[group + p];
      const int columns = (tile.start[group + p + 1] - first) * width;
      const int strips = (rank + 8 * N - 1) / (8 * N);
      dealer.deal((height + 15) / 16 * strips, [&](int job) {
        const int m0 = job / strips * 16, n0 = job % strips * 8 * N;
        T c[1][N][4] = {};
        // Gradient (row, column c) and slice (column c, rank n): term q is column 2q, term q + 4 is 2q + 1.
        const auto grads_of = [&](int column, T& upper, T& lower) {
          upper = lower = 0;
          const int e = column / width;
          if (column >= columns || tile.row[first + e] < 0) return;
          const S* const from = grad + tile.row[first + e] * table.dim + column - e * width;
          if (m0 + g < height) upper = load(from + (m0 + g) * width);
          if (m0 + g + 8 < height) lower = load(from + (m0 + g + 8) * width);
        };
        multiply(
            c, columns,
            [&](int, int t, T(&a)[4]) {
              const int column = t + 2 * q;
              if (width % 2) {
                grads_of(column, a[0], a[1]);
                grads_of(column + 1, a[2], a[3]);
                return;
              }
              a[0] = a[1] = a[2] = a[3] = 0;
              const int e = column / width;
              if (column >= columns || tile.row[first + e] < 0) return;
              const S* const from = grad + tile.row[first + e] * table.dim + column - e * width;
              if (m0 + g < height) {
                const auto pair = load_pair(from + (m0 + g) * width);
                a[0] = pair.x, a[2] = pair.y;
              }
              if (m0 + g + 8 < height) {
                const auto pair = load_pair(from + (m0 + g + 8) * width);
                a[1] = pair.x, a[3] = pair.y;
              }
            },
            [&](int n, int t, T(&b)[2]) {
              b[0] = b[1] = 0;
              const int column = t + 2 * q, k = n0 + 8 * n + g;
              if (k >= rank || column >= columns) return;
              const int e = column / width;
              const S* const from = core + tile.suffix[first + e] * slice + k * width + column - e * width;
              if (width % 2 == 0) {
                const auto pair = load_pair(from);
                b[0] = pair.x, b[1] = pair.y;
                return;
              }
              b[0] = load(from);
              const int e1 = (column + 1) / width;
              if (column + 1 < columns)
                b[1] = load(core + tile.suffix[first + e1] * slice + k * width + column + 1 - e1 * width);
            });
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = m0 + g + i / 2 * 8, k = n0 + 8 * n + 2 * q + i % 2;
            if (row < height && k < rank) product_grad[(p * height + row) * stride + k] = c[0][n][i];
          }
      });
    }

    // d slice (rank, width) = product^T (rank, height) times the row's gradient (height, width), summed
    // over neighbours of the same suffix before it leaves the registers.
    {
      constexpr int M = 2;
      const int from = tile.start[group], to = tile.start[group + count];
      const int blocks = (rank + 16 * M - 1) / (16 * M), strips = (width + 7) / 8;
      const int shares = max(1, min(kWarps / (blocks * strips), (to - from + 3) / 4));
      dealer.deal(blocks * strips * shares, [&](int job) {
        const int m0 = job / (strips * shares) * 16 * M, n0 = job / shares % strips * 8, share = job % shares;
        const int end = from + (to - from) * (share + 1) / shares;
        T c[M][1][4] = {};
        int suffix = -1;
        const auto flush = [&] {
          if (suffix < 0) return;
#pragma unroll
          for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int k = m0 + 16 * m + g + i / 2 * 8, j = n0 + 2 * q + i % 2;
              if (k < rank && j < width) sums.add(scale, last, suffix * slice + k * width + j, c[m][0][i]);
              c[m][0][i] = 0;
            }
        };
        for (int i = from + (to - from) * share / shares; i < end; ++i) {
          const int e = sorted[i] & (kMaxTile - 1);
          if (tile.row[e] < 0) continue;
          if (tile.suffix[e] != suffix) {
            flush();
            suffix = tile.suffix[e];
          }
          const T* const left = product + (tile.prefix[e] - group) * height * stride;
          const S* const right = grad + tile.row[e] * table.dim + n0 + g;
          const bool inside = n0 + g < width;
          multiply(
              c, height,
              [&](int m, int t, T(&a)[4]) {
                const int k = m0 + 16 * m + g, k0 = min(k, rank - 1), k1 = min(k + 8, rank - 1);
                const int t0 = min(t + q, height - 1) * stride, t1 = min(t + q + 4, height - 1) * stride;
                a[0] = left[t0 + k0], a[1] = left[t0 + k1], a[2] = left[t1 + k0], a[3] = left[t1 + k1];
              },
              [&](int, int t, T(&b)[2]) {
                b[0] = inside && t + q < height ? load(right + (t + q) * width) : T(0);
                b[1] = inside && t + q + 4 < height ? load(right + (t + q + 4) * width) : T(0);
              });
        }
        flush();
      });
    }
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
            const int column = min(n0 + 8 * n + g, columns - 1), m = column / right;
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
            for (int i = 0; i < 4; ++i) {
              const int row = m0 + g + i / 2 * 8, column = n0 + 8 * n + 2 * q + i % 2;
              if (row < left && column < columns)
                sums.add(scale, k, digit * table.slice[k] + static_cast<int64_t>(row) * columns + column, c[0][n][i]);
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
            const S* const from = slab + static_cast<int64_t>(min(n0 + g, left - 1)) * columns + m * right + q;
            multiply(
                c, right,
                [&](int, int t, T(&a)[4]) {
                  a[0] = a0[t], a[1] = a1[t], a[2] = a0[t + 4], a[3] = a1[t + 4];
                },
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
      const int p = i / numbers, j = i - p * numbers, row = j / table.ranks[1];
      sums.add(scale, 0, tile.digits[p][0] * table.slice[0] + j,
               level_grads[table.level[0] + (p * table.height[0] + row) * table.stride[0] + j - row * table.ranks[1]]);
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
    with_sums<S>(shape, cores, plan, grad, deterministic, [&](const auto& sums) {
      using Sums = std::decay_t<decltype(sums)>;
      if (plan.ids.size == 0) return;
      const size_t bytes = 2 * plan.table.level_size * sizeof(T);
      check(cudaFuncSetAttribute(backward_kernel<S, Sums>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)));
      backward_kernel<S, Sums><<<plan.blocks, kThreads, bytes, plan.stream>>>(
          plan.table, plan.ids, static_cast<const S*>(grad.const_data_ptr()), sums);
      check(cudaGetLastError());
    }, result);
  });
  return result;
}

}  // namespace cuda

std::vector<Tensor> tt_lookup_backward_cuda(Tensor grad, std::vector<Tensor> cores, Tensor ids, bool deterministic) {
  constexpr const char* op = "tt_lookup_backward";
  const TTShape shape = check_cores(op, cores);
  check_ids(op, ids, cores[0]);
  grad = check_grad(op, shape, grad, ids.numel(), cores);
  const cuda::Plan plan(op, shape, cores, ids, shape.num_rows, 2);
  return cuda::backward(op, shape, cores, plan, grad, deterministic);
}

std::vector<Tensor> tt_materialize_backward_cuda(Tensor grad, std::vector<Tensor> cores, bool deterministic) {
  constexpr const char* op = "tt_materialize_backward";
  const TTShape shape = check_cores(op, cores);
  grad = check_grad(op, shape, grad, grad.size(0), cores);
  check_num_embeddings(op, shape, grad.size(0));
  const cuda::Plan plan(op, shape, cores, grad.size(0), 2);
  return cuda::backward(op, shape, cores, plan, grad, deterministic);
}

}  // namespace ttgraph
