// SPDX-License-Identifier: Apache-2.0
// The walk over memory on a CPU: chunk by chunk, and the chunks of a group are added up in their
// order.

// Every function on vectors is inlined: none crosses a call, so its calling convention is nobody's
// concern.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "chunks.h"
#include "instruction_set.h"
#include "scores.h"
#include "vector.h"

namespace d2defense {
namespace {

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
  float* maxima[kTargetMaxima];
  int64_t* maximum_rows[kTargetMaxima];  // null where no gradient will be asked for
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
  std::vector<int64_t> maximum_rows;
  std::vector<int32_t> matches;
  std::vector<int64_t> histogram;
};

struct Block : Scores {
  alignas(64) double boxes[4][kLanes];
  alignas(64) double area[kLanes];
  alignas(64) double unmatched[kLanes];    // IoU with every target so far is below kUnmatchedIou
  alignas(64) double matched[kLanes];      // IoU with this target reaches the threshold
  alignas(64) double probability[kLanes];  // of this target's class, where it is matched
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

// A chunk's work, compiled for one register width.
template <typename Logit, int Bytes>
class ChunkReducer {
  using V = Vectors<Bytes>;
  using Float = typename V::Float;
  using Bits = typename V::Bits;
  using Double = typename V::Double;
  using LaneIndex = typename V::DoubleBits;
  using Lanes = ScoreLanes<Bytes>;

 public:
  static D2DEFENSE_VECTOR_INLINE ChunkSums reduce(
      const InconsistencyInputs& inputs,
      const Chunk& chunk,
      const ChunkTargets& out,
      const InconsistencySaved& saved,
      Scratch& scratch) {
    const int64_t first_target = inputs.target_offsets[chunk.group];
    const int64_t targets = inputs.target_offsets[chunk.group + 1] - first_target;
    scratch.geometry.resize(targets);
    for (int64_t target = 0; target < targets; ++target) {
      const Box<double> box = target_box(inputs.target_boxes + 4 * (first_target + target));
      scratch.geometry[target] = TargetGeometry{box, box_area(box)};
    }
    LaneSums sums{};
    Block block{};
    for (block.begin = chunk.begin; block.begin < chunk.end; block.begin += kLanes) {
      block.lanes = std::min<int64_t>(kLanes, chunk.end - block.begin);
      read_logits(inputs, scratch, block);
      read_boxes(inputs, block);
      Lanes::score(block);
      if (saved.largest_logit != nullptr) {
        save_rows(block, saved);
      }
      for (int64_t target = 0; target < targets; ++target) {
        match(inputs, scratch.geometry[target], target, first_target + target, out, block);
      }
      const int64_t leading_lanes =
          std::min(block.lanes, leading_rows(inputs, chunk.group, block.begin));
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
    Lanes::exponentiate(block);
    for (int lane = 0; lane < kLanes; lane += V::kFloats) {
      const Float sum = combine_rows<Bits>(sums + lane, Sum());
      V::store(block.foreground_sum + lane, sum + V::load(block.logit + lane) * 0.0f);
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
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      for (int edge = 0; edge < 4; ++edge) {
        V::store(block.boxes[edge] + lane, V::load_double(edges[edge] + lane));
      }
      V::store(block.area + lane, box_area(boxes_of(block, lane)));
      V::store(block.unmatched + lane, Lanes::number(1.0));
    }
  }

  static D2DEFENSE_VECTOR_INLINE Box<Double> boxes_of(const Block& block, int lane) {
    return Box<Double>{
        V::load_double(block.boxes[0] + lane),
        V::load_double(block.boxes[1] + lane),
        V::load_double(block.boxes[2] + lane),
        V::load_double(block.boxes[3] + lane)};
  }

  // For the backward pass: what else it would have to read the rows and boxes for.
  static D2DEFENSE_VECTOR_INLINE void save_rows(
      const Block& block, const InconsistencySaved& saved) {
    std::copy_n(block.largest_logit, block.lanes, saved.largest_logit + block.begin);
    std::copy_n(block.foreground_sum, block.lanes, saved.foreground_sum + block.begin);
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
        Lanes::number(geometry.box.x1),
        Lanes::number(geometry.box.y1),
        Lanes::number(geometry.box.x2),
        Lanes::number(geometry.box.y2)};
    Double count{};
    Double objectness{};
    Double foreground{};
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double overlap = V::opaque(intersection_over_union(
          boxes_of(block, lane),
          V::load_double(block.area + lane),
          box,
          Lanes::number(geometry.area)));
      const Double unmatched = V::load_double(block.unmatched + lane);
      V::store(
          block.unmatched + lane, overlap < Lanes::number(kUnmatchedIou) ? unmatched : Double{});
      const Double finite = V::load_double(block.finite + lane);
      const Double matched =
          V::opaque(overlap >= Lanes::number(inputs.iou_threshold) ? finite : Double{});
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
    raise_maximum<kObjectness>(
        out, index, static_cast<float>(objectness[0]), block.objectness, block);
    raise_maximum<kForeground>(
        out, index, static_cast<float>(foreground[0]), block.foreground, block);
    const int64_t true_class = inputs.target_classes[target];
    if (true_class >= 0) {
      const float probability = largest_probability(inputs, true_class, block);
      raise_maximum<kTrueClass>(out, index, probability, block.probability, block);
    }
  }

  // Raises a target's maximum to the block's, if that is larger, and keeps the first row that has
  // it. `values` are those of the lanes.
  template <TargetMaximum which>
  static D2DEFENSE_VECTOR_INLINE void raise_maximum(
      const ChunkTargets& out,
      int64_t index,
      float largest,
      const double (&values)[kLanes],
      const Block& block) {
    float& maximum = out.maxima[which][index];
    if (!(largest > maximum)) {
      return;
    }
    maximum = largest;
    if (out.maximum_rows[which] == nullptr) {
      return;
    }
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      if (block.matched[lane] != 0.0 && static_cast<float>(values[lane]) == largest) {
        out.maximum_rows[which][index] = block.begin + lane;
        return;
      }
    }
  }

  // Softmax probabilities of a class in the matched lanes. Returns the largest.
  static D2DEFENSE_VECTOR_INLINE float largest_probability(
      const InconsistencyInputs& inputs, int64_t column, Block& block) {
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
      const Double probability = matched > Double{} ? V::load_double(term + lane) / sum : Double{};
      V::store(block.probability + lane, probability);
      largest = larger_of(largest, probability);
    }
    return static_cast<float>(combine_lanes<LaneIndex, 1>(largest, Larger())[0]);
  }

  static D2DEFENSE_VECTOR_INLINE void add(
      const InconsistencyInputs& inputs,
      const Block& block,
      int64_t leading_lanes,
      LaneSums& sums) {
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double finite = V::load_double(block.finite + lane);
      const Double q = V::load_double(block.foreground + lane);
      const Double d = V::load_double(block.difference + lane);
      const Double s = inconsistency_of(d);
      const Double significant = Lanes::significant(inputs, block, leading_lanes, lane);
      const Double confident = Lanes::confident(inputs, block, lane);
      const Double alone =
          q > Lanes::number(kForegroundFloor) ? V::load_double(block.unmatched + lane) : Double{};
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
struct ReduceChunk {
  template <int Bytes>
  static D2DEFENSE_VECTOR_INLINE ChunkSums
  run(const InconsistencyInputs& inputs,
      const Chunk& chunk,
      const ChunkTargets& out,
      const InconsistencySaved& saved,
      Scratch& scratch) {
    return ChunkReducer<Logit, Bytes>::reduce(inputs, chunk, out, saved, scratch);
  }
};

template <typename Logit>
using ReduceVersions = Versions<
    ReduceChunk<Logit>,
    ChunkSums(
        const InconsistencyInputs&,
        const Chunk&,
        const ChunkTargets&,
        const InconsistencySaved&,
        Scratch&)>;

void initialise(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved) {
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
  if (saved.maximum_rows != nullptr) {
    std::fill_n(saved.maximum_rows, kTargetMaxima * inputs.targets, kNoRow);
  }
}

ChunkTargets rows_of_group(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved,
    int64_t group) {
  const int64_t target = inputs.target_offsets[group];
  ChunkTargets rows{
      {outputs.target_objectness + target,
       outputs.target_foreground + target,
       outputs.target_true_class + target},
      {},
      outputs.target_matches + target,
      outputs.histogram + group * inputs.num_bins};
  if (saved.maximum_rows != nullptr) {
    for (int which = 0; which < kTargetMaxima; ++which) {
      rows.maximum_rows[which] = saved.maximum_rows + which * inputs.targets + target;
    }
  }
  return rows;
}

ChunkTargets rows_of_thread(Scratch& scratch, bool keep, int64_t targets, int64_t num_bins) {
  scratch.maxima.assign(kTargetMaxima * targets, 0.0f);
  scratch.maximum_rows.assign(keep ? kTargetMaxima * targets : 0, kNoRow);
  scratch.matches.assign(targets, 0);
  scratch.histogram.assign(num_bins, 0);
  ChunkTargets rows{{}, {}, scratch.matches.data(), scratch.histogram.data()};
  for (int which = 0; which < kTargetMaxima; ++which) {
    rows.maxima[which] = scratch.maxima.data() + which * targets;
    if (keep) {
      rows.maximum_rows[which] = scratch.maximum_rows.data() + which * targets;
    }
  }
  return rows;
}

// Maxima, first rows and integers: the order in which chunks arrive does not matter. The maximum of
// an unknown class is NaN, and stays so.
void merge(const ChunkTargets& from, const ChunkTargets& into, int64_t targets, int64_t num_bins) {
  for (int which = 0; which < kTargetMaxima; ++which) {
    const int64_t* from_rows = from.maximum_rows[which];
    int64_t* into_rows = into.maximum_rows[which];
    for (int64_t i = 0; i < targets; ++i) {
      const float value = from.maxima[which][i];
      float& maximum = into.maxima[which][i];
      if (into_rows != nullptr && from_rows[i] != kNoRow &&
          (value > maximum || (value == maximum && from_rows[i] < into_rows[i]))) {
        into_rows[i] = from_rows[i];
      }
      maximum = value > maximum ? value : maximum;
    }
  }
  for (int64_t i = 0; i < targets; ++i) {
    into.matches[i] += from.matches[i];
  }
  for (int64_t bin = 0; bin < num_bins; ++bin) {
    into.histogram[bin] += from.histogram[bin];
  }
}

template <typename Logit>
void run(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved) {
  initialise(inputs, outputs, saved);
  const std::vector<Chunk> chunks = split_into_chunks(inputs);
  std::vector<ChunkSums> sums(chunks.size());
  const auto reduce = ReduceVersions<Logit>::chosen();
  std::mutex merging;
  share_out(inputs, chunks, [&](auto chunk, auto last) {
    Scratch scratch;
    if (inputs.column_stride != 1) {
      scratch.rows.resize(kLanes * (inputs.classes + 1) * sizeof(Logit));
    }
    for (; chunk != last; ++chunk) {
      ChunkSums& result = sums[chunk - chunks.begin()];
      const ChunkTargets rows = rows_of_group(inputs, outputs, saved, chunk->group);
      const int64_t* edges = inputs.proposal_offsets + chunk->group;
      if (edges[1] - edges[0] <= kChunkRows) {
        result = reduce(inputs, *chunk, rows, saved, scratch);
        continue;
      }
      const int64_t* target_edges = inputs.target_offsets + chunk->group;
      const int64_t targets = target_edges[1] - target_edges[0];
      const bool keep = saved.maximum_rows != nullptr;
      const ChunkTargets own = rows_of_thread(scratch, keep, targets, inputs.num_bins);
      result = reduce(inputs, *chunk, own, saved, scratch);
      const std::lock_guard<std::mutex> lock(merging);
      merge(own, rows, targets, inputs.num_bins);
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
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved) {
  switch (inputs.logit_type) {
    case at::kHalf:
      return run<c10::Half>(inputs, outputs, saved);
    case at::kBFloat16:
      return run<c10::BFloat16>(inputs, outputs, saved);
    default:
      return run<float>(inputs, outputs, saved);
  }
}

}  // namespace d2defense
