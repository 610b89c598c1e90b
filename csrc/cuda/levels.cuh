// Products of the leading cores of a group of prefixes, level by level, in shared memory.
#pragma once

#include "cuda/multiply.cuh"
#include "cuda/table.cuh"

namespace ttgraph::cuda {

template <class S, class T>
__device__ inline void fill_levels(const Table& table, const Tile& tile, int count, T* shared) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  {
    const int width = static_cast<int>(table.slice[0]);
    T* const level = shared + table.level[0];
    const S* const core = static_cast<const S*>(table.cores[0]);
    for (int i = threadIdx.x; i < count * width; i += kThreads) {
      const int p = i / width, j = i - p * width, row = table.rank[1].divide(j);
      level[(p * table.height[0] + row) * table.stride[0] + j - row * table.ranks[1]] =
          load(core + tile.digits[p][0] * table.slice[0] + j);
    }
    __syncthreads();
  }
  for (int k = 1; k < table.last; ++k) {
    const int rank = table.ranks[k], right = table.ranks[k + 1], columns = table.cols[k] * right;
    const int height = table.height[k - 1], stride = table.stride[k - 1];
    const T* const below = shared + table.level[k - 1];
    T* const level = shared + table.level[k];
    constexpr int N = 4;
    Dealer dealer;
    each_run(tile, k, count, [&](int begin, int end, int digit) {
      const S* const slab = static_cast<const S*>(table.cores[k]) + digit * table.slice[k];
      const int rows = (end - begin) * height, first = begin * height;
      const int strips = (columns + 8 * N - 1) / (8 * N);
      dealer.deal((rows + 15) / 16 * strips, [&](int job) {
        const int m0 = job / strips * 16, c0 = job % strips * 8 * N;
        const T* const a0 = below + (first + min(m0 + g, rows - 1)) * stride + q;
        const T* const a1 = below + (first + min(m0 + g + 8, rows - 1)) * stride + q;
        T c[1][N][4] = {};
        multiply(
            c, rank,
            [&](int, int t, T(&a)[4]) { a[0] = a0[t], a[1] = a1[t], a[2] = a0[t + 4], a[3] = a1[t + 4]; },
            [&](int n, int t, T(&b)[2]) {
              const int column = c0 + 8 * n + g;
              const S* const from = slab + static_cast<int64_t>(t + q) * columns + column;
              b[0] = column < columns && t + q < rank ? load(from) : T(0);
              b[1] = column < columns && t + q + 4 < rank ? load(from + 4 * columns) : T(0);
            });
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = m0 + g + i / 2 * 8, column = c0 + 8 * n + 2 * q + i % 2;
            if (row < rows && column < columns) {
              const int m = table.rank[k + 1].divide(column);
              level[((first + row) * table.cols[k] + m) * table.stride[k] + column - m * right] = c[0][n][i];
            }
          }
      });
    });
    __syncthreads();
  }
}

}  // namespace ttgraph::cuda
