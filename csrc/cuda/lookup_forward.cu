// Rows of the table, by id or all of them: prefix products in shared memory times slices of the last core.
#include "cuda/levels.cuh"
#include "cuda/plan.cuh"

namespace ttgraph {
namespace cuda {

template <class S>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Table table,
                                                           const __grid_constant__ Ids ids, S* out) {
  using T = typename SumOf<S>::type;
  extern __shared__ __align__(16) char shared_bytes[];
  T* const shared = reinterpret_cast<T*>(shared_bytes);
  __shared__ Tile tile;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int last = table.last, rank = table.ranks[last], width = table.cols[last];
  const int height = table.height[last - 1], stride = table.stride[last - 1];
  const T* const product = shared + table.level[last - 1];
  const S* const core = static_cast<const S*>(table.cores[last]);
  const int64_t slice = table.slice[last];
  constexpr int N = 4;
  for (int i = threadIdx.x; i < table.level_size; i += kThreads) shared[i] = 0;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * ids.tile;
  load_tile(table, ids, begin, tile);
  for (int group = 0; group < tile.num_prefixes; group += table.group) {
    const int count = min(table.group, tile.num_prefixes - group);
    load_digits(table, ids, begin, tile, group, count);
    fill_levels<S>(table, tile, count, shared);
    Dealer dealer;
    for (int p = 0; p < count; ++p) {
      const int first = tile.start[group + p];
      const int columns = (tile.start[group + p + 1] - first) * width;
      const int strips = (columns + 8 * N - 1) / (8 * N);
      dealer.deal((height + 15) / 16 * strips, [&](int job) {
        const int m0 = job / strips * 16, c0 = job % strips * 8 * N;
        const T* const a0 = product + (p * height + min(m0 + g, height - 1)) * stride + q;
        const T* const a1 = product + (p * height + min(m0 + g + 8, height - 1)) * stride + q;
        const S* from[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const int column = min(c0 + 8 * n + g, columns - 1), e = column / width;
          from[n] = core + tile.suffix[first + e] * slice + (column - e * width) + q * width;
        }
        T c[1][N][4] = {};
        multiply(
            c, rank,
            [&](int, int t, T(&a)[4]) {
              a[0] = a0[t], a[1] = a1[t], a[2] = a0[t + 4], a[3] = a1[t + 4];
            },
            [&](int n, int t, T(&b)[2]) {
              b[0] = t + q < rank ? load(from[n] + t * width) : T(0);
              b[1] = t + q + 4 < rank ? load(from[n] + (t + 4) * width) : T(0);
            });
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const int column = c0 + 8 * n + 2 * q, e = column / width, j = column - e * width;
          if (column >= columns) continue;
          const int target = tile.row[first + e];
          if (width % 2 == 0) {
            if (target < 0) continue;
            S* const to = out + target * table.dim + j;
            if (m0 + g < height) store_pair(to + static_cast<int64_t>(m0 + g) * width, c[0][n][0], c[0][n][1]);
            if (m0 + g + 8 < height)
              store_pair(to + static_cast<int64_t>(m0 + g + 8) * width, c[0][n][2], c[0][n][3]);
            continue;
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = m0 + g + i / 2 * 8, one = column + i % 2, e1 = one / width;
            if (row < height && one < columns && tile.row[first + e1] >= 0)
              store(out + tile.row[first + e1] * table.dim + row * width + one - e1 * width, c[0][n][i]);
          }
        }
      });
    }
    __syncthreads();
  }
}

static Tensor forward(const char* op, const TTShape& shape, const std::vector<Tensor>& cores, const Plan& plan,
                      int64_t num_rows) {
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
