// Sums over neighbours on vector registers, and the element-wise work after them, compiled once per
// instruction set (TTGRAPH_ISA).
#include "cpu/messages.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "cpu/random.h"
#include "cpu/vector.h"

namespace ttgraph {
namespace TTGRAPH_ISA {
namespace {

constexpr int kMostVectors = 8;
// Rows of neighbours lie anywhere in memory: this many are on their way while one is added.
constexpr int64_t kAhead = 8;

// NV * W columns: the sums stay in registers over all neighbours.
template <class T, int W, int NV>
inline void sum_columns(int64_t count, int64_t ahead, const int64_t* neighbours, const T* weights, const T* x,
                        int64_t stride, const T* root, T* out) {
  using V = typename Vector<T, W>::type;
  V sum[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) sum[v] = root ? *reinterpret_cast<const V*>(root + v * W) : V{};
  for (int64_t e = 0; e < count; ++e) {
    if (e + kAhead < count + ahead) {
      const T* const next = x + neighbours[e + kAhead] * stride;
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) __builtin_prefetch(next + v * W);
    }
    const T weight = weights[e];
    const T* const row = x + neighbours[e] * stride;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[v] += weight * *reinterpret_cast<const V*>(row + v * W);
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(out + v * W) = sum[v];
}

// All columns: panels of as many vectors as stay in registers, then of half of them, and so on.
template <class T, int W, int NV>
void column_panels(int64_t columns, int64_t count, int64_t ahead, const int64_t* neighbours, const T* weights,
                   const T* x, int64_t stride, const T* root, T* out) {
  for (; columns >= W * NV; columns -= W * NV, x += W * NV, out += W * NV) {
    sum_columns<T, W, NV>(count, ahead, neighbours, weights, x, stride, root, out);
    if (root) root += W * NV;
  }
  if constexpr (NV > 1) {
    if (columns)
      column_panels<T, W, NV / 2>(columns, count, ahead, neighbours, weights, x, stride, root, out);
  } else if constexpr (W > 1) {
    if (columns) column_panels<T, W / 2, 1>(columns, count, ahead, neighbours, weights, x, stride, root, out);
  }
}

template <class T>
void weighted_sum(int64_t count, int64_t ahead, const int64_t* neighbours, const T* weights, const T* x,
                  int64_t columns, int64_t stride, const T* root, T* out) {
  column_panels<T, kVectorBytes / static_cast<int>(sizeof(T)), kMostVectors>(
      columns, count, ahead, neighbours, weights, x, stride, root, out);
}

template <class T, int W>
inline T total(typename Vector<T, W>::type numbers) {
  if constexpr (W == 1) {
    return numbers;
  } else {
    typename Vector<T, W / 2>::type halves[2];
    std::memcpy(halves, &numbers, sizeof(halves));
    return total<T, W / 2>(halves[0] + halves[1]);
  }
}

template <class T>
void dots(int64_t count, int64_t ahead, const int64_t* neighbours, const T* x, const T* y, int64_t columns,
          int64_t stride, T* out) {
  constexpr int W = kVectorBytes / static_cast<int>(sizeof(T));
  using V = typename Vector<T, W>::type;
  const int64_t whole = columns / W * W;
  for (int64_t e = 0; e < count; ++e) {
    if (e + kAhead < count + ahead)
      for (int64_t i = 0; i < columns; i += W) __builtin_prefetch(x + neighbours[e + kAhead] * stride + i);
    const T* const row = x + neighbours[e] * stride;
    V sums{};
    for (int64_t i = 0; i < whole; i += W)
      sums += *reinterpret_cast<const V*>(row + i) * *reinterpret_cast<const V*>(y + i);
    T sum = total<T, W>(sums);
    for (int64_t i = whole; i < columns; ++i) sum += row[i] * y[i];
    out[e] = sum;
  }
}

// exp(x) = 2^n exp(r), where n is the whole number next to x / log 2 and r is what remains, at most log(2) /
// 2: there the series up to r^7 / 7! is exact to the last bits.
template <int W>
inline typename Vector<float, W>::type exponential(typename Vector<float, W>::type x) {
  using V = typename Vector<float, W>::type;
  using Whole = typename Vector<int32_t, W>::type;
  constexpr float kOneOverLog2 = 1.44269504f, kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
  const V least = V{} - 87.0f;
  x = x < least ? least : x;
  const auto n = __builtin_convertvector(x * kOneOverLog2 - 0.5f, Whole);  // towards 0
  const auto whole = __builtin_convertvector(n, V);
  const V r = x - whole * kLog2High - whole * kLog2Low;
  V series = V{} + 1.0f / 5040;
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = series * r + term;
  const Whole power = (n + 127) << 23;
  V two_to_n;
  std::memcpy(&two_to_n, &power, sizeof(power));
  return series * two_to_n;
}

inline void exponentials(int64_t count, float* values) {
  constexpr int W = kVectorBytes / static_cast<int>(sizeof(float));
  for (; count > 0; count -= W, values += W) {
    typename Vector<float, W>::type some{};
    const size_t bytes = (count < W ? count : W) * sizeof(float);
    std::memcpy(&some, values, bytes);
    some = exponential<W>(some);
    std::memcpy(values, &some, bytes);
  }
}

inline void exponentials(int64_t count, double* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = std::exp(values[i]);
}

// Entries are numbered in blocks; a block has a key of 64 bits, and its entries are told apart by 16.
constexpr int kBlockBits = 16;

// The bits of entry `place` of the block with the given key: two rounds of multiply and shift.
inline uint32_t entry_bits(uint64_t key, uint32_t place) {
  uint32_t bits = place * 0x9e3779b1u + static_cast<uint32_t>(key);
  bits = (bits ^ (bits >> 16)) * 0x7feb352du;
  bits ^= static_cast<uint32_t>(key >> 32);
  bits = (bits ^ (bits >> 15)) * 0x846ca68bu;
  return bits ^ (bits >> 16);
}

template <class T>
void relu_dropout(Dropout dropout, const T* __restrict x, int64_t begin, int64_t end, T* __restrict out) {
  const T scale = static_cast<T>(dropout.scale);
  while (begin < end) {
    const int64_t block = begin >> kBlockBits, first = block << kBlockBits, next = first + (1 << kBlockBits);
    const int64_t stop = next < end ? next : end;
    const uint64_t key = random_bits(dropout.seed + static_cast<uint64_t>(block), 0);
    const T* const from = x + first;
    T* const to = out + first;
    const auto last = static_cast<uint32_t>(stop - first);
    for (auto i = static_cast<uint32_t>(begin - first); i < last; ++i) {
      // What is no number stays none.
      const bool zero = (from[i] <= T(0)) | (entry_bits(key, i) < dropout.threshold);
      to[i] = zero ? T(0) : from[i] * scale;
    }
    begin = stop;
  }
}

template <class T>
void relu_dropout_backward(double factor, const T* __restrict grad, const T* __restrict out, int64_t size,
                           T* __restrict x_grad) {
  const T scale = static_cast<T>(factor);
  for (int64_t i = 0; i < size; ++i) x_grad[i] = out[i] != T(0) ? grad[i] * scale : T(0);
}

}  // namespace

extern const MessageTables message_tables;
const MessageTables message_tables = {
    {weighted_sum<float>, dots<float>, exponentials, relu_dropout<float>, relu_dropout_backward<float>},
    {weighted_sum<double>, dots<double>, exponentials, relu_dropout<double>, relu_dropout_backward<double>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
