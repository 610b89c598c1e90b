// Edges of simple undirected graphs as 64-bit keys.
#pragma once

#include <cstdint>

#include "checks.h"

namespace ttgraph {

constexpr uint64_t kNoEdge = 0;                   // the self loop of node 0, which no simple graph has
constexpr int64_t kMostNodes = int64_t{1} << 31;  // their pairs are counted in an int64

inline uint64_t edge_key(uint64_t u, uint64_t v) { return u < v ? u << 32 | v : v << 32 | u; }

// Every edge in both directions, sorted: (2, 2 * num_edges). Keys that are kNoEdge are skipped, and the
// others, num_edges of them, must differ.
Tensor both_directions_of(const char* op, const uint64_t* keys, int64_t num_keys, int64_t num_edges,
                          int64_t num_nodes);

}  // namespace ttgraph
