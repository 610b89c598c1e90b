// The arithmetic of convolutions with few channels on the CPU: correlations of planes, on raw pointers.
//
// A plane holds one channel, row after row, so that vectors go along the pixels however few channels there
// are. A tap is one entry of a kernel: where in the planes it starts to read, relative to the first result.
// correlate.cpp is compiled once per instruction set, as gemm.cpp is.
#pragma once

#include <cstdint>

namespace ttgraph {

// Numbers at the end of a plane that may be read and written beyond what is asked for.
constexpr int64_t kPlaneSlack = 16;

template <class T>
struct Correlate {
  // planes[c * plane + i] = pixels[i * step + c] for i < count and c < channels.
  void (*split)(int64_t count, int64_t channels, const T* pixels, int64_t step, T* planes, int64_t plane);
  // The way back.
  void (*merge)(int64_t count, int64_t channels, const T* planes, int64_t plane, T* pixels, int64_t step);
  // out[o * plane + i] = sum over k of weights[k * channels + o] * in[taps[k] + i], for i < length, o <
  // channels.
  void (*correlate)(int64_t num_taps, const int64_t* taps, const T* weights, int64_t channels, const T* in,
                    int64_t length, T* out, int64_t plane);
  // sums[k * channels + o] += sum over images and i < length of grad[o * plane + i] * in[taps[k] + i]; grad
  // is 0 from there to the end of the last vector. One image after another lies in_image and grad_image
  // further on.
  void (*sums)(int64_t num_taps, const int64_t* taps, int64_t channels, int64_t num_images, const T* in,
               int64_t in_image, int64_t length, const T* grad, int64_t plane, int64_t grad_image, T* sums);
};

template <class T>
const Correlate<T>& correlate();

// What one instruction set provides.
struct CorrelateTables {
  Correlate<float> float32;
  Correlate<double> float64;
};

}  // namespace ttgraph
