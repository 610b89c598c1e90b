// Loops over the columns of a block, for the sources that are compiled once per instruction set.
#pragma once

#include <cstdint>

namespace ttgraph {
namespace TTGRAPH_ISA {

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

}  // namespace TTGRAPH_ISA
}  // namespace ttgraph
