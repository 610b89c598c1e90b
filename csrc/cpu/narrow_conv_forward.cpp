// Convolutions with few channels.
#include "cpu/narrow_conv.h"

namespace ttgraph {

NarrowConv check_narrow_conv(const char* op, const Tensor& x, const Tensor& weight,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation) {
  require(x.dim() == 4 && weight.dim() == 4 && x.size(1) == weight.size(1) && weight.numel() > 0, op,
          " needs x (num_images, in_channels, height, width) and weight (out_channels, in_channels, "
          "kernel_height, kernel_width)");
  require(same_device(x, weight) && x.scalar_type() == weight.scalar_type(), op,
          " needs x and weight of one dtype on one device");
  require(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
          " needs two numbers each as stride, padding and dilation");
  const auto axis = [&](int64_t dim) {
    return Axis(op, x.size(2 + dim), weight.size(2 + dim), stride[dim], padding[dim], dilation[dim]);
  };
  return {x, weight, axis(0), axis(1)};
}

// (num_images, in, h, w), (out, in, kernel_h, kernel_w) -> (num_images, out, out_h, out_w)
Tensor narrow_conv(Tensor x, Tensor weight, std::vector<int64_t> stride, std::vector<int64_t> padding,
                   std::vector<int64_t> dilation) {
  constexpr const char* op = "narrow_conv";
  const NarrowConv conv = check_narrow_conv(op, x, weight, stride, padding, dilation);
  const auto [in, out] = std::pair(conv.in, conv.out);
  x = torch::stable::contiguous(x, kChannelsLast);
  // (in * kernel_h * kernel_w, out)
  weight = torch::stable::contiguous(
      torch::stable::transpose(torch::stable::reshape(weight, {out, conv.num_taps()}), 0, 1));
  const Tensor result = empty_images(x, conv.num_images, out, conv.y.out, conv.x.out);
  const int64_t band = conv.band(conv.phases() * in + out), bands = (conv.y.out + band - 1) / band;
  const int64_t in_plane = conv.plane(band + conv.y.reach), out_plane = conv.plane(band);
  const std::vector<int64_t> taps = conv.taps(in_plane);
  const int64_t shares = conv.shares();
  with_number(op, x.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const T* const pixels = static_cast<const T*>(x.const_data_ptr());
    const T* const factors = static_cast<const T*>(weight.const_data_ptr());
    T* const to = static_cast<T*>(result.mutable_data_ptr());
    each_share(shares, [&](int64_t share) {
      std::vector<T> planes(conv.phases() * in * in_plane), sums(out * out_plane);
      const int64_t last = share_begin(conv.num_images * bands, shares, share + 1);
      for (int64_t piece = share_begin(conv.num_images * bands, shares, share); piece < last; ++piece) {
        const int64_t image = piece / bands, begin = piece % bands * band;
        const int64_t end = std::min(begin + band, conv.y.out);
        if (bands > 1) std::fill(planes.begin(), planes.end(), T(0));
        conv.split_pixels(pixels + image * conv.y.in * conv.x.in * in, begin, end, planes.data(), in_plane);
        correlate<T>().correlate(conv.num_taps(), taps.data(), factors, out, planes.data(),
                                 (end - begin - 1) * conv.pitch + conv.x.out, sums.data(), out_plane);
        for (int64_t row = begin; row < end; ++row)
          correlate<T>().merge(conv.x.out, out, sums.data() + (row - begin) * conv.pitch, out_plane,
                               to + (image * conv.y.out + row) * conv.x.out * out, out);
      }
    });
  });
  return result;
}

}  // namespace ttgraph
