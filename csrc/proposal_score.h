// SPDX-License-Identifier: Apache-2.0
// The arithmetic of one proposal, stated once for both devices. Exponentials and their sums are
// float, as each device computes them fastest; everything after them is double, so that comparisons
// with thresholds agree with float64 arithmetic but for the last digits of those exponentials.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define D2DEFENSE_INLINE __host__ __device__ __forceinline__
#else
// Always inlined, so that a caller compiled for a wider instruction set takes them along.
#define D2DEFENSE_INLINE inline __attribute__((always_inline))
#endif

namespace d2defense {

// q above which the box head says "object".
constexpr double kForegroundFloor = 0.5;
// IoU below which a proposal has nothing to do with a target.
constexpr double kUnmatchedIou = 0.1;

// The functions below take numbers as well as the compilers' vectors of numbers (Real is double or
// a vector of doubles), hence the selections in place of branches.

template <typename Real>
D2DEFENSE_INLINE Real larger_of(Real a, Real b) {
  return a > b ? a : b;
}

template <typename Real>
D2DEFENSE_INLINE Real smaller_of(Real a, Real b) {
  return a < b ? a : b;
}

// p = sigmoid(o) from the logit o and exp(-|o|): the sign is handled outside of the exponential,
// so that it never overflows and a small p keeps its digits.
template <typename Real>
D2DEFENSE_INLINE Real objectness_probability(Real logit, Real decay) {
  const Real one = Real{} + 1.0;
  return (logit >= Real{} ? one : decay) / (one + decay);
}

// q = 1 - softmax(z)[background] from the exponentials of the class logits relative to the
// largest: the sum over the foreground classes, and the background's. As a sum, not as 1 - x: the
// subtraction would lose every digit of a small q.
template <typename Real>
D2DEFENSE_INLINE Real foreground_probability(Real foreground_sum, Real background_term) {
  return foreground_sum / (foreground_sum + background_term);
}

// s = |d|.
template <typename Real>
D2DEFENSE_INLINE Real inconsistency_of(Real difference) {
  return difference < Real{} ? -difference : difference;
}

// dp/do from exp(-|o|). Not as p (1 - p): the subtraction would lose the digits of a p near 1.
template <typename Real>
D2DEFENSE_INLINE Real objectness_slope(Real decay) {
  const Real both = Real{} + 1.0 + decay;
  return decay / (both * both);
}

// softmax(z)[background], from what q is made of.
template <typename Real>
D2DEFENSE_INLINE Real background_probability(Real foreground_sum, Real background_term) {
  return background_term / (foreground_sum + background_term);
}

// Gradient of a loss with respect to a proposal's d, from those with respect to its group's tau_sum
// and confident_sum, each taken where the proposal counts for that sum. s = |d| counts where it is
// above epsilon >= 0, so d is not 0 there. Selected, since a gradient need not be finite.
template <typename Real>
D2DEFENSE_INLINE Real difference_gradient(
    Real difference,
    Real significant,
    Real confident,
    Real tau_sum_gradient,
    Real confident_sum_gradient) {
  const Real of_s = significant > Real{} ? tau_sum_gradient : Real{};
  const Real of_d = confident > Real{} ? confident_sum_gradient : Real{};
  return (difference < Real{} ? -of_s : of_s) + of_d;
}

// Gradient of a loss with respect to a row of class logits z, from those with respect to q (g_q)
// and to the probabilities pi_c of some foreground classes (g_c, their sum of g_c pi_c is S):
//   pi_j (g_q pi_b - S + g_j) for a foreground column j, -pi_b (g_q q + S) for the background b,
// since dq/dz_j = pi_b (pi_j - [j = b]) and dpi_c/dz_j = pi_c ([j = c] - pi_j).
template <typename Real>
struct RowGradient {
  Real common;      // g_q pi_b - S
  Real background;  // the background's logit
};

template <typename Real>
D2DEFENSE_INLINE RowGradient<Real> row_gradient(
    Real foreground_gradient, Real foreground, Real background_probability, Real class_sum) {
  return RowGradient<Real>{
      foreground_gradient * background_probability - class_sum,
      -background_probability * (foreground_gradient * foreground + class_sum)};
}

// Bin of s in [0, 1]; 1 itself falls into the last one.
D2DEFENSE_INLINE int64_t histogram_bin(double inconsistency, int64_t num_bins) {
  const int64_t bin = static_cast<int64_t>(inconsistency * static_cast<double>(num_bins));
  return bin < num_bins ? bin : num_bins - 1;
}

// XYXY, pixels. In double no finite float coordinates overflow an area.
template <typename Real>
struct Box {
  Real x1, y1, x2, y2;
};

// A box turned inside out has no area.
template <typename Real>
D2DEFENSE_INLINE Real box_area(const Box<Real>& box) {
  return larger_of(box.x2 - box.x1, Real{}) * larger_of(box.y2 - box.y1, Real{});
}

// Areas come with the boxes, since each serves many pairs. A pair without area has IoU 0.
template <typename Real>
D2DEFENSE_INLINE Real
intersection_over_union(const Box<Real>& a, Real a_area, const Box<Real>& b, Real b_area) {
  const Box<Real> common{
      larger_of(a.x1, b.x1), larger_of(a.y1, b.y1), smaller_of(a.x2, b.x2), smaller_of(a.y2, b.y2)};
  const Real intersection = box_area(common);
  const Real both = a_area + b_area - intersection;
  return both > Real{} ? intersection / both : Real{};
}

// NaN where a coordinate is NaN or infinite, 0 elsewhere.
D2DEFENSE_INLINE float nonfinite_marker(const float* box) {
  return box[0] * 0.0f + box[1] * 0.0f + box[2] * 0.0f + box[3] * 0.0f;
}

// A target with a NaN or infinite coordinate becomes a box without area, which matches nothing.
D2DEFENSE_INLINE Box<double> target_box(const float* box) {
  const float marker = nonfinite_marker(box);
  if (marker != marker) {
    return Box<double>{0.0, 0.0, 0.0, 0.0};
  }
  return Box<double>{box[0], box[1], box[2], box[3]};
}

}  // namespace d2defense
