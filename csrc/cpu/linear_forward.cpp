// Rows of the table times a dense weight: contract the weight with each prefix product, once, and
// multiply the slices of its suffixes by that.
#include "cpu/linear.h"

namespace ttgraph {

template <class T, class Row>
class LinearForward {
 public:
  LinearForward(const Cores<T>& cores, const LinearShape& linear, const std::vector<T>& weight, Row* out,
                bool stream)
      : cores_(cores),
        linear_(linear),
        weight_(weight),
        out_(out),
        stream_(stream),
        product_(cores),
        contracted_(linear.slice * linear.out),
        slices_(linear.slice * linear.block),
        results_(linear.out * linear.block),
        sources_(linear.block),
        targets_(linear.block) {}

  void enter(int64_t prefix) {
    product_.enter(prefix);
    const int64_t columns = linear_.width * linear_.out;
    arithmetic<T>().gemm(linear_.rank, columns, linear_.height, product_.value(), 1, linear_.rank,
                         weight_.data(), columns, contracted_.data(), columns, false);
  }

  void rows(int64_t count, const int64_t* suffixes, const int64_t* rows) {
    for (int64_t e = 0; e < count; ++e) {
      sources_[e] = cores_.slice(cores_.shape.last(), suffixes[e]);
      targets_[e] = out_ + rows[e] * linear_.out;
    }
    moves<T, T>().gather(sources_.data(), count, 1, linear_.slice, slices_.data(), count * linear_.slice);
    arithmetic<T>().gemm(count, linear_.out, linear_.slice, slices_.data(), linear_.slice, 1,
                         contracted_.data(), linear_.out, results_.data(), linear_.out, false);
    moves<T, Row>().scatter(targets_.data(), count, 1, linear_.out, results_.data(), count * linear_.out,
                            stream_);
  }

  void leave() {}

 private:
  const Cores<T>& cores_;
  const LinearShape& linear_;
  const std::vector<T>& weight_;  // (height, width * out)
  Row* const out_;
  const bool stream_;
  PrefixProduct<T> product_;
  std::vector<T> contracted_;  // (rank, width * out), which is (rank * width, out)
  std::vector<T> slices_, results_;
  std::vector<const T*> sources_;
  std::vector<Row*> targets_;
};

template <class N, class Rows>
static void linear_forward(const TTShape& shape, const std::vector<Tensor>& cores, const Tensor& weight,
                           const Rows& rows, Tensor& out) {
  using T = typename N::T;
  using Row = typename N::Row;
  const LinearShape linear(shape, weight);
  const Cores<T> wide(shape, cores, N::sum_type);
  const std::vector<T> by_height = weight_by_height<T>(linear, weight, N::sum_type, true);
  const int64_t shares = std::min(rows.max_shares(), count_shares(linear.work(rows.num_rows()), 1 << 16));
  const bool stream = rows.num_rows() * linear.out * static_cast<int64_t>(sizeof(Row)) >= kStreamBytes;
  Row* const results = static_cast<Row*>(out.mutable_data_ptr());
  each_share(shares, [&](int64_t share) {
    LinearForward<T, Row> forward(wide, linear, by_height, results, stream);
    rows.share(shares, share, linear.block, forward);
  });
}

Tensor tt_lookup_linear(std::vector<Tensor> cores, Tensor ids, Tensor weight, int64_t num_embeddings,
                        bool reversed) {  // -> (num_ids, out_features)
  constexpr const char* op = "tt_lookup_linear";
  const TTShape shape = check_cores(op, cores);
  check_num_embeddings(op, shape, num_embeddings);
  check_ids(op, ids, cores[0]);
  ids = long_ids(ids);
  weight = check_weight(op, shape, weight, cores);
  Tensor out = empty_rows(cores[0], ids.numel(), weight.size(0));
  const SortedIds sorted = sort_by_prefix(op, shape, static_cast<const int64_t*>(ids.const_data_ptr()),
                                          ids.numel(), num_embeddings, reversed);
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    linear_forward<decltype(numbers)>(shape, cores, weight, IdRows{sorted, ids.numel()}, out);
  });
  return out;
}

Tensor tt_materialize_linear(std::vector<Tensor> cores, Tensor weight, int64_t num_embeddings,
                             bool reversed) {  // -> (num_embeddings, out_features)
  constexpr const char* op = "tt_materialize_linear";
  const TTShape shape = check_cores(op, cores);
  check_num_embeddings(op, shape, num_embeddings);
  weight = check_weight(op, shape, weight, cores);
  Tensor out = empty_rows(cores[0], num_embeddings, weight.size(0));
  with_numbers(op, cores[0].scalar_type(), [&](auto numbers) {
    linear_forward<decltype(numbers)>(shape, cores, weight, TableRows(shape, num_embeddings, reversed), out);
  });
  return out;
}

}  // namespace ttgraph
