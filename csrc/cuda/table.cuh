// The table as the CUDA kernels see it, and the ids grouped by prefix.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "checks.h"
#include "prefix_order.h"

namespace ttgraph::cuda {

constexpr int kMaxDepth = 8;
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxTile = 1024;  // ids a block works on; their positions take 10 bits
constexpr int kMaxGroup = 16;   // prefixes whose products are in shared memory at a time

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(message("CUDA: ", cudaGetErrorString(error)));
}

// What a table stored in S is summed in.
template <class S>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

__device__ inline float load(const float* p) { return __ldg(p); }
__device__ inline double load(const double* p) { return __ldg(p); }
__device__ inline float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ inline float load(const __half* p) { return __half2float(*p); }
__device__ inline void store(float* p, float v) { *p = v; }
__device__ inline void store(double* p, double v) { *p = v; }
__device__ inline void store(__nv_bfloat16* p, float v) { *p = __float2bfloat16(v); }
__device__ inline void store(__half* p, float v) { *p = __float2half(v); }

template <class T>
struct Four {
  T v[4];
};
__device__ inline Four<float> load_four(const float* p) {
  const float4 f = __ldg(reinterpret_cast<const float4*>(p));
  return {f.x, f.y, f.z, f.w};
}
__device__ inline Four<double> load_four(const double* p) {
  const double2 a = __ldg(reinterpret_cast<const double2*>(p)),
                b = __ldg(reinterpret_cast<const double2*>(p) + 1);
  return {a.x, a.y, b.x, b.y};
}
__device__ inline Four<float> load_four(const __nv_bfloat16* p) {
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(p));
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}
__device__ inline Four<float> load_four(const __half* p) {
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(p));
  const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
  const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
  return {a.x, a.y, b.x, b.y};
}
__device__ inline void store_four(float* p, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(p) = {a, b, c, d};
}
__device__ inline void store_four(double* p, double a, double b, double c, double d) {
  *reinterpret_cast<double2*>(p) = {a, b};
  *(reinterpret_cast<double2*>(p) + 1) = {c, d};
}
__device__ inline void store_four(__nv_bfloat16* p, float a, float b, float c, float d) {
  const __nv_bfloat162 x = __floats2bfloat162_rn(a, b), y = __floats2bfloat162_rn(c, d);
  *reinterpret_cast<uint2*>(p) = {reinterpret_cast<const unsigned&>(x), reinterpret_cast<const unsigned&>(y)};
}
__device__ inline void store_four(__half* p, float a, float b, float c, float d) {
  const __half2 x = __floats2half2_rn(a, b), y = __floats2half2_rn(c, d);
  *reinterpret_cast<uint2*>(p) = {reinterpret_cast<const unsigned&>(x), reinterpret_cast<const unsigned&>(y)};
}
__device__ inline float2 load_pair(const float* p) { return __ldg(reinterpret_cast<const float2*>(p)); }
__device__ inline double2 load_pair(const double* p) { return __ldg(reinterpret_cast<const double2*>(p)); }
__device__ inline float2 load_pair(const __nv_bfloat16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}
__device__ inline float2 load_pair(const __half* p) {
  return __half22float2(*reinterpret_cast<const __half2*>(p));
}

// Divides small numbers by one that is most often a power of two: a division takes as long as a product
// of matrices does.
struct Divisor {
  int value, bits;
  __device__ int divide(int number) const { return bits >= 0 ? number >> bits : number / value; }
};

// Levels k = 0 .. last - 1 are the products of the first k + 1 cores. In shared memory level k of a
// group of prefixes is a matrix of group * height[k] rows, one prefix after another, ranks[k + 1]
// columns, and a distance of stride[k] from row to row; the columns up to the next multiple of 8 are 0.
struct Table {
  int last;   // of the cores
  int group;  // prefixes at a time
  int rows[kMaxDepth], cols[kMaxDepth], ranks[kMaxDepth + 1];
  int height[kMaxDepth], stride[kMaxDepth];
  int level[kMaxDepth];      // where in shared memory the level begins
  int level_size;            // of all levels
  int64_t slice[kMaxDepth];  // numbers of one slice of core k
  const void* cores[kMaxDepth];
  int64_t num_embeddings, dim;
  PrefixOrder order;
  Divisor width;  // columns of the last core
  Divisor rank[kMaxDepth + 1];

  // Which of the ids that lie side by side a column belongs to.
  __device__ int entry_of(int column) const { return width.divide(column); }
};

// The ids, sorted by the place of their prefix; or, without keys, every row of the table, one value of
// the major digit after another.
struct Ids {
  const uint64_t* keys;  // place << suffix_bits | suffix
  const int32_t* positions;
  int suffix_bits;
  int64_t size;
  int64_t rest;  // prefixes of a value of the major digit
  int tile;      // ids that one block takes
};

// A tile of the ids, in shared memory.
struct Tile {
  int count;         // ids
  int num_prefixes;  // distinct ones
  int suffix[kMaxTile];
  int row[kMaxTile];                 // of the output; -1 where there is none
  int16_t prefix[kMaxTile];          // of every id, counted from the first of the tile
  int16_t start[kMaxTile + 1];       // first id of every prefix
  int digits[kMaxGroup][kMaxDepth];  // of the prefixes at hand
  int warp_counts[kWarps];
};

__device__ inline int64_t place_at(const Table& table, const Ids& ids, int64_t i) {
  return ids.keys ? static_cast<int64_t>(ids.keys[i] >> ids.suffix_bits) : i / table.rows[table.last];
}

__device__ inline int64_t prefix_at(const Table& table, const Ids& ids, int64_t i) {
  const int64_t place = place_at(table, ids, i);
  if (ids.keys) return table.order.prefix(place);
  const int64_t digit = place / ids.rest;
  return table.order.prefix(digit, place - digit * ids.rest);
}

__device__ inline void load_tile(const Table& table, const Ids& ids, int64_t begin, Tile& tile) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int suffixes = table.rows[table.last];
  const int count = static_cast<int>(min(static_cast<int64_t>(ids.tile), ids.size - begin));
  int found = 0;
  for (int base = 0; base < count; base += kThreads) {
    const int e = base + threadIdx.x;
    bool first = false;
    if (e < count) {
      const int64_t i = begin + e, place = place_at(table, ids, i);
      if (ids.keys) {
        tile.suffix[e] = static_cast<int>(ids.keys[i] & ((uint64_t{1} << ids.suffix_bits) - 1));
        tile.row[e] = ids.positions[i];
      } else {
        const int suffix = static_cast<int>(i - place * suffixes);
        const int64_t row = prefix_at(table, ids, i) * suffixes + suffix;
        tile.suffix[e] = suffix;
        tile.row[e] = row < table.num_embeddings ? static_cast<int>(row) : -1;
      }
      first = e == 0 || place != place_at(table, ids, i - 1);
    }
    const unsigned votes = __ballot_sync(~0u, first);
    if (lane == 0) tile.warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = found;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += tile.warp_counts[w];
      found += tile.warp_counts[w];
    }
    const int prefix = before + __popc(votes & ((2u << lane) - 1)) - 1;
    if (first) tile.start[prefix] = static_cast<int16_t>(e);
    if (e < count) tile.prefix[e] = static_cast<int16_t>(prefix);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    tile.count = count;
    tile.num_prefixes = found;
    tile.start[found] = static_cast<int16_t>(count);
  }
  __syncthreads();
}

// Digits of the prefixes first .. first + count of the tile.
__device__ inline void load_digits(const Table& table, const Ids& ids, int64_t begin, Tile& tile, int first,
                                   int count) {
  if (threadIdx.x < count) {
    int64_t prefix = prefix_at(table, ids, begin + tile.start[first + threadIdx.x]);
    for (int k = table.last; k-- > 0;) {
      const int64_t above = prefix / table.rows[k];
      tile.digits[threadIdx.x][k] = static_cast<int>(prefix - above * table.rows[k]);
      prefix = above;
    }
  }
  __syncthreads();
}

// Calls body(begin, end) for each run of prefixes below count that have the same digit k.
template <class Body>
__device__ inline void each_run(const Tile& tile, int k, int count, Body body) {
  for (int begin = 0, end; begin < count; begin = end) {
    const int digit = tile.digits[begin][k];
    for (end = begin + 1; end < count && tile.digits[end][k] == digit; ++end) {
    }
    body(begin, end, digit);
  }
}

// Deals jobs out to the warps in turn; one dealer serves several loops, so that no warp gets every rest.
class Dealer {
 public:
  template <class Body>
  __device__ void deal(int jobs, Body body) {
    for (int job = (static_cast<int>(threadIdx.x) / 32 - dealt_) & (kWarps - 1); job < jobs; job += kWarps)
      body(job);
    dealt_ += jobs;
  }

 private:
  int dealt_ = 0;
};

}  // namespace ttgraph::cuda
