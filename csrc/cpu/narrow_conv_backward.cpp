// Gradients of convolutions with few channels.
#include "cpu/narrow_conv.h"

namespace ttgraph {

// The entries of a kernel that meet the pixels of one phase: where they read the planes of the gradients, and
// their weights, (num_taps, in).
template <class T>
struct PhaseTaps {
  PhaseTaps(const NarrowConv& conv, int64_t phase, const T* weight, int64_t plane) {
    const auto [y, x] = std::pair(conv.y, conv.x);
    for (int64_t o = 0; o < conv.out; ++o)
      for (int64_t i = 0; i < y.kernel; ++i)
        for (int64_t j = 0; j < x.kernel; ++j) {
          if (y.phase(i) * x.stride + x.phase(j) != phase) continue;
          places.push_back(o * plane + (y.first + y.halo - y.shift(i)) * conv.pitch + x.first + x.halo -
                           x.shift(j));
          for (int64_t c = 0; c < conv.in; ++c)
            weights.push_back(weight[((o * conv.in + c) * y.kernel + i) * x.kernel + j]);
        }
  }

  std::vector<int64_t> places;
  std::vector<T> weights;
};

// What one thread works with.
template <class T>
class NarrowConvGradients {
 public:
  NarrowConvGradients(const NarrowConv& conv, const Tensor& grad, const Tensor& x, const Tensor& weight,
                      const Tensor& x_grad)
      : conv_(conv),
        band_(conv.band(conv.phases() * conv.in + conv.in + conv.out)),
        bands_((conv.rows + band_ - 1) / band_),
        in_plane_(conv.plane(band_ + conv.y.reach)),
        grad_plane_(conv.plane(band_ + conv.y.halo + conv.y.first)),
        x_grad_plane_(conv.plane(band_)),
        in_image_(conv.phases() * conv.in * in_plane_),
        grad_image_(conv.out * grad_plane_),
        taps_(conv.taps(in_plane_)),
        grads_(static_cast<const T*>(grad.const_data_ptr())),
        pixels_(static_cast<const T*>(x.const_data_ptr())),
        to_(x_grad.numel() ? static_cast<T*>(x_grad.mutable_data_ptr()) : nullptr) {
    constexpr int64_t kNumbers = 1 << 16;
    group_ = bands_ > 1 ? 1 : std::max<int64_t>(1, kNumbers / (in_image_ + grad_image_));
    for (int64_t phase = 0; to_ && phase < conv.phases(); ++phase)
      phase_taps_.emplace_back(conv, phase, static_cast<const T*>(weight.const_data_ptr()), grad_plane_);
  }

  int64_t pieces() const { return conv_.num_images * bands_; }

  // Adds up the gradient of the weight, (num_taps, out), over some pieces, and writes that of their pixels.
  void add(int64_t piece, int64_t last, T* sums) const {
    const int64_t most = std::min(group_, last - piece);
    std::vector<T> planes(most * in_image_), grads(most * grad_image_),
        results(to_ ? conv_.in * x_grad_plane_ : 0);
    while (piece < last) {
      const int64_t count = std::min(most, last - piece), begin = piece % bands_ * band_;
      const int64_t end = std::min(begin + band_, conv_.rows);
      if (bands_ > 1) {
        std::fill(planes.begin(), planes.end(), T(0));
        std::fill(grads.begin(), grads.end(), T(0));
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t image = (piece + i) / bands_;
        conv_.split_pixels(pixels_ + image * conv_.y.in * conv_.x.in * conv_.in, begin, end,
                           planes.data() + i * in_image_, in_plane_);
        T* const own = grads.data() + i * grad_image_;
        split_grads(image, begin, end, own);
        if (to_) write(image, begin, end, own, results.data());
        if (bands_ > 1)  // the rows of the next band
          for (int64_t o = 0; o < conv_.out; ++o)
            std::fill(own + o * grad_plane_ + (end - begin + conv_.y.halo) * conv_.pitch,
                      own + (o + 1) * grad_plane_, T(0));
      }
      const int64_t rows = std::min(end, conv_.y.out) - begin;
      if (rows > 0)
        correlate<T>().sums(conv_.num_taps(), taps_.data(), conv_.out, count, planes.data(), in_image_,
                            (rows - 1) * conv_.pitch + conv_.x.out,
                            grads.data() + conv_.y.halo * conv_.pitch + conv_.x.halo, grad_plane_,
                            grad_image_, sums);
      piece += count;
    }
  }

 private:
  void split_grads(int64_t image, int64_t begin, int64_t end, T* grads) const {
    const int64_t last = std::min(end + conv_.y.first, conv_.y.out);
    for (int64_t row = std::max<int64_t>(0, begin - conv_.y.halo); row < last; ++row)
      correlate<T>().split(conv_.x.out, conv_.out,
                           grads_ + (image * conv_.y.out + row) * conv_.x.out * conv_.out, conv_.out,
                           grads + (row - begin + conv_.y.halo) * conv_.pitch + conv_.x.halo, grad_plane_);
  }

  void write(int64_t image, int64_t begin, int64_t end, const T* grads, T* results) const {
    T* const to = to_ + image * conv_.y.in * conv_.x.in * conv_.in;
    const int64_t rows = std::min(end, conv_.y.end - conv_.y.first) - begin;
    if (rows <= 0) return;
    for (int64_t phase = 0; phase < conv_.phases(); ++phase) {
      const PhaseTaps<T>& taps = phase_taps_[phase];
      correlate<T>().correlate(taps.places.size(), taps.places.data(), taps.weights.data(), conv_.in, grads,
                               (rows - 1) * conv_.pitch + conv_.x.end - conv_.x.first, results,
                               x_grad_plane_);
      conv_.each_row(phase, begin + conv_.y.first, begin + conv_.y.first + rows,
                     [&](int64_t pixel, int64_t place, int64_t count) {
                       correlate<T>().merge(count, conv_.in, results + place - conv_.x.first, x_grad_plane_,
                                            to + pixel * conv_.in, conv_.x.stride * conv_.in);
                     });
    }
  }

  const NarrowConv& conv_;
  int64_t band_, bands_, in_plane_, grad_plane_, x_grad_plane_, in_image_, grad_image_, group_;
  std::vector<int64_t> taps_;
  std::vector<PhaseTaps<T>> phase_taps_;
  const T *grads_, *pixels_;
  T* to_;
};

// grad (num_images, out, out_h, out_w) -> gradients of x, empty where it is not wanted, and of weight.
std::tuple<Tensor, Tensor> narrow_conv_backward(Tensor grad, Tensor x, Tensor weight,
                                                std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                std::vector<int64_t> dilation, bool with_x) {
  constexpr const char* op = "narrow_conv_backward";
  const NarrowConv conv = check_narrow_conv(op, x, weight, stride, padding, dilation);
  require(grad.dim() == 4 && grad.size(0) == conv.num_images && grad.size(1) == conv.out &&
              grad.size(2) == conv.y.out && grad.size(3) == conv.x.out && same_device(grad, x) &&
              grad.scalar_type() == x.scalar_type(),
          op, " needs grad of shape (", conv.num_images, ", ", conv.out, ", ", conv.y.out, ", ", conv.x.out,
          ") in the dtype of x, on its device");
  x = torch::stable::contiguous(x, kChannelsLast);
  grad = torch::stable::contiguous(grad, kChannelsLast);
  weight = torch::stable::contiguous(weight);
  const Tensor x_grad = empty_images(x, with_x ? conv.num_images : 0, conv.in, conv.y.in, conv.x.in);
  const Tensor weight_grad =
      torch::stable::new_empty(weight, {conv.out, conv.in, conv.y.kernel, conv.x.kernel});
  const int64_t shares = conv.shares(), size = conv.num_taps() * conv.out;
  with_number(op, x.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const NarrowConvGradients<T> gradients(conv, grad, x, weight, x_grad);
    std::vector<T> sums(shares * size);
    each_share(shares, [&](int64_t share) {
      gradients.add(share_begin(gradients.pieces(), shares, share),
                    share_begin(gradients.pieces(), shares, share + 1), sums.data() + share * size);
    });
    T* const to = static_cast<T*>(weight_grad.mutable_data_ptr());
    for (int64_t k = 0; k < conv.num_taps(); ++k)
      for (int64_t o = 0; o < conv.out; ++o) {
        T sum = 0;
        for (int64_t share = 0; share < shares; ++share) sum += sums[share * size + k * conv.out + o];
        to[o * conv.num_taps() + k] = sum;
      }
  });
  return {x_grad, weight_grad};
}

}  // namespace ttgraph
