// The arithmetic of message passing on the CPU: sums over neighbours, and what follows them, on raw pointers.
//
// messages.cpp is compiled once per instruction set, as gemm.cpp is.
#pragma once

#include <cstdint>

namespace ttgraph {

// Random bits by number: which entries a dropout keeps depends on the seed and their place alone.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // an entry whose 32 bits are below is dropped
  double scale;        // of those that are kept
};

template <class T>
struct Messages {
  // out (columns) = root + sum over e of weights[e] * row neighbours[e] of x, which are `stride` apart;
  // without root where it is null. Asks for the rows that come up next: `ahead` more neighbours can be read.
  void (*weighted_sum)(int64_t count, int64_t ahead, const int64_t* neighbours, const T* weights, const T* x,
                       int64_t columns, int64_t stride, const T* root, T* out);
  // out[e] = row neighbours[e] of x times y, of as many columns. Asks for the rows that come up next, too.
  void (*dots)(int64_t count, int64_t ahead, const int64_t* neighbours, const T* x, const T* y,
               int64_t columns, int64_t stride, T* out);
  // values[i] = exp(values[i]), which is at most 0.
  void (*exponentials)(int64_t count, T* values);
  // out[i] = scale * max(x[i], 0), or 0 where entry i is dropped, for begin <= i < end.
  void (*relu_dropout)(Dropout dropout, const T* x, int64_t begin, int64_t end, T* out);
  // x_grad[i] = scale * grad[i] where out[i] is not 0, else 0.
  void (*relu_dropout_backward)(double scale, const T* grad, const T* out, int64_t size, T* x_grad);
};

template <class T>
const Messages<T>& messages();

// What one instruction set provides.
struct MessageTables {
  Messages<float> float32;
  Messages<double> float64;
};

}  // namespace ttgraph
