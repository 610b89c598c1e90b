// Local numbers of nodes in the order of first sight.
#pragma once

#include <bit>

#include "cpu/csr.h"
#include "cpu/random.h"

namespace ttgraph {

// A hash table of the size of what was seen, whatever the size of the graph. Node ids and their numbers
// share slots of 64 bits.
class Numbering {
 public:
  static constexpr int64_t kMostNodes = (int64_t{1} << 32) - 1;

  const int64_t* nodes() const { return longs(nodes_); }
  int64_t size() const { return size_; }

  // Room for `most` nodes; a third to two thirds of the slots are in use when so many have come.
  void reserve(int64_t most) {
    nodes_ = copy_of(nodes(), size_, most + 1);
    const uint64_t slots = std::bit_ceil(static_cast<uint64_t>(most) + most / 2 + 2);
    if (slots <= table_.mask) return;
    const Tensor old = std::exchange(held_, empty_longs(static_cast<int64_t>(slots)));
    const auto* const entries = reinterpret_cast<const uint64_t*>(longs(old));
    table_ = {reinterpret_cast<uint64_t*>(mutable_longs(held_)), slots - 1, std::countl_zero(slots - 1)};
    std::fill_n(table_.slots, slots, kFree);
    // Slots are in the order of the hash, so that both tables are gone through once.
    for (int64_t i = 0; i < old.numel(); ++i)
      if (entries[i] != kFree)
        table_.slots[table_.place(static_cast<int64_t>(entries[i] >> 32))] = entries[i];
  }

  // A seed has a row of its own, even if it came before; others find the first.
  void add_seed(int64_t node) {
    uint64_t& slot = table_.slots[table_.place(node)];
    if (slot == kFree) slot = entry_of(node, size_);
    mutable_longs(nodes_)[size_++] = node;
  }

  // Replaces nodes by their numbers. Which of them are new nobody can predict, so there is no branch on it.
  void number(int64_t* nodes, int64_t count) {
    const Table table = table_;
    int64_t* const known = mutable_longs(nodes_);
    int64_t size = size_;
    for (int64_t i = -kFar; i < count; ++i) {
      if (i + kFar < count) __builtin_prefetch(table.slots + table.home(nodes[i + kFar]), 1);
      if (i < 0) continue;
      const int64_t node = nodes[i];
      uint64_t* const slot = table.slots + table.place(node);
      const bool fresh = *slot == kFree;
      const uint64_t entry = fresh ? entry_of(node, size) : *slot;
      *slot = entry;
      known[size] = node;
      size += fresh;
      nodes[i] = static_cast<int64_t>(entry & 0xffffffffu);
    }
    size_ = size;
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  static constexpr int64_t kFar = 48;  // nodes ahead whose slots are asked for: one takes little time

  struct Table {
    uint64_t* slots = nullptr;
    uint64_t mask = 0;  // one less than the number of slots
    int shift = 0;

    uint64_t home(int64_t node) const { return static_cast<uint64_t>(node) * kGamma >> shift; }

    // The slot that holds the node, or the free one where it belongs.
    uint64_t place(int64_t node) const {
      uint64_t place = home(node);
      while (slots[place] != kFree && slots[place] >> 32 != static_cast<uint64_t>(node))
        place = (place + 1) & mask;
      return place;
    }
  };

  static uint64_t entry_of(int64_t node, int64_t local) {
    return static_cast<uint64_t>(node) << 32 | static_cast<uint64_t>(local);
  }

  Tensor nodes_ = empty_longs(0), held_ = empty_longs(0);
  int64_t size_ = 0;
  Table table_;
};

}  // namespace ttgraph
