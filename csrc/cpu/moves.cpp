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

}  // namespace

extern const MoveTables move_tables;
const MoveTables move_tables = {
    {gather<float, float>, scatter<float, float>},
    {gather<double, double>, scatter<double, double>},
    {gather<float, BFloat16>, scatter<float, BFloat16>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
