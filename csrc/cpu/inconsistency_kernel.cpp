// SPDX-License-Identifier: Apache-2.0
// The walk over memory on a CPU. The unit of work is a chunk: up to kChunkRows proposals of one
// group, counted from the group's start. What a chunk yields depends on nothing else, and chunks
// are added up in their order, so the number of threads leaves no trace in the result.

// Every function on vectors is inlined: none crosses a call, so its calling convention is nobody's
// concern.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "vector.h"

namespace d2defense {
namespace {

// Proposals handled together: a register of floats at its widest.
constexpr int kLanes = 16;
constexpr int64_t kChunkRows = 4096;
static_assert(kChunkRows % kLanes == 0, "a chunk is made of whole blocks");

struct Chunk {
  int64_t group;
  int64_t begin;
  int64_t end;
};

// What a chunk adds to its group.
struct ChunkSums {
  double tau_sum = 0.0;
  double confident_sum = 0.0;
  double score_max = 0.0;
  int64_t tau_count = 0;
  int64_t confident_count = 0;
  int64_t nonfinite = 0;
  int64_t unmatched_foreground = 0;
};

// Where a chunk's matches and histogram go: straight into the group's rows of the outputs, or,
// where several chunks share a group, into memory of the thread first.
struct ChunkTargets {
  float* objectness;
  float* foreground;
  float* true_class;
  int32_t* matches;
  int64_t* histogram;
};

struct TargetGeometry {
  Box<double> box;
  double area;
};

// Kept by a thread from chunk to chunk.
struct Scratch {
  std::vector<TargetGeometry> geometry;
  std::vector<char> rows;  // of a block, where class_logits has them in columns
  std::vector<float> maxima;
  std::vector<int32_t> matches;
  std::vector<int64_t> histogram;
};

// Sixteen proposals, one a lane. What is true or false is 1 or 0 in a double: comparisons that only
// select numbers stay in registers of any kind.
struct Block {
  int64_t begin;
  int64_t lanes;
  alignas(64) float logit[kLanes];
  alignas(64) float largest_logit[kLanes];
  alignas(64) float foreground_sum[kLanes];  // NaN where the proposal is not finite
  alignas(64) float background[kLanes];
  alignas(64) float background_term[kLanes];
  alignas(64) float decay[kLanes];
  alignas(64) double boxes[4][kLanes];
  alignas(64) double area[kLanes];
  alignas(64) double objectness[kLanes];
  alignas(64) double foreground[kLanes];
  alignas(64) double difference[kLanes];
  alignas(64) double finite[kLanes];
  alignas(64) double unmatched[kLanes];  // IoU with every target so far is below kUnmatchedIou
  alignas(64) double matched[kLanes];    // IoU with this target reaches the threshold
};

// Lane sums of a chunk; counts are exact in double.
struct LaneSums {
  alignas(64) double tau_sum[kLanes];
  alignas(64) double tau_count[kLanes];
  alignas(64) double confident_sum[kLanes];
  alignas(64) double confident_count[kLanes];
  alignas(64) double score_max[kLanes];
  alignas(64) double finite[kLanes];
  alignas(64) double unmatched_foreground[kLanes];
};

// Of a vector of w lanes, the first n are set when it starts n lanes before the end of the ones,
// and the last n when it ends n lanes after their beginning.
constexpr uint32_t kOnes = ~uint32_t{0};
constexpr uint32_t kLaneMasks[3 * kLanes] = {
    0,     0,     0,     0,     0,     0,     0,     0,     0,     0,     0,     0,
    0,     0,     0,     0,     kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, kOnes,
    kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, 0,     0,     0,     0,
    0,     0,     0,     0,     0,     0,     0,     0,     0,     0,     0,     0};

alignas(64) constexpr double kLaneNumbers[kLanes] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// A chunk's work, compiled for one register width.
template <typename Logit, int Bytes>
class ChunkReducer {
  using V = Vectors<Bytes>;
  using Float = typename V::Float;
  using Bits = typename V::Bits;
  using Double = typename V::Double;
  using LaneIndex = typename V::DoubleBits;

 public:
  static D2DEFENSE_VECTOR_INLINE ChunkSums reduce(
      const InconsistencyInputs& inputs,
      const Chunk& chunk,
      const ChunkTargets& out,
      Scratch& scratch) {
    const int64_t first_target = inputs.target_offsets[chunk.group];
    const int64_t targets = inputs.target_offsets[chunk.group + 1] - first_target;
    scratch.geometry.resize(targets);
    for (int64_t target = 0; target < targets; ++target) {
      const Box<double> box = target_box(inputs.target_boxes + 4 * (first_target + target));
      scratch.geometry[target] = TargetGeometry{box, box_area(box)};
    }
    const int64_t group_begin = inputs.proposal_offsets[chunk.group];
    const bool all_lead = inputs.topk == 0 || inputs.topk > chunk.end - group_begin;
    const int64_t leading_end = all_lead ? chunk.end : group_begin + inputs.topk;
    LaneSums sums{};
    Block block{};
    for (block.begin = chunk.begin; block.begin < chunk.end; block.begin += kLanes) {
      block.lanes = std::min<int64_t>(kLanes, chunk.end - block.begin);
      read_logits(inputs, scratch, block);
      read_boxes(inputs, block);
      score(block);
      for (int64_t target = 0; target < targets; ++target) {
        match(inputs, scratch.geometry[target], target, first_target + target, out, block);
      }
      const int64_t leading_lanes = std::min(block.lanes, leading_end - block.begin);
      add(inputs, block, leading_lanes, sums);
      if (inputs.num_bins > 0) {
        fill_histogram(block, leading_lanes, inputs.num_bins, out.histogram);
      }
    }
    ChunkSums result;
    result.tau_sum = total(sums.tau_sum);
    result.confident_sum = total(sums.confident_sum);
    result.score_max = *std::max_element(sums.score_max, sums.score_max + kLanes);
    result.tau_count = static_cast<int64_t>(total(sums.tau_count));
    result.confident_count = static_cast<int64_t>(total(sums.confident_count));
    result.nonfinite = chunk.end - chunk.begin - static_cast<int64_t>(total(sums.finite));
    result.unmatched_foreground = static_cast<int64_t>(total(sums.unmatched_foreground));
    return result;
  }

 private:
  // Asks for the row that lies `distance` logits ahead, perhaps beyond the last: rows are too short
  // for the processor to notice in time that it will need the next ones.
  static D2DEFENSE_VECTOR_INLINE void prefetch(
      const Logit* row, int64_t distance, int64_t classes) {
    constexpr uintptr_t kCacheLine = 64;
    constexpr uintptr_t kEnough = 1024;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(row) + distance * sizeof(Logit);
    const uintptr_t bytes = std::min<uintptr_t>(kEnough, (classes + 1) * sizeof(Logit));
    for (uintptr_t offset = 0; offset < bytes; offset += kCacheLine) {
      __builtin_prefetch(reinterpret_cast<const void*>(begin + offset));
    }
  }

  // The foreground columns of a row beyond the last whole register, in some lanes of one.
  struct Rest {
    Float logits;  // other lanes: what may take part in a maximum
    Bits mask;     // of the lanes that count
  };

  // `readable` logits can be read from `row` on.
  static D2DEFENSE_VECTOR_INLINE Rest
  read_rest(const Logit* row, int64_t classes, int64_t readable) {
    const int64_t count = classes % V::kFloats;
    if (classes > V::kFloats) {
      // Lanes that were read before; a maximum does not mind.
      const Bits mask = V::template read<Bits>(kLaneMasks + kLanes - V::kFloats + count);
      return Rest{V::load(row + classes - V::kFloats), mask};
    }
    const Bits mask = V::template read<Bits>(kLaneMasks + 2 * kLanes - count);
    const Float background = Float{} + static_cast<float>(row[classes]);
    Float logits;
    if (readable >= V::kFloats) {
      logits = V::load(row);
    } else {
      Logit padded[V::kFloats] = {};
      std::copy(row, row + count, padded);
      logits = V::load(padded);
    }
    return Rest{(Float)(((Bits)logits & mask) | ((Bits)background & ~mask)), mask};
  }

  // First walk over a row: its largest logit, lane by lane, and zero, or NaN where a logit is NaN
  // or infinite.
  static D2DEFENSE_VECTOR_INLINE void find_largest(
      const Logit* row, int64_t classes, int64_t readable, Float& largest, Float& sum) {
    const float background = static_cast<float>(row[classes]);
    const int64_t whole = classes / V::kFloats * V::kFloats;
    Float maximum = Float{} + background;
    Float zero = maximum * 0.0f;
    for (int64_t column = 0; column < whole; column += V::kFloats) {
      const Float logits = V::load(row + column);
      maximum = larger_of(maximum, logits);
      zero += logits * 0.0f;
    }
    if (whole < classes) {
      const Rest rest = read_rest(row, classes, readable);
      maximum = larger_of(maximum, rest.logits);
      zero += rest.logits * 0.0f;
    }
    largest = maximum;
    sum = zero;
  }

  // Second walk, over what the cache still holds: the exponentials of the foreground classes.
  static D2DEFENSE_VECTOR_INLINE void add_exponentials(
      const Logit* row, int64_t classes, int64_t readable, float largest_logit, Float& sum) {
    const int64_t whole = classes / V::kFloats * V::kFloats;
    const Float largest = Float{} + largest_logit;
    Float total = sum;
    for (int64_t column = 0; column < whole; column += V::kFloats) {
      total += V::exponential(V::load(row + column) - largest);
    }
    if (whole < classes) {
      const Rest rest = read_rest(row, classes, readable);
      total += (Float)((Bits)V::exponential(rest.logits - largest) & rest.mask);
    }
    sum = total;
  }

  static D2DEFENSE_VECTOR_INLINE void read_logits(
      const InconsistencyInputs& inputs, Scratch& scratch, Block& block) {
    const Logit* rows =
        static_cast<const Logit*>(inputs.class_logits) + block.begin * inputs.row_stride;
    const Logit* logits = static_cast<const Logit*>(inputs.objectness_logits) + block.begin;
    const int64_t classes = inputs.classes;
    int64_t row_stride = inputs.row_stride;
    int64_t rows_left = inputs.proposals - block.begin;
    if (inputs.column_stride != 1) {
      Logit* copy = reinterpret_cast<Logit*>(scratch.rows.data());
      for (int64_t lane = 0; lane < block.lanes; ++lane) {
        for (int64_t column = 0; column <= classes; ++column) {
          copy[lane * (classes + 1) + column] =
              rows[lane * row_stride + column * inputs.column_stride];
        }
      }
      rows = copy;
      row_stride = classes + 1;
      rows_left = block.lanes;
    }
    Float largest[kLanes];
    Float sums[kLanes];
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      const Logit* row = rows + lane * row_stride;
      const int64_t readable = (rows_left - 1 - lane) * row_stride + classes + 1;
      prefetch(row, kLanes * row_stride, classes);
      find_largest(row, classes, readable, largest[lane], sums[lane]);
      block.background[lane] = static_cast<float>(row[classes]);
      block.logit[lane] = static_cast<float>(logits[lane]);
    }
    for (int64_t lane = block.lanes; lane < kLanes; ++lane) {
      largest[lane] = Float{};
      sums[lane] = Float{} + std::numeric_limits<float>::quiet_NaN();
    }
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      V::store(block.largest_logit + lane, combine_rows<Bits>(largest + lane, Larger()));
    }
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      const Logit* row = rows + lane * row_stride;
      const int64_t readable = (rows_left - 1 - lane) * row_stride + classes + 1;
      add_exponentials(row, classes, readable, block.largest_logit[lane], sums[lane]);
    }
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      const Float logit = V::load(block.logit + lane);
      const Float magnitude = (Float)((Bits)logit & 0x7fffffffu);
      V::store(block.decay + lane, V::exponential(-magnitude));
      const Float background = V::load(block.background + lane);
      const Float shifted = background - V::load(block.largest_logit + lane);
      V::store(block.background_term + lane, V::exponential(shifted));
      const Float sum = combine_rows<Bits>(sums + lane, Sum());
      V::store(block.foreground_sum + lane, sum + logit * 0.0f);
    }
  }

  static D2DEFENSE_VECTOR_INLINE void read_boxes(const InconsistencyInputs& inputs, Block& block) {
    const float* boxes = inputs.proposal_boxes + 4 * block.begin;
    float padded[4 * kLanes];
    alignas(64) float edges[4][kLanes];
    if (block.lanes < kLanes) {
      std::fill(std::copy(boxes, boxes + 4 * block.lanes, padded), padded + 4 * kLanes, 0.0f);
      boxes = padded;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int edge = 0; edge < 4; ++edge) {
        edges[edge][lane] = boxes[4 * lane + edge];
      }
    }
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      Float sum = V::load(block.foreground_sum + lane);
      for (int edge = 0; edge < 4; ++edge) {
        sum += V::load(edges[edge] + lane) * 0.0f;
      }
      V::store(block.foreground_sum + lane, sum);
    }
    for (int edge = 0; edge < 4; ++edge) {
      for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
        V::store(block.boxes[edge] + lane, V::load_double(edges[edge] + lane));
      }
    }
  }

  static D2DEFENSE_VECTOR_INLINE Box<Double> boxes_of(const Block& block, int lane) {
    return Box<Double>{
        V::load_double(block.boxes[0] + lane),
        V::load_double(block.boxes[1] + lane),
        V::load_double(block.boxes[2] + lane),
        V::load_double(block.boxes[3] + lane)};
  }

  static D2DEFENSE_VECTOR_INLINE Double number(double value) {
    return V::opaque(Double{} + value);
  }

  // Proposals that are not finite score zero: of zero and NaN, zero is what larger_of returns.
  static D2DEFENSE_VECTOR_INLINE void score(Block& block) {
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double sum = V::load_double(block.foreground_sum + lane);
      const Double zero_or_nan = sum * 0.0;
      const Double objectness = objectness_probability(
          V::load_double(block.logit + lane), V::load_double(block.decay + lane));
      const Double foreground =
          foreground_probability(sum, V::load_double(block.background_term + lane));
      const Double p = V::opaque(larger_of(objectness + zero_or_nan, Double{}));
      const Double q = V::opaque(larger_of(foreground, Double{}));
      V::store(block.finite + lane, sum == sum ? number(1.0) : Double{});
      V::store(block.objectness + lane, p);
      V::store(block.foreground + lane, q);
      V::store(block.difference + lane, p - q);
      V::store(block.unmatched + lane, number(1.0));
      V::store(block.area + lane, box_area(boxes_of(block, lane)));
    }
  }

  // `index` is the target's place in the group, `target` in all.
  static D2DEFENSE_VECTOR_INLINE void match(
      const InconsistencyInputs& inputs,
      const TargetGeometry& geometry,
      int64_t index,
      int64_t target,
      const ChunkTargets& out,
      Block& block) {
    const Box<Double> box{
        number(geometry.box.x1),
        number(geometry.box.y1),
        number(geometry.box.x2),
        number(geometry.box.y2)};
    Double count{};
    Double objectness{};
    Double foreground{};
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double overlap = V::opaque(intersection_over_union(
          boxes_of(block, lane), V::load_double(block.area + lane), box, number(geometry.area)));
      const Double unmatched = V::load_double(block.unmatched + lane);
      V::store(block.unmatched + lane, overlap < number(kUnmatchedIou) ? unmatched : Double{});
      const Double finite = V::load_double(block.finite + lane);
      const Double matched = V::opaque(overlap >= number(inputs.iou_threshold) ? finite : Double{});
      V::store(block.matched + lane, matched);
      count += matched;
      objectness = larger_of(objectness, matched * V::load_double(block.objectness + lane));
      foreground = larger_of(foreground, matched * V::load_double(block.foreground + lane));
    }
    const double matches = combine_lanes<LaneIndex, 1>(count, Sum())[0];
    if (matches == 0.0) {
      return;
    }
    objectness = combine_lanes<LaneIndex, 1>(objectness, Larger());
    foreground = combine_lanes<LaneIndex, 1>(foreground, Larger());
    out.matches[index] += static_cast<int32_t>(matches);
    out.objectness[index] = std::max(out.objectness[index], static_cast<float>(objectness[0]));
    out.foreground[index] = std::max(out.foreground[index], static_cast<float>(foreground[0]));
    const int64_t true_class = inputs.target_classes[target];
    if (true_class >= 0) {
      out.true_class[index] =
          std::max(out.true_class[index], largest_probability(inputs, block, true_class));
    }
  }

  // The largest softmax probability of a class over the matched lanes.
  static D2DEFENSE_VECTOR_INLINE float largest_probability(
      const InconsistencyInputs& inputs, const Block& block, int64_t column) {
    const Logit* logits = static_cast<const Logit*>(inputs.class_logits) +
                          block.begin * inputs.row_stride + column * inputs.column_stride;
    alignas(64) float term[kLanes] = {};
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      term[lane] = static_cast<float>(logits[lane * inputs.row_stride]);
    }
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      // At most 0, but for lanes that do not match and may hold anything.
      const Float shifted = V::load(term + lane) - V::load(block.largest_logit + lane);
      V::store(term + lane, V::exponential(smaller_of(shifted, Float{})));
    }
    Double largest{};
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double sum = V::load_double(block.foreground_sum + lane) +
                         V::load_double(block.background_term + lane);
      const Double matched = V::load_double(block.matched + lane);
      const Double probability = V::load_double(term + lane) / sum;
      largest = larger_of(largest, matched > Double{} ? probability : Double{});
    }
    return static_cast<float>(combine_lanes<LaneIndex, 1>(largest, Larger())[0]);
  }

  static D2DEFENSE_VECTOR_INLINE void add(
      const InconsistencyInputs& inputs,
      const Block& block,
      int64_t leading_lanes,
      LaneSums& sums) {
    const Double one = number(1.0);
    const Double leading = number(static_cast<double>(leading_lanes));
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double finite = V::load_double(block.finite + lane);
      const Double p = V::load_double(block.objectness + lane);
      const Double q = V::load_double(block.foreground + lane);
      const Double d = V::load_double(block.difference + lane);
      const Double s = inconsistency_of(d);
      const Double leads =
          V::opaque(V::load_double(kLaneNumbers + lane) < leading ? one : Double{});
      const Double significant = V::opaque(s > number(inputs.epsilon) ? leads * finite : Double{});
      const Double confident = V::opaque(p > number(inputs.objectness_floor) ? finite : Double{});
      const Double alone =
          q > number(kForegroundFloor) ? V::load_double(block.unmatched + lane) : Double{};
      const Double largest = V::load_double(sums.score_max + lane);
      V::store(sums.score_max + lane, larger_of(largest, s));
      add_to(sums.tau_sum + lane, significant * s);
      add_to(sums.tau_count + lane, significant);
      add_to(sums.confident_sum + lane, confident * d);
      add_to(sums.confident_count + lane, confident);
      add_to(sums.finite + lane, finite);
      add_to(sums.unmatched_foreground + lane, alone);
    }
  }

  static D2DEFENSE_VECTOR_INLINE void add_to(double* sums, Double vector) {
    V::store(sums, V::load_double(sums) + vector);
  }

  static D2DEFENSE_VECTOR_INLINE void fill_histogram(
      const Block& block, int64_t leading_lanes, int64_t num_bins, int64_t* histogram) {
    for (int64_t lane = 0; lane < leading_lanes; ++lane) {
      if (block.finite[lane] != 0.0) {
        ++histogram[histogram_bin(inconsistency_of(block.difference[lane]), num_bins)];
      }
    }
  }

  static D2DEFENSE_VECTOR_INLINE double total(const double (&lanes)[kLanes]) {
    double sum = 0.0;
    for (const double value : lanes) {
      sum += value;
    }
    return sum;
  }
};

template <typename Logit>
using ChunkKernel =
    ChunkSums (*)(const InconsistencyInputs&, const Chunk&, const ChunkTargets&, Scratch&);

// One entry an instruction set: the reducer is inlined into it and compiled for it.
template <typename Logit>
ChunkSums reduce_chunk_baseline(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  return ChunkReducer<Logit, 16>::reduce(inputs, chunk, out, scratch);
}

#if defined(__x86_64__)
template <typename Logit>
__attribute__((target("avx2,fma"))) ChunkSums reduce_chunk_avx2(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  return ChunkReducer<Logit, 32>::reduce(inputs, chunk, out, scratch);
}

#if defined(__clang__)
#define D2DEFENSE_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#else
#define D2DEFENSE_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"
#endif

template <typename Logit>
__attribute__((target(D2DEFENSE_AVX512))) ChunkSums reduce_chunk_avx512(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  return ChunkReducer<Logit, 64>::reduce(inputs, chunk, out, scratch);
}
#endif

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

InstructionSet widest_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kBaseline;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kBaseline:
      break;
  }
  return "baseline";
}

InstructionSet choose_instruction_set() {
  const InstructionSet widest = widest_instruction_set();
  const char* wanted = std::getenv("D2DEFENSE_CPU_CAPABILITY");
  if (wanted != nullptr) {
    for (const InstructionSet set : {InstructionSet::kBaseline, InstructionSet::kAvx2}) {
      if (set < widest && std::string(wanted) == name_of(set)) {
        return set;
      }
    }
  }
  return widest;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose_instruction_set();
  return chosen;
}

template <typename Logit>
ChunkKernel<Logit> chunk_kernel() {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return &reduce_chunk_avx512<Logit>;
    case InstructionSet::kAvx2:
      return &reduce_chunk_avx2<Logit>;
    case InstructionSet::kBaseline:
      break;
  }
#endif
  return &reduce_chunk_baseline<Logit>;
}

std::vector<Chunk> split_into_chunks(const InconsistencyInputs& inputs) {
  std::vector<Chunk> chunks;
  for (int64_t group = 0; group < inputs.groups; ++group) {
    const int64_t end = inputs.proposal_offsets[group + 1];
    for (int64_t begin = inputs.proposal_offsets[group]; begin < end; begin += kChunkRows) {
      chunks.push_back(Chunk{group, begin, std::min(end, begin + kChunkRows)});
    }
  }
  return chunks;
}

void initialise(const InconsistencyInputs& inputs, const InconsistencyOutputs& outputs) {
  std::fill_n(outputs.tau_sum, inputs.groups, 0.0);
  std::fill_n(outputs.tau_count, inputs.groups, 0);
  std::fill_n(outputs.confident_sum, inputs.groups, 0.0);
  std::fill_n(outputs.confident_count, inputs.groups, 0);
  std::fill_n(outputs.score_max, inputs.groups, 0.0f);
  std::fill_n(outputs.nonfinite, inputs.groups, 0);
  std::fill_n(outputs.histogram, inputs.groups * inputs.num_bins, 0);
  std::fill_n(outputs.target_objectness, inputs.targets, 0.0f);
  std::fill_n(outputs.target_foreground, inputs.targets, 0.0f);
  std::fill_n(outputs.target_matches, inputs.targets, 0);
  std::fill_n(outputs.unmatched_foreground, inputs.groups, 0);
  for (int64_t target = 0; target < inputs.targets; ++target) {
    outputs.target_true_class[target] =
        inputs.target_classes[target] < 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
}

ChunkTargets rows_of_group(
    const InconsistencyInputs& inputs, const InconsistencyOutputs& outputs, int64_t group) {
  const int64_t target = inputs.target_offsets[group];
  return ChunkTargets{
      outputs.target_objectness + target,
      outputs.target_foreground + target,
      outputs.target_true_class + target,
      outputs.target_matches + target,
      outputs.histogram + group * inputs.num_bins};
}

ChunkTargets rows_of_thread(Scratch& scratch, int64_t targets, int64_t num_bins) {
  scratch.maxima.assign(3 * targets, 0.0f);
  scratch.matches.assign(targets, 0);
  scratch.histogram.assign(num_bins, 0);
  float* maxima = scratch.maxima.data();
  return ChunkTargets{
      maxima,
      maxima + targets,
      maxima + 2 * targets,
      scratch.matches.data(),
      scratch.histogram.data()};
}

// Maxima and integers: the order in which chunks arrive does not matter.
void merge(
    const ChunkTargets& from,
    const ChunkTargets& into,
    const int64_t* target_classes,
    int64_t targets,
    int64_t num_bins) {
  for (int64_t i = 0; i < targets; ++i) {
    into.objectness[i] = std::max(into.objectness[i], from.objectness[i]);
    into.foreground[i] = std::max(into.foreground[i], from.foreground[i]);
    into.matches[i] += from.matches[i];
    if (target_classes[i] >= 0) {
      into.true_class[i] = std::max(into.true_class[i], from.true_class[i]);
    }
  }
  for (int64_t bin = 0; bin < num_bins; ++bin) {
    into.histogram[bin] += from.histogram[bin];
  }
}

template <typename Logit>
void run(const InconsistencyInputs& inputs, const InconsistencyOutputs& outputs) {
  initialise(inputs, outputs);
  const std::vector<Chunk> chunks = split_into_chunks(inputs);
  std::vector<ChunkSums> sums(chunks.size());
  const ChunkKernel<Logit> kernel = chunk_kernel<Logit>();
  std::mutex merging;

  // Rows are shared out evenly, and a chunk goes where its first row went.
  const int64_t grain = std::max<int64_t>(1, 65536 / (inputs.classes + 1));
  at::parallel_for(0, inputs.proposals, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    if (inputs.column_stride != 1) {
      scratch.rows.resize(kLanes * (inputs.classes + 1) * sizeof(Logit));
    }
    auto chunk = std::lower_bound(
        chunks.begin(), chunks.end(), begin, [](const Chunk& candidate, int64_t row) {
          return candidate.begin < row;
        });
    for (; chunk != chunks.end() && chunk->begin < end; ++chunk) {
      ChunkSums& result = sums[chunk - chunks.begin()];
      const ChunkTargets rows = rows_of_group(inputs, outputs, chunk->group);
      const int64_t* edges = inputs.proposal_offsets + chunk->group;
      if (edges[1] - edges[0] <= kChunkRows) {
        result = kernel(inputs, *chunk, rows, scratch);
        continue;
      }
      const int64_t first = inputs.target_offsets[chunk->group];
      const int64_t targets = inputs.target_offsets[chunk->group + 1] - first;
      const ChunkTargets own = rows_of_thread(scratch, targets, inputs.num_bins);
      result = kernel(inputs, *chunk, own, scratch);
      const std::lock_guard<std::mutex> lock(merging);
      merge(own, rows, inputs.target_classes + first, targets, inputs.num_bins);
    }
  });

  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t group = chunks[i].group;
    outputs.tau_sum[group] += sums[i].tau_sum;
    outputs.tau_count[group] += sums[i].tau_count;
    outputs.confident_sum[group] += sums[i].confident_sum;
    outputs.confident_count[group] += sums[i].confident_count;
    outputs.score_max[group] =
        std::max(outputs.score_max[group], static_cast<float>(sums[i].score_max));
    outputs.nonfinite[group] += sums[i].nonfinite;
    outputs.unmatched_foreground[group] += sums[i].unmatched_foreground;
  }
}

}  // namespace

void inconsistency_cpu_kernel(
    const InconsistencyInputs& inputs, const InconsistencyOutputs& outputs) {
  switch (inputs.logit_type) {
    case at::kHalf:
      return run<c10::Half>(inputs, outputs);
    case at::kBFloat16:
      return run<c10::BFloat16>(inputs, outputs);
    default:
      return run<float>(inputs, outputs);
  }
}

std::vector<std::string> compiled_instruction_sets() {
#if defined(__x86_64__)
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

std::string chosen_instruction_set() {
  return name_of(instruction_set());
}

}  // namespace d2defense
