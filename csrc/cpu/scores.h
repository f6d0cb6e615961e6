// SPDX-License-Identifier: Apache-2.0
// p, q and d of sixteen proposals, one a lane, from the maxima and sums of their rows.
#pragma once

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "chunks.h"
#include "vector.h"

namespace d2defense {

// What is true or false is 1 or 0 in a double: comparisons that only select numbers stay in
// registers of any kind.
struct Scores {
  int64_t begin;
  int64_t lanes;
  alignas(64) float logit[kLanes];
  alignas(64) float background[kLanes];
  alignas(64) float largest_logit[kLanes];
  alignas(64) float foreground_sum[kLanes];  // NaN where the proposal is not finite
  alignas(64) float background_term[kLanes];
  alignas(64) float decay[kLanes];
  alignas(64) double objectness[kLanes];
  alignas(64) double foreground[kLanes];
  alignas(64) double difference[kLanes];
  alignas(64) double finite[kLanes];
};

alignas(64) constexpr double kLaneNumbers[kLanes] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <int Bytes>
struct ScoreLanes {
  using V = Vectors<Bytes>;
  using Float = typename V::Float;
  using Bits = typename V::Bits;
  using Double = typename V::Double;

  static D2DEFENSE_VECTOR_INLINE Double number(double value) {
    return V::opaque(Double{} + value);
  }

  // The exponentials of a proposal other than those of its foreground classes.
  static D2DEFENSE_VECTOR_INLINE void exponentiate(Scores& scores) {
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      const Float magnitude = (Float)((Bits)V::load(scores.logit + lane) & 0x7fffffffu);
      V::store(scores.decay + lane, V::exponential(-magnitude));
      const Float background = V::load(scores.background + lane);
      const Float shifted = background - V::load(scores.largest_logit + lane);
      V::store(scores.background_term + lane, V::exponential(shifted));
    }
  }

  // Proposals that are not finite score zero: of zero and NaN, zero is what larger_of returns.
  static D2DEFENSE_VECTOR_INLINE void score(Scores& scores) {
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double sum = V::load_double(scores.foreground_sum + lane);
      const Double zero_or_nan = sum * 0.0;
      const Double objectness = objectness_probability(
          V::load_double(scores.logit + lane), V::load_double(scores.decay + lane));
      const Double foreground =
          foreground_probability(sum, V::load_double(scores.background_term + lane));
      const Double p = V::opaque(larger_of(objectness + zero_or_nan, Double{}));
      const Double q = V::opaque(larger_of(foreground, Double{}));
      V::store(scores.finite + lane, sum == sum ? number(1.0) : Double{});
      V::store(scores.objectness + lane, p);
      V::store(scores.foreground + lane, q);
      V::store(scores.difference + lane, p - q);
    }
  }

  // Which of the lanes from `lane` on count for tau, where the first `leading_lanes` may.
  static D2DEFENSE_VECTOR_INLINE Double significant(
      const InconsistencyInputs& inputs, const Scores& scores, int64_t leading_lanes, int lane) {
    const Double leading = number(static_cast<double>(leading_lanes));
    const Double leads =
        V::opaque(V::load_double(kLaneNumbers + lane) < leading ? number(1.0) : Double{});
    const Double s = inconsistency_of(V::load_double(scores.difference + lane));
    const Double finite = V::load_double(scores.finite + lane);
    return V::opaque(s > number(inputs.epsilon) ? leads * finite : Double{});
  }

  static D2DEFENSE_VECTOR_INLINE Double
  confident(const InconsistencyInputs& inputs, const Scores& scores, int lane) {
    const Double p = V::load_double(scores.objectness + lane);
    const Double finite = V::load_double(scores.finite + lane);
    return V::opaque(p > number(inputs.objectness_floor) ? finite : Double{});
  }
};

}  // namespace d2defense
