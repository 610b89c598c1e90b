// Chooses the instruction set, once, when first asked.
#include <cstdlib>
#include <string_view>

#include "cpu/gemm.h"

namespace ttgraph {

namespace portable {
extern const ArithmeticTables tables;
}
#ifdef TTGRAPH_X86
namespace avx2 {
extern const ArithmeticTables tables;
}
namespace avx512 {
extern const ArithmeticTables tables;
}
#endif

static const ArithmeticTables& best_tables() {
#ifdef TTGRAPH_X86
  // TTGRAPH_ISA=avx2 or portable asks for less than the machine has: to test, or to reproduce another.
  const char* const asked = std::getenv("TTGRAPH_ISA");
  const std::string_view most = asked ? asked : "avx512";
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && has_avx512 && most == "avx512") return avx512::tables;
  if (has_avx2 && most != "portable") return avx2::tables;
#endif
  return portable::tables;
}

static const ArithmeticTables& tables() {
  static const ArithmeticTables& best = best_tables();
  return best;
}

template <>
const Arithmetic<float>& arithmetic() {
  return tables().float32;
}
template <>
const Arithmetic<double>& arithmetic() {
  return tables().float64;
}
template <>
const Moves<float, float>& moves() {
  return tables().rows_float32;
}
template <>
const Moves<double, double>& moves() {
  return tables().rows_float64;
}
template <>
const Moves<float, BFloat16>& moves() {
  return tables().rows_bfloat16;
}

}  // namespace ttgraph
