// Small matrix products on vector registers, compiled once per instruction set (TTGRAPH_ISA).
#include "cpu/gemm.h"
#include "cpu/vector.h"
#include "cpu/width.h"

namespace ttgraph {
namespace TTGRAPH_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

// c (MR, NV * W): the sums stay in registers over all of k.
template <class T, int W, int NV, int MR>
inline __attribute__((always_inline)) void tile(int64_t k, const T* a, int64_t a_row, int64_t a_col,
                                                const T* b, int64_t b_row, T* c, int64_t c_row,
                                                bool accumulate) {
  using V = typename Vector<T, W>::type;
  V sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      sum[i][v] = accumulate ? *reinterpret_cast<const V*>(c + i * c_row + v * W) : V{};
  for (int64_t l = 0; l < k; ++l) {
    V row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = *reinterpret_cast<const V*>(b + l * b_row + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T factor = a[i * a_row + l * a_col];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(c + i * c_row + v * W) = sum[i][v];
}

// All rows of one column panel: tiles of MR rows, then of MR / 2, and so on down to single rows.
template <class T, int W, int NV, int MR>
inline void row_tiles(int64_t m, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b,
                      int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  for (; m >= MR; m -= MR, a += MR * a_row, c += MR * c_row)
    tile<T, W, NV, MR>(k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
  if constexpr (MR > 1)
    if (m) row_tiles<T, W, NV, MR / 2>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
}

// All columns: panels of NV vectors, then of one, then of half a vector, and so on.
template <class T, int W, int NV>
void column_panels(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b,
                   int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  for (; n >= W * NV; n -= W * NV, b += W * NV, c += W * NV)
    row_tiles<T, W, NV, kTileRows>(m, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
  if constexpr (NV > 1) {
    if (n) column_panels<T, W, 1>(m, n, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
  } else if constexpr (W > 1) {
    if (n) column_panels<T, W / 2, 1>(m, n, k, a, a_row, a_col, b, b_row, c, c_row, accumulate);
  }
}

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b,
          int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  column_panels<T, kVectorBytes / static_cast<int>(sizeof(T)), kTileVectors>(m, n, k, a, a_row, a_col, b,
                                                                             b_row, c, c_row, accumulate);
}

template <class T>
void add_blocks(T* const* blocks, int64_t count, int64_t height, int64_t width, const T* c, int64_t c_row) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = 0; i < height; ++i) {
        const T* __restrict from = c + i * c_row + e * w;
        T* __restrict to = blocks[e] + i * w;
        for (int64_t j = 0; j < w; ++j) to[j] += from[j];
      }
  });
}

template <class T>
void scale_blocks(const T* factors, int64_t count, int64_t height, int64_t width, T* c, int64_t c_row) {
  with_width(width, [=](auto w) {
    for (int64_t i = 0; i < height; ++i)
      for (int64_t e = 0; e < count; ++e) {
        const T factor = factors[e];
        T* const to = c + i * c_row + e * w;
        for (int64_t j = 0; j < w; ++j) to[j] *= factor;
      }
  });
}

// Without branches, so that it runs on vectors.
template <class T>
void take_larger(int64_t position, const T* row, int64_t row_stride, int64_t height, int64_t width,
                 T* largest, int64_t* winners) {
  with_width(width, [=](auto w) {
    for (int64_t i = 0; i < height; ++i) {
      const T* __restrict from = row + i * row_stride;
      T* __restrict best = largest + i * w;
      int64_t* __restrict winner = winners + i * w;
      for (int64_t j = 0; j < w; ++j) {
        const bool nan = from[j] != from[j], best_nan = best[j] != best[j];
        const bool larger = (from[j] > best[j]) | (nan & !best_nan);
        const bool equal = (from[j] == best[j]) | (nan & best_nan);
        const bool take = (winner[j] < 0) | larger | (equal & (position < winner[j]));
        best[j] = take ? from[j] : best[j];
        winner[j] = take ? position : winner[j];
      }
    }
  });
}

}  // namespace

extern const ArithmeticTables arithmetic_tables;
const ArithmeticTables arithmetic_tables = {
    {gemm<float>, add_blocks<float>, scale_blocks<float>, take_larger<float>},
    {gemm<double>, add_blocks<double>, scale_blocks<double>, take_larger<double>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
