// SPDX-License-Identifier: Apache-2.0
// Sixteen floats at a time, in the vector language that GCC and Clang share. The compiler splits
// them into whatever registers the calling function's instruction set has, on any processor, so
// that one source serves them all.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

// Every function here is inlined: no vector crosses a call, so its calling convention is nobody's
// concern.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define D2DEFENSE_VECTOR_INLINE inline __attribute__((always_inline))

namespace d2defense {

constexpr int kLanes = 16;

typedef float FloatVector __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t BitsVector __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t HalfBitsVector __attribute__((vector_size(kLanes * sizeof(uint16_t))));

template <typename Vector, typename Value>
D2DEFENSE_VECTOR_INLINE Vector load_as(const Value* address) {
  Vector vector;
  std::memcpy(&vector, address, sizeof(vector));
  return vector;
}

D2DEFENSE_VECTOR_INLINE FloatVector splat(float value) {
  return FloatVector{} + value;
}

D2DEFENSE_VECTOR_INLINE FloatVector load(const float* address) {
  return load_as<FloatVector>(address);
}

D2DEFENSE_VECTOR_INLINE FloatVector load(const c10::BFloat16* address) {
  const HalfBitsVector bits = load_as<HalfBitsVector>(address);
  return (FloatVector)(__builtin_convertvector(bits, BitsVector) << 16);
}

// The exponent is moved by a multiplication, which also makes subnormal numbers normal; what was
// infinite or NaN gets a full exponent again.
D2DEFENSE_VECTOR_INLINE FloatVector load(const c10::Half* address) {
  const BitsVector bits = __builtin_convertvector(load_as<HalfBitsVector>(address), BitsVector);
  const BitsVector magnitude = bits & 0x7fffu;
  const FloatVector scaled = (FloatVector)(magnitude << 13) * 0x1p112f;
  const BitsVector special = (BitsVector)(magnitude >= 0x7c00u) & 0x7f800000u;
  return (FloatVector)((BitsVector)scaled | special | ((bits & 0x8000u) << 16));
}

D2DEFENSE_VECTOR_INLINE void store(float* address, FloatVector vector) {
  std::memcpy(address, &vector, sizeof(vector));
}

D2DEFENSE_VECTOR_INLINE FloatVector larger(FloatVector a, FloatVector b) {
  return a > b ? a : b;
}

#if defined(__clang__)
#define D2DEFENSE_SHUFFLE(vector, ...) __builtin_shufflevector(vector, vector, __VA_ARGS__)
#else
#define D2DEFENSE_SHUFFLE(vector, ...) __builtin_shuffle(vector, BitsVector{__VA_ARGS__})
#endif

// The vector with its halves, quarters, pairs, neighbours exchanged: combined with each in turn,
// every lane holds the whole.
D2DEFENSE_VECTOR_INLINE FloatVector exchange8(FloatVector v) {
  return D2DEFENSE_SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
D2DEFENSE_VECTOR_INLINE FloatVector exchange4(FloatVector v) {
  return D2DEFENSE_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
D2DEFENSE_VECTOR_INLINE FloatVector exchange2(FloatVector v) {
  return D2DEFENSE_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
D2DEFENSE_VECTOR_INLINE FloatVector exchange1(FloatVector v) {
  return D2DEFENSE_SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

D2DEFENSE_VECTOR_INLINE FloatVector largest_everywhere(FloatVector v) {
  v = larger(v, exchange8(v));
  v = larger(v, exchange4(v));
  v = larger(v, exchange2(v));
  return larger(v, exchange1(v));
}

D2DEFENSE_VECTOR_INLINE float sum(FloatVector v) {
  v += exchange8(v);
  v += exchange4(v);
  v += exchange2(v);
  v += exchange1(v);
  return v[0];
}

// exp(x) for x <= 0 to a relative error of 1e-7 near 0, which grows to 4e-7 at -20. Below -87 it
// is exp(-87), 1.6e-38.
D2DEFENSE_VECTOR_INLINE FloatVector exponential(FloatVector x) {
  constexpr float kLog2E = 1.44269504f;
  // Adding it leaves the nearest integer in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  const FloatVector lowest = splat(-87.0f);
  x = x < lowest ? lowest : x;
  const FloatVector rounded = x * kLog2E + kRound;
  const FloatVector fraction = x * kLog2E - (rounded - kRound);
  // Minimax polynomial for 2^r on [-1/2, 1/2] with value 1 at 0.
  FloatVector power = splat(0.0013264727f);
  power = power * fraction + 0.0096715126f;
  power = power * fraction + 0.0555073374f;
  power = power * fraction + 0.2402224209f;
  power = power * fraction + 0.6931469776f;
  power = power * fraction + 1.0f;
  return (FloatVector)((BitsVector)power + ((BitsVector)rounded << 23));
}

}  // namespace d2defense
