// SPDX-License-Identifier: Apache-2.0
// Vectors of one register each, in the vector language that GCC and Clang share: Vectors<64> for
// AVX-512, Vectors<32> for AVX2, Vectors<16> for every other processor. One source for all, without
// intrinsics.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <utility>

#define D2DEFENSE_VECTOR_INLINE inline __attribute__((always_inline))

namespace d2defense {

// The registers of one width. Spelled out a width at a time: compilers refuse to convert vectors
// whose size is a template's parameter.
template <int Bytes>
struct Registers;

template <>
struct Registers<16> {
  typedef float Float __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint16_t HalfBits __attribute__((vector_size(8)));
  typedef double Double __attribute__((vector_size(16)));
  typedef uint64_t DoubleBits __attribute__((vector_size(16)));
  // As many floats as there are doubles.
  typedef float FewFloats __attribute__((vector_size(8)));

  static D2DEFENSE_VECTOR_INLINE Bits widen(HalfBits vector) {
    return __builtin_convertvector(vector, Bits);
  }
  static D2DEFENSE_VECTOR_INLINE Double widen(FewFloats vector) {
    return __builtin_convertvector(vector, Double);
  }
};

template <>
struct Registers<32> {
  typedef float Float __attribute__((vector_size(32)));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  typedef uint16_t HalfBits __attribute__((vector_size(16)));
  typedef double Double __attribute__((vector_size(32)));
  typedef uint64_t DoubleBits __attribute__((vector_size(32)));
  // As many floats as there are doubles.
  typedef float FewFloats __attribute__((vector_size(16)));

  static D2DEFENSE_VECTOR_INLINE Bits widen(HalfBits vector) {
    return __builtin_convertvector(vector, Bits);
  }
  static D2DEFENSE_VECTOR_INLINE Double widen(FewFloats vector) {
    return __builtin_convertvector(vector, Double);
  }
};

template <>
struct Registers<64> {
  typedef float Float __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  typedef uint16_t HalfBits __attribute__((vector_size(32)));
  typedef double Double __attribute__((vector_size(64)));
  typedef uint64_t DoubleBits __attribute__((vector_size(64)));
  // As many floats as there are doubles.
  typedef float FewFloats __attribute__((vector_size(32)));

  static D2DEFENSE_VECTOR_INLINE Bits widen(HalfBits vector) {
    return __builtin_convertvector(vector, Bits);
  }
  static D2DEFENSE_VECTOR_INLINE Double widen(FewFloats vector) {
    return __builtin_convertvector(vector, Double);
  }
};

template <int Bytes>
struct Vectors : Registers<Bytes> {
  static constexpr int kFloats = Bytes / sizeof(float);
  static constexpr int kDoubles = Bytes / sizeof(double);
  using typename Registers<Bytes>::Float;
  using typename Registers<Bytes>::Bits;
  using typename Registers<Bytes>::HalfBits;
  using typename Registers<Bytes>::Double;
  using typename Registers<Bytes>::FewFloats;
  using Registers<Bytes>::widen;

  template <typename Vector, typename Value>
  static D2DEFENSE_VECTOR_INLINE Vector read(const Value* address) {
    Vector vector;
    std::memcpy(&vector, address, sizeof(vector));
    return vector;
  }

  static D2DEFENSE_VECTOR_INLINE Float load(const float* address) {
    return read<Float>(address);
  }

  static D2DEFENSE_VECTOR_INLINE Float load(const c10::BFloat16* address) {
    const HalfBits bits = read<HalfBits>(address);
    return (Float)(widen(bits) << 16);
  }

  // The exponent is moved by a multiplication, which also makes subnormal numbers normal; what was
  // infinite or NaN gets a full exponent again.
  static D2DEFENSE_VECTOR_INLINE Float load(const c10::Half* address) {
    const Bits bits = widen(read<HalfBits>(address));
    const Bits magnitude = bits & 0x7fffu;
    const Float scaled = (Float)(magnitude << 13) * 0x1p112f;
    const Bits special = (Bits)(magnitude >= 0x7c00u) & 0x7f800000u;
    return (Float)((Bits)scaled | special | ((bits & 0x8000u) << 16));
  }

  static D2DEFENSE_VECTOR_INLINE Double load_double(const double* address) {
    return read<Double>(address);
  }

  static D2DEFENSE_VECTOR_INLINE Double load_double(const float* address) {
    return widen(read<FewFloats>(address));
  }

  template <typename Vector, typename Value>
  static D2DEFENSE_VECTOR_INLINE void store(Value* address, Vector vector) {
    std::memcpy(address, &vector, sizeof(vector));
  }

  static D2DEFENSE_VECTOR_INLINE void store_logits(float* address, Float vector) {
    store(address, vector);
  }

  template <typename Logit>
  static D2DEFENSE_VECTOR_INLINE void store_logits(Logit* address, Float vector) {
    for (int lane = 0; lane < kFloats; ++lane) {
      address[lane] = static_cast<Logit>(vector[lane]);
    }
  }

  // The same value, of which the compiler forgets how it came about. GCC merges selections that
  // follow each other into logic on masks, which it then works out lane by lane.
  static D2DEFENSE_VECTOR_INLINE Double opaque(Double vector) {
#if defined(__x86_64__)
    asm("" : "+v"(vector));
#endif
    return vector;
  }

  // exp(x) for x <= 0 to a relative error of 1e-7 near 0, which grows to 4e-7 at -20. Below -87 it
  // is exp(-87), 1.6e-38.
  static D2DEFENSE_VECTOR_INLINE Float exponential(Float x) {
    constexpr float kLog2E = 1.44269504f;
    // Adding it leaves the nearest integer in the low bits of the sum.
    constexpr float kRound = 12582912.0f;
    const Float lowest = Float{} - 87.0f;
    x = x < lowest ? lowest : x;
    const Float rounded = x * kLog2E + kRound;
    const Float fraction = x * kLog2E - (rounded - kRound);
    // Minimax polynomial for 2^r on [-1/2, 1/2] with value 1 at 0.
    Float power = Float{} + 0.0013264727f;
    power = power * fraction + 0.0096715126f;
    power = power * fraction + 0.0555073374f;
    power = power * fraction + 0.2402224209f;
    power = power * fraction + 0.6931469776f;
    power = power * fraction + 1.0f;
    return (Float)((Bits)power + ((Bits)rounded << 23));
  }
};

// The vector with lanes i and i ^ Distance exchanged.
template <int Distance, typename Index, typename Vector, size_t... Lane>
D2DEFENSE_VECTOR_INLINE Vector exchange(Vector vector, std::index_sequence<Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(vector, vector, (Lane ^ Distance)...);
#else
  return __builtin_shuffle(vector, Index{(Lane ^ Distance)...});
#endif
}

// Lane i ^ Flip of a where i has not the bit Distance, of b where it has.
template <int Distance, int Flip, typename Index, typename Vector, size_t... Lane>
D2DEFENSE_VECTOR_INLINE Vector join(Vector a, Vector b, std::index_sequence<Lane...>) {
  constexpr size_t kCount = sizeof...(Lane);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((Lane ^ Flip) + (Lane & Distance ? kCount : 0))...);
#else
  return __builtin_shuffle(a, b, Index{((Lane ^ Flip) + (Lane & Distance ? kCount : 0))...});
#endif
}

struct Larger {
  template <typename Vector>
  D2DEFENSE_VECTOR_INLINE Vector operator()(Vector a, Vector b) const {
    return a > b ? a : b;
  }
};

struct Sum {
  template <typename Vector>
  D2DEFENSE_VECTOR_INLINE Vector operator()(Vector a, Vector b) const {
    return a + b;
  }
};

// Every lane of the result holds the combination of all lanes. Index is the unsigned integer vector
// with the lanes of Vector.
template <typename Index, int Distance, typename Vector, typename Operation>
D2DEFENSE_VECTOR_INLINE Vector combine_lanes(Vector vector, Operation operation) {
  constexpr int kCount = sizeof(Vector) / sizeof(vector[0]);
  if constexpr (Distance < kCount) {
    vector = combine_lanes<Index, 2 * Distance>(vector, operation);
    const auto lanes = std::make_index_sequence<kCount>{};
    vector = operation(vector, exchange<Distance, Index>(vector, lanes));
  }
  return vector;
}

// Lane i of the result holds the combination of all lanes of rows[i]: each step joins two vectors,
// half of the lanes of either, so that no lane is worked on in vain.
template <typename Index, int Distance = 1, typename Vector, typename Operation>
D2DEFENSE_VECTOR_INLINE Vector combine_rows(const Vector* rows, Operation operation) {
  constexpr int kCount = sizeof(Vector) / sizeof(rows[0][0]);
  if constexpr (Distance == kCount) {
    return rows[0];
  } else {
    const Vector a = combine_rows<Index, 2 * Distance>(rows, operation);
    const Vector b = combine_rows<Index, 2 * Distance>(rows + Distance, operation);
    const auto lanes = std::make_index_sequence<kCount>{};
    return operation(
        join<Distance, 0, Index>(a, b, lanes), join<Distance, Distance, Index>(a, b, lanes));
  }
}

}  // namespace d2defense
