// SPDX-License-Identifier: Apache-2.0
// The arithmetic of one proposal, stated once for both devices. Sums of exponentials arrive in
// float, as each device computes them; everything after them is double, so that a comparison with
// a threshold agrees with float64 arithmetic but for the last digits of those exponentials.
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

// A proposal after its logits are read: exponentials are relative to the largest logit.
struct ProposalScore {
  double objectness;  // p = sigmoid(o)
  double foreground;  // q = 1 - softmax(z)[background]
  double difference;  // d = p - q
};

// p from the logit o and exp(-|o|): the sign is handled outside of the exponential, so that it
// never overflows and a small p keeps its digits.
D2DEFENSE_INLINE double objectness_probability(float logit, float decay) {
  const double exponential = decay;
  return (logit >= 0.0f ? 1.0 : exponential) / (1.0 + exponential);
}

// q from the sum over the foreground classes and the background's term. The sum, not 1 - x: the
// subtraction would lose every digit of a small q.
D2DEFENSE_INLINE double foreground_probability(float foreground_sum, float background_term) {
  const double sum = foreground_sum;
  return sum / (sum + static_cast<double>(background_term));
}

D2DEFENSE_INLINE ProposalScore
proposal_score(float logit, float decay, float foreground_sum, float background_term) {
  ProposalScore score;
  score.objectness = objectness_probability(logit, decay);
  score.foreground = foreground_probability(foreground_sum, background_term);
  score.difference = score.objectness - score.foreground;
  return score;
}

D2DEFENSE_INLINE double inconsistency_of(double difference) {
  return difference < 0.0 ? -difference : difference;
}

// Bin of s in [0, 1]; 1 itself falls into the last one.
D2DEFENSE_INLINE int64_t histogram_bin(double inconsistency, int64_t num_bins) {
  const int64_t bin = static_cast<int64_t>(inconsistency * static_cast<double>(num_bins));
  return bin < num_bins ? bin : num_bins - 1;
}

// XYXY, pixels. Double: no finite float coordinates overflow an area.
struct Box {
  double x1, y1, x2, y2;
};

D2DEFENSE_INLINE double positive_part(double value) {
  return value > 0.0 ? value : 0.0;
}

// A box turned inside out has no area.
D2DEFENSE_INLINE double box_area(const Box& box) {
  return positive_part(box.x2 - box.x1) * positive_part(box.y2 - box.y1);
}

// Areas come with the boxes, since each serves many pairs. A pair without area has IoU 0.
D2DEFENSE_INLINE double intersection_over_union(
    const Box& a, double a_area, const Box& b, double b_area) {
  const double width = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
  const double height = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
  const double intersection = positive_part(width) * positive_part(height);
  const double both = a_area + b_area - intersection;
  return both > 0.0 ? intersection / both : 0.0;
}

// NaN where a coordinate is NaN or infinite, 0 elsewhere.
D2DEFENSE_INLINE float nonfinite_marker(const float* box) {
  return box[0] * 0.0f + box[1] * 0.0f + box[2] * 0.0f + box[3] * 0.0f;
}

// A target with a NaN or infinite coordinate becomes a box without area, which matches nothing.
D2DEFENSE_INLINE Box target_box(const float* box) {
  const float marker = nonfinite_marker(box);
  if (marker != marker) {
    return Box{0.0, 0.0, 0.0, 0.0};
  }
  return Box{box[0], box[1], box[2], box[3]};
}

}  // namespace d2defense
