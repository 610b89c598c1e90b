// The transpose of compressed sparse rows: a stable counting sort of the entries by neighbour.
#include "cpu/csr.h"

namespace ttgraph {

// Where each source's entries begin, and in `places` where those of each share of the entries do.
static void place_sources(const int64_t* neighbours, int64_t size, int64_t num_sources, int64_t shares,
                          int64_t* offsets, std::vector<int64_t>& places) {
  places.assign(shares * num_sources, 0);
  each_share(shares, [&](int64_t share) {
    int64_t* const counts = places.data() + share * num_sources;
    const int64_t end = share_begin(size, shares, share + 1);
    for (int64_t e = share_begin(size, shares, share); e < end; ++e) ++counts[neighbours[e]];
  });
  int64_t place = 0;
  for (int64_t source = 0; source < num_sources; ++source) {
    offsets[source] = place;
    for (int64_t share = 0; share < shares; ++share)
      place += std::exchange(places[share * num_sources + source], place);
  }
  offsets[num_sources] = place;
}

// Where each source's entries begin, their rows, and their places in what was given, ascending.
std::tuple<Tensor, Tensor, Tensor> transpose(Tensor offsets, Tensor neighbours, int64_t num_sources) {
  constexpr const char* op = "transpose";
  require(offsets.dim() == 1 && offsets.numel() > 0 && offsets.scalar_type() == ScalarType::Long, op,
          " needs offsets of shape (num_rows + 1,), int64");
  require(neighbours.dim() == 1 && neighbours.scalar_type() == ScalarType::Long, op,
          " needs neighbours of shape (num_edges,), int64");
  require(num_sources >= 0, op, " needs num_sources of at least 0, got ", num_sources);
  offsets = torch::stable::contiguous(offsets);
  neighbours = torch::stable::contiguous(neighbours);
  const int64_t num_rows = offsets.numel() - 1, size = neighbours.numel();
  const int64_t *const begins = longs(offsets), *const sources = longs(neighbours);
  check_entries(op, begins, num_rows, sources, size, num_sources);

  const Tensor new_offsets = empty_longs(num_sources + 1);
  const Tensor rows = on_large_pages(empty_longs(size)), entries = on_large_pages(empty_longs(size));
  int64_t *const row_at = mutable_longs(rows), *const entry_at = mutable_longs(entries);
  // Every share counts all sources, which pays where it has at least as many entries.
  const int64_t shares = count_shares(size, std::max<int64_t>(num_sources, 1 << 15));
  std::vector<int64_t> places;
  place_sources(sources, size, num_sources, shares, mutable_longs(new_offsets), places);
  each_share(shares, [&](int64_t share) {
    int64_t* const next = places.data() + share * num_sources;
    int64_t e = share_begin(size, shares, share);
    const int64_t end = share_begin(size, shares, share + 1);
    for (int64_t row = std::upper_bound(begins, begins + num_rows, e) - begins - 1; e < end; ++row)
      for (; e < std::min(begins[row + 1], end); ++e) {
        const int64_t place = next[sources[e]]++;
        row_at[place] = row;
        entry_at[place] = e;
      }
  });
  return {new_offsets, rows, entries};
}

}  // namespace ttgraph
