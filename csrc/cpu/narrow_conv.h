// Convolutions with few channels: how images lie in planes, and where the taps of a kernel read them.
//
// With a stride, every pixel belongs to a phase: the remainder of its padded coordinate. Each phase of each
// channel is a plane of its own, in which neighbours are the pixels that one tap reads: a convolution with a
// stride is one without, of more planes. What a tap reads beside a row are the zeros before the next one.
// Images that are too large are worked on in bands of rows.
#pragma once

#include <algorithm>

#include "cpu/cores.h"
#include "cpu/correlate.h"

namespace ttgraph {

// One of the two directions of an image. Pixel i is number (i + padding) / stride of its phase.
struct Axis {
  Axis(const char* op, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation)
      : in(in), kernel(kernel), stride(stride), padding(padding), dilation(dilation) {
    require(in > 0 && kernel > 0 && stride > 0 && padding >= 0 && dilation > 0, op,
            " needs images, kernel, stride and dilation of 1 or more and padding of 0 or more");
    const int64_t span = dilation * (kernel - 1) + 1, padded = in + 2 * padding;
    require(span <= padded, op, ": a kernel over ", span, " pixels is larger than images of ", padded,
            " with their padding");
    out = (padded - span) / stride + 1;
    first = padding / stride;
    end = (in - 1 + padding) / stride + 1;
    reach = (span - 1) / stride;
    halo = std::max<int64_t>(0, reach - first);
  }

  int64_t phase(int64_t tap) const { return tap * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }

  // The pixel of a number and a phase, which may lie outside of the image; the least number of one that does
  // not lie before it; and how many there are from such a pixel on.
  int64_t pixel(int64_t number, int64_t phase) const { return number * stride + phase - padding; }
  int64_t first_of(int64_t phase) const {
    return std::max<int64_t>(0, padding - phase + stride - 1) / stride;
  }
  int64_t count_from(int64_t pixel) const { return pixel < in ? (in - 1 - pixel) / stride + 1 : 0; }

  int64_t in, kernel, stride, padding, dilation, out;
  int64_t first, end;  // the numbers that pixels have
  int64_t reach;       // how much further than its result a tap reads at most
  int64_t halo;        // zeros before the gradients, which taps read backwards
};

// Sizes of a convolution, and of the planes of a band of rows.
struct NarrowConv {
  NarrowConv(const Tensor& pixels, const Tensor& weight, const Axis& y, const Axis& x)
      : num_images(pixels.size(0)),
        in(pixels.size(1)),
        out(weight.size(0)),
        y(y),
        x(x),
        pitch(std::max({x.end, x.out + x.reach - x.first, x.out + x.halo})),
        rows(std::max(y.out, y.end - y.first)) {}

  int64_t phases() const { return y.stride * x.stride; }
  int64_t num_taps() const { return in * y.kernel * x.kernel; }
  int64_t shares() const { return count_shares(num_images * y.out * x.out * out * num_taps(), 1 << 18); }

  // Rows of a band of which so many planes stay in the second-level cache.
  int64_t band(int64_t planes) const {
    constexpr int64_t kNumbers = 1 << 16;
    return std::clamp<int64_t>(kNumbers / (planes * pitch), 1, rows);
  }
  // Numbers from one plane to the next. Taps read a little past its last row, and planes an odd number of
  // cache lines apart do not share a few sets of a cache.
  int64_t plane(int64_t num_rows) const {
    const int64_t size = num_rows * pitch + std::max(x.first, x.halo) + kPlaneSlack;
    return (size + kPlaneSlack - 1) / kPlaneSlack * kPlaneSlack | kPlaneSlack;
  }

  // Where each entry of a kernel, (in, y.kernel, x.kernel), reads the planes of the pixels.
  std::vector<int64_t> taps(int64_t plane) const {
    std::vector<int64_t> places;
    for (int64_t c = 0; c < in; ++c)
      for (int64_t i = 0; i < y.kernel; ++i)
        for (int64_t j = 0; j < x.kernel; ++j) {
          const int64_t phase = y.phase(i) * x.stride + x.phase(j);
          places.push_back((phase * in + c) * plane + y.shift(i) * pitch + x.shift(j));
        }
    return places;
  }

  // Calls body(pixel, place, count) for the pixels of one phase in each of the rows of a band: the index of
  // the first in its image, where it lies in a plane of the band, and how many there are.
  template <class Body>
  void each_row(int64_t phase, int64_t begin, int64_t end, const Body& body) const {
    const int64_t number = x.first_of(phase % x.stride), column = x.pixel(number, phase % x.stride);
    const int64_t count = x.count_from(column);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t line = y.pixel(row, phase / x.stride);
      if (count > 0 && line >= 0 && line < y.in)
        body(line * x.in + column, (row - begin) * pitch + number, count);
    }
  }

  // The planes, (phases, in), of rows begin - end of an image, and of what taps read beyond.
  template <class T>
  void split_pixels(const T* image, int64_t begin, int64_t end, T* planes, int64_t plane) const {
    for (int64_t phase = 0; phase < phases(); ++phase)
      each_row(phase, begin, end + y.reach, [&](int64_t pixel, int64_t place, int64_t count) {
        correlate<T>().split(count, in, image + pixel * in, x.stride * in,
                             planes + phase * in * plane + place, plane);
      });
  }

  int64_t num_images, in, out;
  Axis y, x;
  int64_t pitch;  // numbers from one row of a plane to the next
  int64_t rows;   // of results, or of the pixels of a phase
};

NarrowConv check_narrow_conv(const char* op, const Tensor& x, const Tensor& weight,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation);

// The channels of a pixel lie side by side.
constexpr auto kChannelsLast = torch::headeronly::MemoryFormat::ChannelsLast;

inline Tensor empty_images(const Tensor& like, int64_t num_images, int64_t channels, int64_t height,
                           int64_t width) {
  return torch::stable::empty({num_images, channels, height, width}, like.scalar_type(), {}, like.device(),
                              {}, kChannelsLast);
}

}  // namespace ttgraph
