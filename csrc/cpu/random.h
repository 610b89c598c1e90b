// Random numbers by their number, so that any thread can make any of them. The functions are static: a source
// that is compiled once per instruction set has them, too, and the others must not be given what it made.
#pragma once

#include <cstdint>

namespace ttgraph {

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;

static inline uint64_t mix(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

// Bits number 0, 1, 2, .. of a stream.
static inline uint64_t random_bits(uint64_t stream, uint64_t number) {
  return mix(stream + (number + 1) * kGamma);
}

// From 64 random bits to a number below `limit`.
static inline int64_t below(int64_t limit, uint64_t bits) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(limit) >> 64);
}

}  // namespace ttgraph
