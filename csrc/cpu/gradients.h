// Gradients of the cores, written by several threads without atomics and added up in a fixed order.
#pragma once

#include <cstring>

#include "cpu/cores.h"

namespace ttgraph {

// Share 0 writes the gradients themselves, every other share a private copy. Of the major core a
// private slice is enough: shares follow its digit, so only the first slice of a share can also
// belong to the share before.
template <class T>
class CoreGradients {
 public:
  CoreGradients(const TTShape& shape, const Tensor& like, ScalarType sum_type, int64_t major, int64_t shares)
      : shape_(shape), major_(major), first_(shares, -1) {
    for (int64_t k = 0; k < shape.depth(); ++k) {
      Tensor grad = torch::stable::new_zeros(
          like, {shape.rows[k], shape.ranks[k], shape.cols[k], shape.ranks[k + 1]}, sum_type);
      data_.push_back(static_cast<T*>(grad.mutable_data_ptr()));
      grads_.push_back(std::move(grad));
      offsets_.push_back(copy_size_);
      copy_size_ += k == major ? shape.slice(k) : shape.core(k);
    }
    copies_.reset(new T[(shares - 1) * copy_size_]);
  }

  // To be called by the share itself, so that its memory is near it.
  void clear(int64_t share) {
    if (share > 0) std::memset(copy(share), 0, copy_size_ * sizeof(T));
  }

  // Where `share` adds its part of one slice, (ranks[k], cols[k] * ranks[k + 1]).
  T* slice(int64_t share, int64_t k, int64_t digit) {
    if (share == 0) return data_[k] + digit * shape_.slice(k);
    if (k != major_) return copy(share) + offsets_[k] + digit * shape_.slice(k);
    if (first_[share] < 0) first_[share] = digit;
    return first_[share] == digit ? copy(share) + offsets_[k] : data_[k] + digit * shape_.slice(k);
  }

  // Adds the copies to the gradients, share by share, and returns them in the type of the cores.
  std::vector<Tensor> sum(ScalarType dtype) {
    const int64_t shares = static_cast<int64_t>(first_.size());
    for (int64_t k = 0; k < shape_.depth() && shares > 1; ++k) {
      if (k == major_) {
        for (int64_t share = 1; share < shares; ++share)
          if (first_[share] >= 0)
            add(data_[k] + first_[share] * shape_.slice(k), copy(share) + offsets_[k], shape_.slice(k));
        continue;
      }
      const int64_t parts = count_shares(shape_.core(k), 1 << 14);
      each_share(parts, [&](int64_t part) {
        const int64_t begin = share_begin(shape_.core(k), parts, part);
        const int64_t end = share_begin(shape_.core(k), parts, part + 1);
        for (int64_t share = 1; share < shares; ++share)
          add(data_[k] + begin, copy(share) + offsets_[k] + begin, end - begin);
      });
    }
    for (Tensor& grad : grads_) grad = torch::stable::to(grad, dtype);
    return std::move(grads_);
  }

 private:
  static void add(T* to, const T* from, int64_t size) {
    T* const* const blocks = &to;
    arithmetic<T>().add_blocks(blocks, 1, 1, size, from, size);
  }
  T* copy(int64_t share) { return copies_.get() + (share - 1) * copy_size_; }

  const TTShape& shape_;
  const int64_t major_;
  std::vector<int64_t> first_;  // of every share: the first major digit it met
  std::vector<Tensor> grads_;
  std::vector<T*> data_;
  std::vector<int64_t> offsets_;  // of core k in a copy
  int64_t copy_size_ = 0;
  std::unique_ptr<T[]> copies_;
};

// The way back through PrefixProduct, for one share. The gradient of a product that several
// prefixes share is summed before it goes down to the cores.
template <class T>
class PrefixGradient {
 public:
  PrefixGradient(const Cores<T>& cores, const Cores<T>& transposed, CoreGradients<T>& grads, int64_t share)
      : shape_(cores.shape),
        transposed_(transposed),
        grads_(grads),
        share_(share),
        product_(cores),
        pending_(shape_.last(), false),
        grad_(shape_.last()) {
    for (int64_t k = 0; k < shape_.last(); ++k) grad_[k].resize(shape_.prefix_cols[k] * shape_.ranks[k + 1]);
  }

  void enter(int64_t prefix) {
    flush(product_.differs_at(prefix));
    product_.enter(prefix);
  }

  const T* product() const { return product_.value(); }  // (prefix_cols, rank)

  // d product += rows (prefix_cols, columns) * slices (columns, rank)
  void add(const T* rows, int64_t columns, const T* slices) {
    const int64_t k = shape_.last() - 1, rank = shape_.ranks[k + 1];
    arithmetic<T>().gemm(shape_.prefix_cols[k], rank, columns, rows, columns, 1, slices, rank,
                         grad_[k].data(), rank, pending_[k]);
    pending_[k] = true;
  }

  // Hands the pending gradients of levels `from` and deeper on to the cores.
  void flush(int64_t from = 0) {
    for (int64_t k = shape_.last(); k-- > from;) {
      if (!pending_[k]) continue;
      pending_[k] = false;
      const int64_t width = shape_.cols[k] * shape_.ranks[k + 1], rank = shape_.ranks[k];
      const int64_t height = shape_.prefix_cols[k] / shape_.cols[k], digit = product_.digit(k);
      T* const slice = grads_.slice(share_, k, digit);
      if (k == 0) {
        arithmetic<T>().add_blocks(&slice, 1, 1, width, grad_[0].data(), width);
        continue;
      }
      arithmetic<T>().gemm(rank, width, height, product_.level(k - 1), 1, rank, grad_[k].data(), width, slice,
                           width, true);
      arithmetic<T>().gemm(height, rank, width, grad_[k].data(), width, 1, transposed_.slice(k, digit), rank,
                           grad_[k - 1].data(), rank, pending_[k - 1]);
      pending_[k - 1] = true;
    }
  }

 private:
  const TTShape& shape_;
  const Cores<T>& transposed_;
  CoreGradients<T>& grads_;
  const int64_t share_;
  PrefixProduct<T> product_;
  std::vector<bool> pending_;
  std::vector<std::vector<T>> grad_;
};

// Adds to the gradients of one share those that the rows of its sorted entries bring. `source` says
// what becomes of the gradients of the rows:
//   row(r) is where that of requested row r begins;
//   mask(block, count, rows) may change those of a block of entries, gathered side by side;
//   weigh(block, count, slices, slice_grads) may change the two factors of what they add, where weighs():
//     slices (count * width, rank), transposed, and slice_grads (rank, count * width).
template <class T, class Source>
void add_gradients(const Cores<T>& cores, const Cores<T>& transposed, const SortedIds& ids,
                   const Entry* entry, const Entry* end, CoreGradients<T>& grads, int64_t share,
                   const Source& source) {
  using Row = typename Source::Row;
  const TTShape& shape = cores.shape;
  const int64_t last = shape.last(), rank = shape.ranks[last], width = shape.cols[last],
                dim = shape.embedding_dim;
  const int64_t height = dim / width, most = rows_per_gathered_block(shape);
  PrefixGradient<T> prefix(cores, transposed, grads, share);
  std::vector<T> rows(dim * most), slices(rank * width * most), slice_grads(rank * width * most);
  std::vector<const Row*> sources(most);
  std::vector<const T*> slice_sources(most);
  std::vector<T*> targets(most);
  while (entry < end) {
    const int64_t place = ids.place(*entry);
    prefix.enter(ids.prefix(*entry));
    while (entry < end && ids.place(*entry) == place) {
      const Entry* const block = entry;
      int64_t count = 0;
      for (; count < most && entry < end && ids.place(*entry) == place; ++entry, ++count) {
        sources[count] = source.row(entry->row);
        if (end - entry > kAhead) prefetch(source.row(entry[kAhead].row), dim);
        slice_sources[count] = transposed.slice(last, ids.suffix(*entry));
        targets[count] = grads.slice(share, last, ids.suffix(*entry));
      }
      const int64_t columns = count * width;
      moves<T, Row>().gather(sources.data(), count, height, width, rows.data(), columns);
      source.mask(block, count, rows.data());
      if (count == 1 && !source.weighs()) {  // nothing to gather, nothing to change
        arithmetic<T>().gemm(rank, width, height, prefix.product(), 1, rank, rows.data(), width, targets[0],
                             width, true);
        prefix.add(rows.data(), width, slice_sources[0]);
        continue;
      }
      arithmetic<T>().gemm(rank, columns, height, prefix.product(), 1, rank, rows.data(), columns,
                           slice_grads.data(), columns, false);
      // One block of width * rank numbers after another is the (columns, rank) factor.
      moves<T, T>().gather(slice_sources.data(), count, 1, width * rank, slices.data(), columns * rank);
      source.weigh(block, count, slices.data(), slice_grads.data());
      arithmetic<T>().add_blocks(targets.data(), count, rank, width, slice_grads.data(), columns);
      prefix.add(rows.data(), columns, slices.data());
    }
  }
  prefix.flush();
}

// A thread is worth its private copy of the gradients only if it has more work than adding that up.
// `work` is in multiply-adds, `others` counts the numbers of a copy beside the cores.
inline int64_t count_gradient_shares(const TTShape& shape, int64_t work, int64_t others = 0) {
  int64_t numbers = others;
  for (int64_t k = 0; k < shape.depth(); ++k) numbers += shape.core(k);
  return count_shares(work, std::max<int64_t>(1 << 16, numbers));
}

// Multiply-adds of the rows that a table gives, to decide between threads.
inline int64_t row_work(const TTShape& shape, int64_t num_rows) {
  return num_rows * shape.embedding_dim * shape.ranks[shape.last()];
}

}  // namespace ttgraph
