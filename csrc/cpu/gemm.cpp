// Small matrix products on vector registers, compiled once per instruction set (TTGRAPH_ISA).
#include "cpu/gemm.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace ttgraph {
namespace TTGRAPH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 4;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kTileRows = 8;
#else
constexpr int kVectorBytes = 16, kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

template <class T, int W>
struct Vector {
  typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T>
struct Vector<T, 1> {
  using type = T;
};

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

inline void convert(float from, float& to) { to = from; }
inline void convert(double from, double& to) { to = from; }
inline void convert(BFloat16 from, float& to) {
  to = __builtin_bit_cast(float, static_cast<uint32_t>(from.bits) << 16);
}
// To nearest, ties to even; a NaN stays one.
inline void convert(float from, BFloat16& to) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, from);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(from != from ? 0x7fc0u : rounded);
}

// Calls body(width) with the common widths as compile-time constants, for the sake of its inner loop.
template <class Body>
inline __attribute__((always_inline)) void with_width(int64_t width, Body body) {
  struct W4 {
    constexpr operator int64_t() const { return 4; }
  };
  struct W8 {
    constexpr operator int64_t() const { return 8; }
  };
  struct W16 {
    constexpr operator int64_t() const { return 16; }
  };
  struct W32 {
    constexpr operator int64_t() const { return 32; }
  };
  switch (width) {
    case 4:
      return body(W4{});
    case 8:
      return body(W8{});
    case 16:
      return body(W16{});
    case 32:
      return body(W32{});
    default:
      return body(width);
  }
}

template <class T, class Row>
void gather(const Row* const* blocks, int64_t count, int64_t height, int64_t width, T* c, int64_t c_row) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = 0; i < height; ++i) {
        const Row* __restrict from = blocks[e] + i * w;
        T* __restrict to = c + i * c_row + e * w;
        for (int64_t j = 0; j < w; ++j) convert(from[j], to[j]);
      }
  });
}

// Streaming needs blocks of whole aligned vectors, and an instruction set that has it.
template <class T>
bool stream_blocks([[maybe_unused]] T* const* blocks, [[maybe_unused]] int64_t count,
                   [[maybe_unused]] int64_t height, [[maybe_unused]] int64_t width,
                   [[maybe_unused]] const T* c, [[maybe_unused]] int64_t c_row) {
#ifdef __AVX2__
  constexpr int64_t kLanes = 32 / sizeof(T);
  if (width % kLanes || reinterpret_cast<uintptr_t>(blocks[0]) % 32) return false;
  for (int64_t e = 0; e < count; ++e)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; j += kLanes)
        _mm256_stream_si256(
            reinterpret_cast<__m256i*>(blocks[e] + i * width + j),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c + i * c_row + e * width + j)));
  return true;
#else
  return false;
#endif
}

template <class T, class Row>
void scatter(Row* const* blocks, int64_t count, int64_t height, int64_t width, const T* c, int64_t c_row,
             bool stream) {
  if constexpr (__is_same(T, Row))
    if (stream && stream_blocks(blocks, count, height, width, c, c_row)) return;
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = 0; i < height; ++i) {
        const T* __restrict from = c + i * c_row + e * w;
        Row* __restrict to = blocks[e] + i * w;
        for (int64_t j = 0; j < w; ++j) convert(from[j], to[j]);
      }
  });
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

extern const ArithmeticTables tables;
const ArithmeticTables tables = {
    {gemm<float>, add_blocks<float>, scale_blocks<float>, take_larger<float>},
    {gemm<double>, add_blocks<double>, scale_blocks<double>, take_larger<double>},
    {gather<float, float>, scatter<float, float>},
    {gather<double, double>, scatter<double, double>},
    {gather<float, BFloat16>, scatter<float, BFloat16>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
