// Vector registers, for the sources that are compiled once per instruction set.
#pragma once

namespace ttgraph {
namespace TTGRAPH_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// W numbers at a time, anywhere in memory.
template <class T, int W>
struct Vector {
  typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T>
struct Vector<T, 1> {
  using type = T;
};

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
