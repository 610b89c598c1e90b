// Chooses the instruction set, once, when first asked.
#ifdef TTGRAPH_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string_view>

#include "cpu/correlate.h"
#include "cpu/gemm.h"
#include "cpu/messages.h"

namespace ttgraph {

namespace portable {
extern const ArithmeticTables arithmetic_tables;
extern const MoveTables move_tables;
extern const MessageTables message_tables;
extern const CorrelateTables correlate_tables;
}  // namespace portable
#ifdef TTGRAPH_X86
namespace avx2 {
extern const ArithmeticTables arithmetic_tables;
extern const MoveTables move_tables;
extern const MessageTables message_tables;
extern const CorrelateTables correlate_tables;
}  // namespace avx2
namespace avx512 {
extern const ArithmeticTables arithmetic_tables;
extern const MoveTables move_tables;
extern const MessageTables message_tables;
extern const CorrelateTables correlate_tables;
}  // namespace avx512
#endif

struct Tables {
  const ArithmeticTables& arithmetic;
  const MoveTables& moves;
  const MessageTables& messages;
  const CorrelateTables& correlate;
};

#ifdef TTGRAPH_X86
// By hand: Clang before 18 and GCC before 11 do not know __builtin_cpu_supports("f16c").
static bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

static Tables best_tables() {
#ifdef TTGRAPH_X86
  // TTGRAPH_ISA=avx2 or portable asks for less than the machine has: to test, or to reproduce another.
  const char* const asked = std::getenv("TTGRAPH_ISA");
  const std::string_view most = asked ? asked : "avx512";
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (has_avx2 && has_avx512 && most == "avx512")
    return {avx512::arithmetic_tables, avx512::move_tables, avx512::message_tables, avx512::correlate_tables};
  if (has_avx2 && most != "portable")
    return {avx2::arithmetic_tables, avx2::move_tables, avx2::message_tables, avx2::correlate_tables};
#endif
  return {portable::arithmetic_tables, portable::move_tables, portable::message_tables,
          portable::correlate_tables};
}

static const Tables& tables() {
  static const Tables best = best_tables();
  return best;
}

template <>
const Arithmetic<float>& arithmetic() {
  return tables().arithmetic.float32;
}
template <>
const Arithmetic<double>& arithmetic() {
  return tables().arithmetic.float64;
}
template <>
const Moves<float, float>& moves() {
  return tables().moves.float32;
}
template <>
const Moves<double, double>& moves() {
  return tables().moves.float64;
}
template <>
const Moves<float, BFloat16>& moves() {
  return tables().moves.bfloat16;
}
template <>
const Moves<float, Float16>& moves() {
  return tables().moves.float16;
}
template <>
const Messages<float>& messages() {
  return tables().messages.float32;
}
template <>
const Messages<double>& messages() {
  return tables().messages.float64;
}
template <>
const Correlate<float>& correlate() {
  return tables().correlate.float32;
}
template <>
const Correlate<double>& correlate() {
  return tables().correlate.float64;
}

}  // namespace ttgraph
