// The arithmetic of the CPU kernels: small matrix products and block moves, on raw pointers.
//
// gemm.cpp and moves.cpp are compiled once per instruction set; arithmetic<T>() and moves<T, Row>() are
// the tables of the best one that this machine runs. Everything above these tables is portable code
// that only arranges the work.
#pragma once

#include <cstdint>

namespace ttgraph {

// Narrow numbers as stored; their sums are kept in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// T: what sums are kept in. Row: what the rows of the table are stored in.
template <class T>
struct Arithmetic {
  // c (m, n) = a (m, k) b (k, n), or += where accumulate. Entry (i, l) of a is a[i * a_row + l * a_col],
  // so a transposed factor costs nothing; b and c are row-major with the given leading dimensions.
  void (*gemm)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col, const T* b,
               int64_t b_row, T* c, int64_t c_row, bool accumulate);
  // blocks[e] (height, width), e < count  +=  columns e * width .. of c (height, count * width).
  void (*add_blocks)(T* const* blocks, int64_t count, int64_t height, int64_t width, const T* c,
                     int64_t c_row);
  // Columns e * width .. of c (height, count * width)  *=  factors[e].
  void (*scale_blocks)(const T* factors, int64_t count, int64_t height, int64_t width, T* c, int64_t c_row);
  // largest (height, width) takes over what is larger in row, or as large and of an earlier position than
  // its winner, or NaN: the outcome does not depend on the order of the rows. Winners start as -1.
  void (*take_larger)(int64_t position, const T* row, int64_t row_stride, int64_t height, int64_t width,
                      T* largest, int64_t* winners);
};

template <class T, class Row>
struct Moves {
  // Columns e * width .. of c (height, count * width)  =  blocks[e] (height, width).
  void (*gather)(const Row* const* blocks, int64_t count, int64_t height, int64_t width, T* c, int64_t c_row);
  // The way back, rounded once where Row is narrower; past the caches where `stream` says that the
  // blocks are too many to stay there.
  void (*scatter)(Row* const* blocks, int64_t count, int64_t height, int64_t width, const T* c, int64_t c_row,
                  bool stream);
};

template <class T>
const Arithmetic<T>& arithmetic();

template <class T, class Row>
const Moves<T, Row>& moves();

// What one instruction set provides: gemm.cpp the one, moves.cpp the other.
struct ArithmeticTables {
  Arithmetic<float> float32;
  Arithmetic<double> float64;
};
struct MoveTables {
  Moves<float, float> float32;
  Moves<double, double> float64;
  Moves<float, BFloat16> bfloat16;
  Moves<float, Float16> float16;
};

}  // namespace ttgraph
