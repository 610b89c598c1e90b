// Block moves between stored rows and sums, compiled once per instruction set (TTGRAPH_ISA).
#include "cpu/gemm.h"
#include "cpu/width.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace ttgraph {
namespace TTGRAPH_ISA {
namespace {

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
inline void convert(Float16 from, float& to) {
  const uint32_t sign = (from.bits & 0x8000u) << 16, magnitude = from.bits & 0x7fffu;
  // A subnormal number gets the exponent of the least normal one, 2^-14, which is then taken away.
  const bool subnormal = magnitude < 0x400u, finite = magnitude < 0x7c00u;
  const uint32_t exponent = subnormal ? 113u : finite ? 112u : 224u;
  const float excess = __builtin_bit_cast(float, subnormal ? 113u << 23 : 0u);
  const float value = __builtin_bit_cast(float, (magnitude << 13) + (exponent << 23)) - excess;
  to = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
}
// To nearest, ties to even; from 65520 on it is infinite, and a NaN stays one.
inline void convert(float from, Float16& to) {
  const int32_t bits = __builtin_bit_cast(int32_t, from), magnitude = bits & 0x7fffffff;
  const int32_t size = magnitude < 143 << 23 ? magnitude : 143 << 23;  // no more than 2^16, which is infinite
  const int32_t exponent = size >> 23 > 113 ? size >> 23 : 113;        // no less than that of 2^-14
  // The neighbours of a float 2^13 times as large lie as far apart as those in float16: the sum rounds.
  const float shift = __builtin_bit_cast(float, (exponent + 13) << 23);
  const float sum = __builtin_bit_cast(float, size) + shift;
  const int32_t significand = __builtin_bit_cast(int32_t, sum) - __builtin_bit_cast(int32_t, shift);
  const int32_t rounded = significand + ((exponent - 113) << 10), nan = from != from ? 0x200 : 0;
  to.bits = static_cast<uint16_t>(((bits >> 16) & 0x8000) | rounded | nan);
}

#ifdef __F16C__
// N numbers at once.
template <int N>
inline void convert(const Float16* from, float* to) {
  if constexpr (N == 8)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  else
    _mm_storeu_ps(to, _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
template <int N>
inline void convert(const float* from, Float16* to) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  if constexpr (N == 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), kNearest));
  else
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_cvtps_ph(_mm_loadu_ps(from), kNearest));
}
#endif

// The numbers of one row of a block.
template <class From, class To, class Width>
inline __attribute__((always_inline)) void convert(const From* __restrict from, To* __restrict to,
                                                   Width width) {
  int64_t j = 0;
#ifdef __F16C__
  if constexpr (__is_same(From, Float16) || __is_same(To, Float16)) {
    for (; j + 8 <= width; j += 8) convert<8>(from + j, to + j);
    for (; j + 4 <= width; j += 4) convert<4>(from + j, to + j);
  }
#endif
  for (; j < width; ++j) convert(from[j], to[j]);
}

template <class T, class Row>
void gather(const Row* const* blocks, int64_t count, int64_t height, int64_t width, T* c, int64_t c_row) {
  with_width(width, [=](auto w) {
    for (int64_t e = 0; e < count; ++e)
      for (int64_t i = 0; i < height; ++i) convert(blocks[e] + i * w, c + i * c_row + e * w, w);
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
      for (int64_t i = 0; i < height; ++i) convert(c + i * c_row + e * w, blocks[e] + i * w, w);
  });
}

}  // namespace

extern const MoveTables move_tables;
const MoveTables move_tables = {
    {gather<float, float>, scatter<float, float>},
    {gather<double, double>, scatter<double, double>},
    {gather<float, BFloat16>, scatter<float, BFloat16>},
    {gather<float, Float16>, scatter<float, Float16>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
