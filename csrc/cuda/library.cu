// The CUDA half of the library: the same ops, registered for the GPU.
#include <torch/csrc/stable/library.h>

#include "checks.h"

namespace ttgraph {
Tensor tt_lookup_cuda(std::vector<Tensor> cores, Tensor ids, int64_t num_embeddings);
std::vector<Tensor> tt_lookup_backward_cuda(Tensor grad, std::vector<Tensor> cores, Tensor ids,
                                            bool deterministic);
Tensor tt_materialize_cuda(std::vector<Tensor> cores, int64_t num_embeddings);
std::vector<Tensor> tt_materialize_backward_cuda(Tensor grad, std::vector<Tensor> cores, bool deterministic);
}  // namespace ttgraph

STABLE_TORCH_LIBRARY_IMPL(ttgraph, CUDA, library) {
  library.impl("tt_lookup", TORCH_BOX(&ttgraph::tt_lookup_cuda));
  library.impl("tt_lookup_backward", TORCH_BOX(&ttgraph::tt_lookup_backward_cuda));
  library.impl("tt_materialize", TORCH_BOX(&ttgraph::tt_materialize_cuda));
  library.impl("tt_materialize_backward", TORCH_BOX(&ttgraph::tt_materialize_backward_cuda));
}
