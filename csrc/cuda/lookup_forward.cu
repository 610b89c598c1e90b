// Rows of the table, by id or all of them: prefix products in shared memory times slices of the last core.
#include "cuda/levels.cuh"
#include "cuda/plan.cuh"

namespace ttgraph {
namespace cuda {

// The rows of the ids from `first` on, which share the product: 16 of its rows by 32 columns, the
// columns of all these ids side by side. Where four columns at a time lie together, they are read and
// written so: the four tiles then hold every fourth column, and column 2 q + i of a tile is that of the
// four columns number 4 i + q, so that neighbouring lanes write neighbouring fours.
template <bool Fours, class S, class T>
__device__ inline void make_rows(const Table& table, const Tile& tile, const T* product, int first,
                                 int columns, int m0, int c0, S* out) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int last = table.last, rank = table.ranks[last], width = table.cols[last];
  const int height = table.height[last - 1], stride = table.stride[last - 1];
  const S* const core = static_cast<const S*>(table.cores[last]);
  const int slice = static_cast<int>(table.slice[last]);
  const T* const a0 = product + min(m0 + g, height - 1) * stride + q;
  const T* const a1 = product + min(m0 + g + 8, height - 1) * stride + q;
  const auto load_a = [&](int, int t, T(&a)[4]) {
    a[0] = a0[t], a[1] = a1[t], a[2] = a0[t + 4], a[3] = a1[t + 4];
  };
  constexpr int N = 4;
  T c[1][N][4] = {};
  if constexpr (Fours) {
    const int column = min(c0 + g % 2 * 16 + g / 2 * 4, columns - 4), e = table.entry_of(column);
    const S* const from =
        core + static_cast<int64_t>(tile.suffix[first + e]) * slice + column - e * width + q * width;
#pragma unroll 2
    for (int t = 0; t < rank; t += 8) {
      Four<T> upper{}, lower{};
      if (t + q < rank) upper = load_four(from + t * width);
      if (t + q + 4 < rank) lower = load_four(from + (t + 4) * width);
      T a[1][4], b[N][2];
      load_a(0, t, a[0]);
#pragma unroll
      for (int n = 0; n < N; ++n) b[n][0] = upper.v[n], b[n][1] = lower.v[n];
      multiply_add(c, a, b);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int target = c0 + 16 * i + 4 * q, e1 = table.entry_of(target);
      if (target >= columns || tile.row[first + e1] < 0) continue;
      S* const to = out + tile.row[first + e1] * table.dim + (m0 + g) * width + target - e1 * width;
      if (m0 + g < height) store_four(to, c[0][0][i], c[0][1][i], c[0][2][i], c[0][3][i]);
      if (m0 + g + 8 < height)
        store_four(to + 8 * width, c[0][0][i + 2], c[0][1][i + 2], c[0][2][i + 2], c[0][3][i + 2]);
    }
  } else {
    const S* from[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = min(c0 + 8 * n + g, columns - 1), e = table.entry_of(column);
      from[n] = core + static_cast<int64_t>(tile.suffix[first + e]) * slice + column - e * width + q * width;
    }
    multiply(c, rank, load_a, [&](int n, int t, T(&b)[2]) {
      b[0] = t + q < rank ? load(from[n] + t * width) : T(0);
      b[1] = t + q + 4 < rank ? load(from[n] + (t + 4) * width) : T(0);
    });
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = m0 + g + i / 2 * 8, column = c0 + 8 * n + 2 * q + i % 2, e = table.entry_of(column);
        if (row < height && column < columns && tile.row[first + e] >= 0)
          store(out + tile.row[first + e] * table.dim + row * width + column - e * width, c[0][n][i]);
      }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, sizeof(typename SumOf<S>::type) == 4 ? 3 : 2)
    forward_kernel(const __grid_constant__ Table table, const __grid_constant__ Ids ids, S* out) {
  using T = typename SumOf<S>::type;
  extern __shared__ __align__(16) char shared_bytes[];
  T* const levels = reinterpret_cast<T*>(shared_bytes);
  __shared__ Tile tile;
  const int width = table.cols[table.last], height = table.height[table.last - 1];
  const T* const products = levels + table.level[table.last - 1];
  const int product_size = height * table.stride[table.last - 1];
  for (int i = threadIdx.x; i < table.level_size; i += kThreads) levels[i] = 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * ids.tile;
  load_tile(table, ids, begin, tile);
  for (int group = 0; group < tile.num_prefixes; group += table.group) {
    const int count = min(table.group, tile.num_prefixes - group);
    load_digits(table, ids, begin, tile, group, count);
    fill_levels<S>(table, tile, count, levels);
    Dealer dealer;
    for (int p = 0; p < count; ++p) {
      const int first = tile.start[group + p], columns = (tile.start[group + p + 1] - first) * width;
      const int strips = (columns + 31) / 32;
      dealer.deal((height + 15) / 16 * strips, [&](int job) {
        const int m = job / strips, m0 = m * 16, c0 = (job - m * strips) * 32;
        if (width % 4 == 0)
          make_rows<true>(table, tile, products + p * product_size, first, columns, m0, c0, out);
        else
          make_rows<false>(table, tile, products + p * product_size, first, columns, m0, c0, out);
      });
    }
    __syncthreads();
  }
}

static Tensor forward(const char* op, const TTShape& shape, const std::vector<Tensor>& cores,
                      const Plan& plan, int64_t num_rows) {
  Tensor out = torch::stable::new_empty(cores[0], {num_rows, shape.embedding_dim});
  if (num_rows == 0) return out;
  with_storage(op, cores[0].scalar_type(), [&](auto number) {
    using S = decltype(number);
    const size_t bytes = plan.table.level_size * sizeof(typename SumOf<S>::type);
    check(cudaFuncSetAttribute(forward_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
    forward_kernel<S><<<plan.blocks, kThreads, bytes, plan.stream>>>(plan.table, plan.ids,
                                                                     static_cast<S*>(out.mutable_data_ptr()));
    check(cudaGetLastError());
  });
  return out;
}

}  // namespace cuda

Tensor tt_lookup_cuda(std::vector<Tensor> cores, Tensor ids,
                      int64_t num_embeddings) {  // -> (num_ids, embedding_dim)
  constexpr const char* op = "tt_lookup";
  const TTShape shape = check_cores(op, cores);
  check_num_embeddings(op, shape, num_embeddings);
  check_ids(op, ids, cores[0]);
  const cuda::Plan plan(op, shape, cores, ids, num_embeddings, 1);
  return cuda::forward(op, shape, cores, plan, ids.numel());
}

Tensor tt_materialize_cuda(std::vector<Tensor> cores,
                           int64_t num_embeddings) {  // -> (num_embeddings, embedding_dim)
  constexpr const char* op = "tt_materialize";
  const TTShape shape = check_cores(op, cores);
  check_num_embeddings(op, shape, num_embeddings);
  const cuda::Plan plan(op, shape, cores, num_embeddings, 1);
  return cuda::forward(op, shape, cores, plan, num_embeddings);
}

}  // namespace ttgraph
