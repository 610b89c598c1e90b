// Small matrix products of one warp on tensor cores.
//
// A tile is 16 rows times 8 columns, summed over 8 terms at a time. Of lane 4 g + q the tile holds the
// sums (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1); its factors are a = (g, q), (g + 8, q),
// (g, q + 4), (g + 8, q + 4) and b = (q, g), (q + 4, g). Which of the 8 terms is called q does not
// matter as long as both factors agree.
#pragma once

#include <cstdint>

namespace ttgraph::cuda {

// A float as the sum of two that tensor cores take: 11 bits, rounded, and the next 11. (Two integer
// operations round faster than the conversion does. What is not finite becomes NaN in the second part.)
struct Split {
  uint32_t high, low;
  __device__ explicit Split(float value) {
    high = (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
    low = __float_as_uint(value - __uint_as_float(high));
  }
};

__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply_add(double& c0, double& c1, double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
}

// Adds the products of M times N pairs of factors. Three products of halves make a float's 22 bits;
// the fourth, of the two low ones, is below what a float holds.
template <int M, int N>
__device__ inline void multiply_add(float (&c)[M][N][4], const float (&a)[M][4], const float (&b)[N][2]) {
  uint32_t high[M][4], low[M][4];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Split split(a[m][i]);
      high[m][i] = split.high, low[m][i] = split.low;
    }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const Split s0(b[n][0]), s1(b[n][1]);
    const uint32_t b_high[2] = {s0.high, s1.high}, b_low[2] = {s0.low, s1.low};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      multiply_add(c[m][n], low[m], b_high);
      multiply_add(c[m][n], high[m], b_low);
      multiply_add(c[m][n], high[m], b_high);
    }
  }
}

template <int M, int N>
__device__ inline void multiply_add(double (&c)[M][N][4], const double (&a)[M][4], const double (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n) {
      multiply_add(c[m][n][0], c[m][n][1], a[m][0], b[n][0]);
      multiply_add(c[m][n][0], c[m][n][1], a[m][2], b[n][1]);
      multiply_add(c[m][n][2], c[m][n][3], a[m][1], b[n][0]);
      multiply_add(c[m][n][2], c[m][n][3], a[m][3], b[n][1]);
    }
}

// c += a b over the terms k < terms: a(m, k, factors) and b(n, k, factors) load eight terms from k on.
template <class T, int M, int N, class A, class B>
__device__ inline void multiply(T (&c)[M][N][4], int terms, A a, B b) {
#pragma unroll 2
  for (int k = 0; k < terms; k += 8) {
    T fa[M][4], fb[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n) b(n, k, fb[n]);
#pragma unroll
    for (int m = 0; m < M; ++m) a(m, k, fa[m]);
    multiply_add(c, fa, fb);
  }
}

}  // namespace ttgraph::cuda
