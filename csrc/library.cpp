// The table of contents of the kernels: every op of the compiled library.
#include <torch/csrc/stable/library.h>

#include "checks.h"

namespace ttgraph {
Tensor tt_lookup(std::vector<Tensor> cores, Tensor ids, int64_t num_embeddings);
std::vector<Tensor> tt_lookup_backward(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                       bool deterministic);
std::tuple<Tensor, Tensor> tt_embedding_bags(std::vector<Tensor> cores, std::vector<int64_t> depths,
                                             Tensor ids, Tensor offsets, std::vector<int64_t> num_embeddings,
                                             std::string mode, std::optional<Tensor> per_sample_weights,
                                             std::vector<int64_t> padding_idx);
std::vector<Tensor> tt_embedding_bags_backward(Tensor grad, std::vector<Tensor> cores,
                                               std::vector<int64_t> depths, Tensor ids, Tensor offsets,
                                               Tensor winners, std::string mode,
                                               std::optional<Tensor> per_sample_weights,
                                               std::vector<int64_t> padding_idx);
Tensor tt_materialize(std::vector<Tensor> cores, int64_t num_embeddings);
std::vector<Tensor> tt_materialize_backward(Tensor grad, std::vector<Tensor> cores, bool deterministic);
Tensor tt_lookup_linear(std::vector<Tensor> cores, Tensor ids, Tensor weight, int64_t num_embeddings,
                        bool reversed);
std::vector<Tensor> tt_lookup_linear_backward(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                              Tensor weight, bool reversed);
Tensor tt_materialize_linear(std::vector<Tensor> cores, Tensor weight, int64_t num_embeddings, bool reversed);
std::vector<Tensor> tt_materialize_linear_backward(Tensor grad, std::vector<Tensor> cores, Tensor weight,
                                                   bool reversed);
Tensor aggregate(Tensor x, std::vector<Tensor> matrix, std::vector<Tensor> transposed,
                 std::optional<Tensor> root);
std::tuple<Tensor, Tensor> attend(Tensor x, Tensor source_scores, Tensor row_scores,
                                  std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                  std::vector<Tensor> transposed, double slope);
std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor grad, Tensor out, Tensor logsumexp, Tensor x,
                                                   Tensor source_scores, Tensor row_scores,
                                                   std::optional<Tensor> factors, std::vector<Tensor> matrix,
                                                   std::vector<Tensor> transposed, double slope);
std::tuple<Tensor, Tensor, Tensor> transpose(Tensor offsets, Tensor neighbours, int64_t num_sources);
Tensor relu_dropout(Tensor x, double p, int64_t seed);
Tensor relu_dropout_backward(Tensor grad, Tensor out, double p);
Tensor pointwise(Tensor x, Tensor weight, std::optional<Tensor> bias);
std::tuple<Tensor, Tensor, Tensor> pointwise_backward(Tensor grad, Tensor x, Tensor weight, bool with_x,
                                                      bool with_bias);
Tensor narrow_conv(Tensor x, Tensor weight, std::vector<int64_t> stride, std::vector<int64_t> padding,
                   std::vector<int64_t> dilation);
std::tuple<Tensor, Tensor> narrow_conv_backward(Tensor grad, Tensor x, Tensor weight,
                                                std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                std::vector<int64_t> dilation, bool with_x);
std::tuple<Tensor, Tensor> sample_edges(Tensor cumulative, Tensor strata, int64_t seed,
                                        std::optional<Tensor> new_ids, std::optional<Tensor> groups);
Tensor both_directions(Tensor edge_index, int64_t num_nodes);
Tensor preferential_edges(Tensor classes, Tensor compatibility, int64_t num_edges, int64_t num_inside,
                          int64_t seed);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sample_neighbors(Tensor offsets, Tensor neighbours,
                                                                    Tensor seeds,
                                                                    std::vector<int64_t> fanouts,
                                                                    int64_t seed);
Tensor cluster_nodes(Tensor offsets, Tensor neighbours, std::optional<Tensor> weights,
                     std::optional<Tensor> node_weights, std::optional<Tensor> labels, int64_t max_weight,
                     int64_t rounds, int64_t seed);
std::tuple<Tensor, Tensor, Tensor> contract(Tensor offsets, Tensor neighbours, std::optional<Tensor> weights,
                                            Tensor labels, int64_t num_clusters);
}  // namespace ttgraph

STABLE_TORCH_LIBRARY(ttgraph, library) {
  library.def("tt_lookup(Tensor[] cores, Tensor ids, SymInt num_embeddings) -> Tensor");
  library.def("tt_lookup_backward(Tensor grad, Tensor[] cores, Tensor ids, bool deterministic) -> Tensor[]");
  library.def(
      "tt_embedding_bags(Tensor[] cores, SymInt[] depths, Tensor ids, Tensor offsets, "
      "SymInt[] num_embeddings, str mode, Tensor? per_sample_weights, SymInt[] padding_idx) -> (Tensor, "
      "Tensor)");
  library.def(
      "tt_embedding_bags_backward(Tensor grad, Tensor[] cores, SymInt[] depths, Tensor ids, Tensor offsets, "
      "Tensor winners, str mode, Tensor? per_sample_weights, SymInt[] padding_idx) -> Tensor[]");
  library.def("tt_materialize(Tensor[] cores, SymInt num_embeddings) -> Tensor");
  library.def("tt_materialize_backward(Tensor grad, Tensor[] cores, bool deterministic) -> Tensor[]");
  library.def(
      "tt_lookup_linear(Tensor[] cores, Tensor ids, Tensor weight, SymInt num_embeddings, bool reversed) -> "
      "Tensor");
  library.def(
      "tt_lookup_linear_backward(Tensor grad, Tensor[] cores, Tensor ids, Tensor weight, bool reversed) -> "
      "Tensor[]");
  library.def(
      "tt_materialize_linear(Tensor[] cores, Tensor weight, SymInt num_embeddings, bool reversed) -> Tensor");
  library.def(
      "tt_materialize_linear_backward(Tensor grad, Tensor[] cores, Tensor weight, bool reversed) -> "
      "Tensor[]");
  library.def("aggregate(Tensor x, Tensor[] matrix, Tensor[] transposed, Tensor? root) -> Tensor");
  library.def(
      "attend(Tensor x, Tensor source_scores, Tensor row_scores, Tensor? factors, Tensor[] matrix, Tensor[] "
      "transposed, float slope) -> (Tensor, Tensor)");
  library.def(
      "attend_backward(Tensor grad, Tensor out, Tensor logsumexp, Tensor x, Tensor source_scores, Tensor "
      "row_scores, Tensor? factors, Tensor[] matrix, Tensor[] transposed, float slope) -> (Tensor, Tensor, "
      "Tensor)");
  library.def("transpose(Tensor offsets, Tensor neighbours, SymInt num_sources) -> (Tensor, Tensor, Tensor)");
  library.def("relu_dropout(Tensor x, float p, SymInt seed) -> Tensor");
  library.def("relu_dropout_backward(Tensor grad, Tensor out, float p) -> Tensor");
  library.def("pointwise(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def(
      "pointwise_backward(Tensor grad, Tensor x, Tensor weight, bool with_x, bool with_bias) -> (Tensor, "
      "Tensor, Tensor)");
  library.def(
      "narrow_conv(Tensor x, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> "
      "Tensor");
  library.def(
      "narrow_conv_backward(Tensor grad, Tensor x, Tensor weight, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool with_x) -> (Tensor, Tensor)");
  library.def(
      "sample_edges(Tensor cumulative, Tensor strata, SymInt seed, Tensor? new_ids, Tensor? groups) -> "
      "(Tensor, Tensor)");
  library.def("both_directions(Tensor edge_index, SymInt num_nodes) -> Tensor");
  library.def(
      "preferential_edges(Tensor classes, Tensor compatibility, SymInt num_edges, SymInt num_inside, SymInt "
      "seed) -> Tensor");
  library.def(
      "sample_neighbors(Tensor offsets, Tensor neighbours, Tensor seeds, SymInt[] fanouts, SymInt seed) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cluster_nodes(Tensor offsets, Tensor neighbours, Tensor? weights, Tensor? node_weights, Tensor? "
      "labels, "
      "SymInt max_weight, SymInt rounds, SymInt seed) -> Tensor");
  library.def(
      "contract(Tensor offsets, Tensor neighbours, Tensor? weights, Tensor labels, SymInt num_clusters) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ttgraph, CPU, library) {
  library.impl("tt_lookup", TORCH_BOX(&ttgraph::tt_lookup));
  library.impl("tt_lookup_backward", TORCH_BOX(&ttgraph::tt_lookup_backward));
  library.impl("tt_embedding_bags", TORCH_BOX(&ttgraph::tt_embedding_bags));
  library.impl("tt_embedding_bags_backward", TORCH_BOX(&ttgraph::tt_embedding_bags_backward));
  library.impl("tt_materialize", TORCH_BOX(&ttgraph::tt_materialize));
  library.impl("tt_materialize_backward", TORCH_BOX(&ttgraph::tt_materialize_backward));
  library.impl("tt_lookup_linear", TORCH_BOX(&ttgraph::tt_lookup_linear));
  library.impl("tt_lookup_linear_backward", TORCH_BOX(&ttgraph::tt_lookup_linear_backward));
  library.impl("tt_materialize_linear", TORCH_BOX(&ttgraph::tt_materialize_linear));
  library.impl("tt_materialize_linear_backward", TORCH_BOX(&ttgraph::tt_materialize_linear_backward));
  library.impl("aggregate", TORCH_BOX(&ttgraph::aggregate));
  library.impl("attend", TORCH_BOX(&ttgraph::attend));
  library.impl("attend_backward", TORCH_BOX(&ttgraph::attend_backward));
  library.impl("transpose", TORCH_BOX(&ttgraph::transpose));
  library.impl("relu_dropout", TORCH_BOX(&ttgraph::relu_dropout));
  library.impl("relu_dropout_backward", TORCH_BOX(&ttgraph::relu_dropout_backward));
  library.impl("pointwise", TORCH_BOX(&ttgraph::pointwise));
  library.impl("pointwise_backward", TORCH_BOX(&ttgraph::pointwise_backward));
  library.impl("narrow_conv", TORCH_BOX(&ttgraph::narrow_conv));
  library.impl("narrow_conv_backward", TORCH_BOX(&ttgraph::narrow_conv_backward));
  library.impl("sample_edges", TORCH_BOX(&ttgraph::sample_edges));
  library.impl("both_directions", TORCH_BOX(&ttgraph::both_directions));
  library.impl("preferential_edges", TORCH_BOX(&ttgraph::preferential_edges));
  library.impl("sample_neighbors", TORCH_BOX(&ttgraph::sample_neighbors));
  library.impl("cluster_nodes", TORCH_BOX(&ttgraph::cluster_nodes));
  library.impl("contract", TORCH_BOX(&ttgraph::contract));
}
