// Correlations of planes on vector registers, compiled once per instruction set (TTGRAPH_ISA).
#include "cpu/correlate.h"

#include "cpu/vector.h"

namespace ttgraph {
namespace TTGRAPH_ISA {
namespace {

// Sums that stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 16, kMostChannels = 8;
#else
constexpr int kSums = 8, kMostChannels = 4;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <int N>
struct Constant {
  constexpr operator int64_t() const { return N; }
};

// Calls body(channels, step) with common numbers as compile-time constants where pixels follow each other,
// for the sake of its inner loop.
template <class Body>
inline __attribute__((always_inline)) void with_channels(int64_t channels, int64_t step, Body body) {
  switch (channels == step ? channels : 0) {
    case 1:
      return body(Constant<1>{}, Constant<1>{});
    case 2:
      return body(Constant<2>{}, Constant<2>{});
    case 4:
      return body(Constant<4>{}, Constant<4>{});
    case 8:
      return body(Constant<8>{}, Constant<8>{});
    case 16:
      return body(Constant<16>{}, Constant<16>{});
    default:
      return body(channels, step);
  }
}

template <class T>
void split(int64_t count, int64_t channels, const T* __restrict pixels, int64_t step, T* __restrict planes,
           int64_t plane) {
  with_channels(channels, step, [=](auto num, auto step) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < num; ++c) planes[c * plane + i] = pixels[i * step + c];
  });
}

template <class T>
void merge(int64_t count, int64_t channels, const T* __restrict planes, int64_t plane, T* __restrict pixels,
           int64_t step) {
  with_channels(channels, step, [=](auto num, auto step) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < num; ++c) pixels[i * step + c] = planes[c * plane + i];
  });
}

// OC channels of NV vectors.
template <class T, int OC, int NV>
inline __attribute__((always_inline)) void tile(int64_t num_taps, const int64_t* taps, const T* weights,
                                                int64_t channels, const T* in, T* out, int64_t plane) {
  using V = typename Vector<T, kLanes<T>>::type;
  V sum[OC][NV] = {};
  for (int64_t k = 0; k < num_taps; ++k) {
    const T* const from = in + taps[k];
    V row[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) row[v] = *reinterpret_cast<const V*>(from + v * kLanes<T>);
#pragma GCC unroll 16
    for (int o = 0; o < OC; ++o) {
      const T weight = weights[k * channels + o];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) sum[o][v] += weight * row[v];
    }
  }
#pragma GCC unroll 16
  for (int o = 0; o < OC; ++o)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(out + o * plane + v * kLanes<T>) = sum[o][v];
}

// All vectors of OC channels: NV at a time, then half as many, and so on.
template <class T, int OC, int NV>
inline void along(int64_t num_taps, const int64_t* taps, const T* weights, int64_t channels, const T* in,
                  int64_t vectors, T* out, int64_t plane) {
  for (; vectors >= NV; vectors -= NV, in += NV * kLanes<T>, out += NV * kLanes<T>)
    tile<T, OC, NV>(num_taps, taps, weights, channels, in, out, plane);
  if constexpr (NV > 1)
    if (vectors) along<T, OC, NV / 2>(num_taps, taps, weights, channels, in, vectors, out, plane);
}

// All channels: OC at a time, then half as many, and so on.
template <class T, int OC>
void correlate_channels(int64_t num_taps, const int64_t* taps, const T* weights, int64_t channels,
                        int64_t left, const T* in, int64_t vectors, T* out, int64_t plane) {
  for (; left >= OC; left -= OC, weights += OC, out += OC * plane)
    along<T, OC, kSums / OC>(num_taps, taps, weights, channels, in, vectors, out, plane);
  if constexpr (OC > 1)
    if (left) correlate_channels<T, OC / 2>(num_taps, taps, weights, channels, left, in, vectors, out, plane);
}

template <class T>
void correlate(int64_t num_taps, const int64_t* taps, const T* weights, int64_t channels, const T* in,
               int64_t length, T* out, int64_t plane) {
  const int64_t vectors = (length + kLanes<T> - 1) / kLanes<T>;
  correlate_channels<T, kMostChannels>(num_taps, taps, weights, channels, channels, in, vectors, out, plane);
}

// The images whose planes are multiplied with each other.
template <class T>
struct Pairs {
  int64_t num_images;
  const T* in;
  int64_t in_image, vectors;
  const T* grad;
  int64_t plane, grad_image;
};

// NT taps with OC channels.
template <class T, int OC, int NT>
inline void sum_tile(const Pairs<T>& pairs, const int64_t* taps, int64_t channels, const T* grads, T* sums) {
  using V = typename Vector<T, kLanes<T>>::type;
  V sum[NT][OC] = {};
  const T *in = pairs.in, *grad = grads;
  for (int64_t image = 0; image < pairs.num_images; ++image) {
    for (int64_t i = 0; i < pairs.vectors * kLanes<T>; i += kLanes<T>) {
      V row[OC];
#pragma GCC unroll 16
      for (int o = 0; o < OC; ++o) row[o] = *reinterpret_cast<const V*>(grad + o * pairs.plane + i);
#pragma GCC unroll 16
      for (int k = 0; k < NT; ++k) {
        const V from = *reinterpret_cast<const V*>(in + taps[k] + i);
#pragma GCC unroll 16
        for (int o = 0; o < OC; ++o) sum[k][o] += from * row[o];
      }
    }
    in += pairs.in_image;
    grad += pairs.grad_image;
  }
  for (int k = 0; k < NT; ++k)
    for (int o = 0; o < OC; ++o) {
      T lanes[kLanes<T>];
      __builtin_memcpy(lanes, &sum[k][o], sizeof(V));
#pragma GCC unroll 4
      for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      sums[k * channels + o] += lanes[0];
    }
}

template <class T, int OC, int NT>
inline void sum_taps(const Pairs<T>& pairs, int64_t num_taps, const int64_t* taps, int64_t channels,
                     const T* grad, T* sums) {
  for (; num_taps >= NT; num_taps -= NT, taps += NT, sums += NT * channels)
    sum_tile<T, OC, NT>(pairs, taps, channels, grad, sums);
  if constexpr (NT > 1)
    if (num_taps) sum_taps<T, OC, NT / 2>(pairs, num_taps, taps, channels, grad, sums);
}

template <class T, int OC>
void sum_channels(const Pairs<T>& pairs, int64_t num_taps, const int64_t* taps, int64_t channels,
                  int64_t left, const T* grad, T* sums) {
  for (; left >= OC; left -= OC, grad += OC * pairs.plane, sums += OC)
    sum_taps<T, OC, kSums / OC>(pairs, num_taps, taps, channels, grad, sums);
  if constexpr (OC > 1)
    if (left) sum_channels<T, OC / 2>(pairs, num_taps, taps, channels, left, grad, sums);
}

template <class T>
void sums(int64_t num_taps, const int64_t* taps, int64_t channels, int64_t num_images, const T* in,
          int64_t in_image, int64_t length, const T* grad, int64_t plane, int64_t grad_image, T* sums) {
  const Pairs<T> pairs{num_images, in,    in_image,  (length + kLanes<T> - 1) / kLanes<T>,
                       grad,       plane, grad_image};
  sum_channels<T, 4>(pairs, num_taps, taps, channels, channels, grad, sums);
}

}  // namespace

extern const CorrelateTables correlate_tables;
const CorrelateTables correlate_tables = {
    {split<float>, merge<float>, correlate<float>, sums<float>},
    {split<double>, merge<double>, correlate<double>, sums<double>},
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
