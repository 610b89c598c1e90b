// Gradients of the products of the leading cores and of the slices of the last one, from those of the rows.
#pragma once

#include "cuda/multiply.cuh"
#include "cuda/table.cuh"

namespace ttgraph::cuda {

// Brings the rows' gradients near, all at once: they will be read one after another.
template <class S>
__device__ inline void prefetch_rows(const Table& table, const Tile& tile, const S* grad) {
  constexpr int kLine = 128 / sizeof(S);
  const int lines = static_cast<int>((table.dim + kLine - 1) / kLine);
  for (int i = threadIdx.x; i < tile.count * lines; i += kThreads) {
    const int e = i / lines;
    if (tile.row[e] >= 0)
      asm volatile(
          "prefetch.global.L2 [%0];" ::"l"(grad + tile.row[e] * table.dim + (i - e * lines) * kLine));
  }
}

// Gradient of the product of one prefix, (height, rank): those of its rows, (height, columns), times their
// slices, (columns, rank). Each job makes 16 rows of it by 8 N columns. Term q of eight is column 2q, and
// term q + 4 column 2q + 1, so that both are read at once.
template <int N, class S, class T>
__device__ inline void product_gradient(const Table& table, const Tile& tile, const S* grad, int first,
                                        int columns, Dealer& dealer, T* to) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int last = table.last, rank = table.ranks[last], width = table.cols[last];
  const int height = table.height[last - 1], stride = table.stride[last - 1];
  const S* const core = static_cast<const S*>(table.cores[last]);
  const int slice = static_cast<int>(table.slice[last]);
  const int strips = (rank + 8 * N - 1) / (8 * N);
  dealer.deal((height + 15) / 16 * strips, [&](int job) {
    const int m = job / strips, m0 = m * 16, n0 = (job - m * strips) * 8 * N;
    const int row0 = min(m0 + g, height - 1) * width, row1 = min(m0 + g + 8, height - 1) * width;
    int k[N];
#pragma unroll
    for (int n = 0; n < N; ++n) k[n] = min(n0 + 8 * n + g, rank - 1) * width;
    T c[1][N][4] = {};
#pragma unroll N == 2 ? 4 : 2
    for (int t = 0; t < columns; t += 8) {
      T a[1][4] = {}, b[N][2] = {};
      const int column = t + 2 * q;
      if (width % 2 == 0) {
        const int e = table.entry_of(column), j = column - e * width;
        if (column < columns && tile.row[first + e] >= 0) {
          const S* const rows = grad + tile.row[first + e] * table.dim + j;
          const S* const slices = core + static_cast<int64_t>(tile.suffix[first + e]) * slice + j;
          const auto upper = load_pair(rows + row0), lower = load_pair(rows + row1);
          a[0][0] = upper.x, a[0][1] = lower.x, a[0][2] = upper.y, a[0][3] = lower.y;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const auto pair = load_pair(slices + k[n]);
            b[n][0] = pair.x, b[n][1] = pair.y;
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = table.entry_of(column + i), j = column + i - e * width;
          if (column + i >= columns || tile.row[first + e] < 0) continue;
          const S* const rows = grad + tile.row[first + e] * table.dim + j;
          const S* const slices = core + static_cast<int64_t>(tile.suffix[first + e]) * slice + j;
          a[0][2 * i] = load(rows + row0), a[0][2 * i + 1] = load(rows + row1);
#pragma unroll
          for (int n = 0; n < N; ++n) b[n][i] = load(slices + k[n]);
        }
      }
      multiply_add(c, a, b);
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = m0 + g + i / 2 * 8, column = n0 + 8 * n + 2 * q + i % 2;
        if (row < height && column < rank) to[row * stride + column] = c[0][n][i];
      }
  });
}

// Gradients of the slices, (rank, width): the products transposed, (rank, height), times the rows'
// gradients, (height, width), summed over neighbours of the same suffix before they leave the registers.
template <int M, class S, class T, class Sums, class Scale>
__device__ inline void slice_gradients(const Table& table, const Tile& tile, const uint32_t* sorted,
                                       int group, int count, const S* grad, const T* levels, const Sums& sums,
                                       const Scale& scale, Dealer& dealer) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int last = table.last, rank = table.ranks[last], width = table.cols[last];
  const int height = table.height[last - 1], stride = table.stride[last - 1];
  const T* const products = levels + table.level[last - 1];
  const int begin = tile.start[group], size = tile.start[group + count] - begin;
  const int blocks = (rank + 16 * M - 1) / (16 * M), strips = (width + 7) / 8;
  const int shares = max(1, min(kWarps / (blocks * strips), (size + 3) / 4));
  dealer.deal(blocks * strips * shares, [&](int job) {
    const int m0 = job / (strips * shares) * 16 * M, n0 = job / shares % strips * 8, share = job % shares;
    int k0[M], k1[M];
#pragma unroll
    for (int m = 0; m < M; ++m)
      k0[m] = min(m0 + 16 * m + g, rank - 1), k1[m] = min(m0 + 16 * m + g + 8, rank - 1);
    T c[M][1][4] = {};
    int suffix = -1;
    const auto flush = [&] {
      if (suffix < 0) return;
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const int k = m0 + 16 * m + g + i * 4, j = n0 + 2 * q;
          const int64_t at = suffix * table.slice[last] + k * width + j;
          if (k < rank && width % 2 == 0 && j < width) {
            sums.add_pair(scale, last, at, c[m][0][i], c[m][0][i + 1]);
          } else if (k < rank && j < width) {
            sums.add(scale, last, at, c[m][0][i]);
            if (j + 1 < width) sums.add(scale, last, at + 1, c[m][0][i + 1]);
          }
          c[m][0][i] = c[m][0][i + 1] = 0;
        }
    };
    // The gradient of the first 16 rows of products is fetched one id ahead.
    const int end = begin + size * (share + 1) / shares;
    const auto grads_of = [&](int e) { return grad + tile.row[e] * table.dim + min(n0 + g, width - 1); };
    T next[4] = {};
    const auto fetch = [&](int i) {
      const int e = sorted[i] & (kMaxTile - 1);
      if (tile.row[e] < 0) return;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        next[j] = 4 * j + q < height ? load(grads_of(e) + (4 * j + q) * width) : T(0);
    };
    const auto add = [&](const T* left, int t, T upper, T lower) {
      T a[M][4], b[1][2] = {{upper, lower}};
      const T* const left0 = left + min(t + q, height - 1) * stride;
      const T* const left1 = left + min(t + q + 4, height - 1) * stride;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        a[m][0] = left0[k0[m]], a[m][1] = left0[k1[m]];
        a[m][2] = left1[k0[m]], a[m][3] = left1[k1[m]];
      }
      multiply_add(c, a, b);
    };
    int i = begin + size * share / shares;
    if (i < end) fetch(i);
    for (; i < end; ++i) {
      const int e = sorted[i] & (kMaxTile - 1);
      const T now[4] = {next[0], next[1], next[2], next[3]};
      if (i + 1 < end) fetch(i + 1);
      if (tile.row[e] < 0) continue;
      if (tile.suffix[e] != suffix) {
        flush();
        suffix = tile.suffix[e];
      }
      const T* const left = products + (tile.prefix[e] - group) * height * stride;
      add(left, 0, now[0], now[1]);
      if (height > 8) add(left, 8, now[2], now[3]);
      for (int t = 16; t < height; t += 8)
        add(left, t, t + q < height ? load(grads_of(e) + (t + q) * width) : T(0),
            t + q + 4 < height ? load(grads_of(e) + (t + q + 4) * width) : T(0));
    }
    flush();
  });
}

}  // namespace ttgraph::cuda
