// Rows times a dense weight without the rows: what forward and backward share.
//
// A row is the product of its prefix, P (height, rank), with the slice of its suffix, S (rank, width).
// So its product with the weight is that of S, laid flat, with Q = sum over a of P[a] W[a]: one small
// product per prefix, and then rank * width instead of embedding_dim multiply-adds per number.
#pragma once

#include <algorithm>

#include "cpu/cores.h"

namespace ttgraph {

// Sizes of the parts of a row and of the weight.
struct LinearShape {
  LinearShape(const TTShape& shape, const Tensor& weight)
      : rank(shape.ranks[shape.last()]),
        width(shape.cols[shape.last()]),
        height(shape.embedding_dim / width),
        slice(rank * width),
        out(weight.size(0)),
        // The rows of a block, their slices and a panel of Q stay in the first-level cache.
        block(std::max<int64_t>(8, 8192 / (slice + out))) {}

  int64_t work(int64_t num_rows) const { return num_rows * slice * out; }

  int64_t rank, width, height, slice, out, block;
};

// The weight, (out, height * width), as (height, width * out) where out_last, else (height, out * width).
template <class T>
std::vector<T> weight_by_height(const LinearShape& linear, const Tensor& weight, ScalarType sum_type,
                                bool out_last) {
  const Tensor wide = torch::stable::to(weight, sum_type);
  const T* from = static_cast<const T*>(wide.const_data_ptr());
  std::vector<T> by_height(linear.height * linear.width * linear.out);
  for (int64_t o = 0; o < linear.out; ++o)
    for (int64_t a = 0; a < linear.height; ++a)
      for (int64_t b = 0; b < linear.width; ++b, ++from) {
        const int64_t column = out_last ? b * linear.out + o : o * linear.width + b;
        by_height[a * linear.width * linear.out + column] = *from;
      }
  return by_height;
}

// Both of the following hand rows to a visitor, prefix by prefix, in blocks of at most `block`:
// enter(prefix), rows(count, suffixes, rows) once or more, leave().

// The rows of ids, in the order of the sorted ids.
struct IdRows {
  const SortedIds& ids;
  int64_t size;

  int64_t num_rows() const { return size; }
  int64_t major() const { return ids.order.major(); }
  int64_t max_shares() const { return std::max<int64_t>(size, 1); }

  template <class Visitor>
  void share(int64_t shares, int64_t share, int64_t block, Visitor& visitor) const {
    std::vector<int64_t> suffixes(block), rows(block);
    const Entry* entry = ids.entries.get() + share_begin(size, shares, share);
    const Entry* const end = ids.entries.get() + share_begin(size, shares, share + 1);
    while (entry < end) {
      const int64_t place = ids.place(*entry);
      visitor.enter(ids.prefix(*entry));
      while (entry < end && ids.place(*entry) == place) {
        int64_t count = 0;
        for (; count < block && entry < end && ids.place(*entry) == place; ++entry, ++count) {
          suffixes[count] = ids.suffix(*entry);
          rows[count] = entry->row;
        }
        visitor.rows(count, suffixes.data(), rows.data());
      }
      visitor.leave();
    }
  }
};

// All rows below num_embeddings.
struct TableRows {
  TableRows(const TTShape& shape, int64_t num_embeddings, bool reversed)
      : num_embeddings(num_embeddings),
        suffixes(shape.rows[shape.last()]),
        digits(shape, reversed),
        // Reversed, the prefixes of the last, missing rows are not the last ones.
        walk(shape, reversed && num_embeddings > 0 ? shape.num_rows : num_embeddings) {}

  int64_t num_rows() const { return num_embeddings; }
  int64_t major() const { return walk.order.major(); }
  int64_t max_shares() const { return std::max<int64_t>(walk.size(), 1); }

  template <class Visitor>
  void share(int64_t shares, int64_t share, int64_t block, Visitor& visitor) const {
    std::vector<int64_t> chosen(block), rows(block);
    const int64_t stride = digits.suffix_stride();
    walk.share(shares, share, [&](int64_t prefix, int64_t) {
      const int64_t first = digits.first_row(prefix);
      if (first >= num_embeddings) return;
      const int64_t count = std::min(suffixes, (num_embeddings - first + stride - 1) / stride);
      visitor.enter(prefix);
      for (int64_t begin = 0; begin < count; begin += block) {
        const int64_t part = std::min(block, count - begin);
        for (int64_t e = 0; e < part; ++e) {
          chosen[e] = begin + e;
          rows[e] = first + chosen[e] * stride;
        }
        visitor.rows(part, chosen.data(), rows.data());
      }
      visitor.leave();
    });
  }

  int64_t num_embeddings, suffixes;
  RowDigits digits;
  PrefixWalk walk;
};

}  // namespace ttgraph
