// SPDX-License-Identifier: Apache-2.0
// The walk over memory on a CPU. The unit of work is a chunk: up to kChunkRows proposals of one
// group, counted from the group's start. What a chunk yields depends on nothing else, and chunks
// are added up in their order, so the number of threads leaves no trace in the result.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <vector>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "vector.h"

namespace d2defense {
namespace {

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
  Box box;
  double area;
};

// Kept by a thread from chunk to chunk.
struct Scratch {
  std::vector<TargetGeometry> geometry;
  std::vector<char> row;
  std::vector<float> maxima;
  std::vector<int32_t> matches;
  std::vector<int64_t> histogram;
};

// Sixteen proposals, one a lane.
struct Block {
  int64_t begin;
  int64_t lanes;
  alignas(64) float largest_logit[kLanes];
  alignas(64) float foreground_sum[kLanes];
  alignas(64) float background_term[kLanes];
  alignas(64) float logit[kLanes];
  alignas(64) float decay[kLanes];
  alignas(64) double objectness[kLanes];
  alignas(64) double foreground[kLanes];
  alignas(64) double difference[kLanes];
  alignas(64) double finite[kLanes];  // 1 or 0
  alignas(64) double x1[kLanes];
  alignas(64) double y1[kLanes];
  alignas(64) double x2[kLanes];
  alignas(64) double y2[kLanes];
  alignas(64) double area[kLanes];
  alignas(64) double near[kLanes];  // 1 if some target is no stranger to it
  alignas(64) double matched[kLanes];
};

// Lanes kLanes - n .. kLanes - 1 are set in the vector that starts at kTailMask[n].
alignas(64) constexpr uint32_t kTailMask[2 * kLanes] = {
    0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,
    ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};

// The largest logit of a row, and the sum over its foreground classes of the exponentials
// relative to it: NaN where a logit is NaN or infinite.
template <typename Logit>
D2DEFENSE_VECTOR_INLINE void reduce_row(
    const Logit* row, int64_t classes, float* largest_logit, float* foreground_sum) {
  const int64_t whole = classes / kLanes * kLanes;
  const int64_t rest = classes - whole;
  const float background = static_cast<float>(row[classes]);
  FloatVector largest = splat(background);
  // Zero times a number is zero, times NaN or infinity NaN.
  FloatVector total = splat(background * 0.0f);
  for (int64_t column = 0; column < whole; column += kLanes) {
    const FloatVector logits = load(row + column);
    largest = larger(largest, logits);
    total += logits * 0.0f;
  }
  FloatVector last = splat(background);
  if (rest > 0) {
    if (whole > 0) {
      // The last sixteen overlap what was read; a maximum does not mind.
      last = load(row + classes - kLanes);
    } else {
      alignas(64) float padded[kLanes];
      store(padded, last);
      for (int64_t column = 0; column < rest; ++column) {
        padded[kLanes - rest + column] = static_cast<float>(row[column]);
      }
      last = load(padded);
    }
    largest = larger(largest, last);
    total += last * 0.0f;
  }
  largest = largest_everywhere(largest);
  for (int64_t column = 0; column < whole; column += kLanes) {
    total += exponential(load(row + column) - largest);
  }
  if (rest > 0) {
    const BitsVector mask = load_as<BitsVector>(kTailMask + rest);
    total += (FloatVector)((BitsVector)exponential(last - largest) & mask);
  }
  *largest_logit = largest[0];
  *foreground_sum = sum(total);
}

template <typename Logit>
D2DEFENSE_VECTOR_INLINE void read_logits(
    const InconsistencyInputs& inputs, Scratch& scratch, Block& block) {
  const Logit* class_logits = static_cast<const Logit*>(inputs.class_logits);
  const Logit* objectness_logits = static_cast<const Logit*>(inputs.objectness_logits);
  alignas(64) float background[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= block.lanes) {
      block.largest_logit[lane] = background[lane] = block.logit[lane] = 0.0f;
      block.foreground_sum[lane] = 0.0f;
      continue;
    }
    const int64_t proposal = block.begin + lane;
    const Logit* row = class_logits + proposal * inputs.row_stride;
    if (inputs.column_stride != 1) {
      Logit* copy = reinterpret_cast<Logit*>(scratch.row.data());
      for (int64_t column = 0; column <= inputs.classes; ++column) {
        copy[column] = row[column * inputs.column_stride];
      }
      row = copy;
    }
    reduce_row(row, inputs.classes, &block.largest_logit[lane], &block.foreground_sum[lane]);
    background[lane] = static_cast<float>(row[inputs.classes]);
    block.logit[lane] = static_cast<float>(objectness_logits[proposal]);
  }
  const FloatVector logit = load(block.logit);
  const FloatVector magnitude = (FloatVector)((BitsVector)logit & 0x7fffffffu);
  store(block.decay, exponential(-magnitude));
  store(block.background_term, exponential(load(background) - load(block.largest_logit)));
}

D2DEFENSE_VECTOR_INLINE void read_boxes(const InconsistencyInputs& inputs, Block& block) {
  alignas(64) float marker[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t proposal = block.begin + (lane < block.lanes ? lane : 0);
    const float* box = inputs.proposal_boxes + 4 * proposal;
    marker[lane] = nonfinite_marker(box);
    block.x1[lane] = box[0];
    block.y1[lane] = box[1];
    block.x2[lane] = box[2];
    block.y2[lane] = box[3];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const float check = marker[lane] + block.foreground_sum[lane] * 0.0f + block.logit[lane] * 0.0f;
    block.finite[lane] = lane < block.lanes && check == check ? 1.0 : 0.0;
  }
}

D2DEFENSE_VECTOR_INLINE Box box_of(const Block& block, int lane) {
  return Box{block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]};
}

D2DEFENSE_VECTOR_INLINE void score_block(Block& block) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const ProposalScore score = proposal_score(
        block.logit[lane],
        block.decay[lane],
        block.foreground_sum[lane],
        block.background_term[lane]);
    const bool finite = block.finite[lane] != 0.0;
    block.objectness[lane] = finite ? score.objectness : 0.0;
    block.foreground[lane] = finite ? score.foreground : 0.0;
    block.difference[lane] = finite ? score.difference : 0.0;
    block.area[lane] = box_area(box_of(block, lane));
    block.near[lane] = 0.0;
  }
}

template <typename Logit>
D2DEFENSE_VECTOR_INLINE float largest_true_class(
    const InconsistencyInputs& inputs, const Block& block, int64_t true_class) {
  const Logit* logits =
      static_cast<const Logit*>(inputs.class_logits) + true_class * inputs.column_stride;
  alignas(64) float value[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    // A lane that does not match may hold anything, also a logit above the largest of its row.
    value[lane] = block.matched[lane] != 0.0
                      ? static_cast<float>(logits[(block.begin + lane) * inputs.row_stride])
                      : block.largest_logit[lane];
  }
  store(value, exponential(load(value) - load(block.largest_logit)));
  double largest = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const double sum =
        static_cast<double>(block.foreground_sum[lane]) + block.background_term[lane];
    const double probability = block.matched[lane] != 0.0 ? value[lane] / sum : 0.0;
    largest = largest > probability ? largest : probability;
  }
  return static_cast<float>(largest);
}

template <typename Logit>
D2DEFENSE_VECTOR_INLINE void match_targets(
    const InconsistencyInputs& inputs,
    const TargetGeometry* geometry,
    const int64_t* target_classes,
    int64_t targets,
    const ChunkTargets& out,
    Block& block) {
  for (int64_t target = 0; target < targets; ++target) {
    const TargetGeometry candidate = geometry[target];
    double matches = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const double overlap = intersection_over_union(
          box_of(block, lane), block.area[lane], candidate.box, candidate.area);
      const double matched = overlap >= inputs.iou_threshold ? block.finite[lane] : 0.0;
      block.matched[lane] = matched;
      block.near[lane] = overlap < kUnmatchedIou ? block.near[lane] : 1.0;
      matches += matched;
    }
    if (matches == 0.0) {
      continue;
    }
    double objectness = 0.0;
    double foreground = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const double p = block.matched[lane] != 0.0 ? block.objectness[lane] : 0.0;
      const double q = block.matched[lane] != 0.0 ? block.foreground[lane] : 0.0;
      objectness = objectness > p ? objectness : p;
      foreground = foreground > q ? foreground : q;
    }
    out.objectness[target] = std::max(out.objectness[target], static_cast<float>(objectness));
    out.foreground[target] = std::max(out.foreground[target], static_cast<float>(foreground));
    out.matches[target] += static_cast<int32_t>(matches);
    if (target_classes[target] >= 0) {
      out.true_class[target] = std::max(
          out.true_class[target], largest_true_class<Logit>(inputs, block, target_classes[target]));
    }
  }
}

// Lane sums of a chunk. Counts are doubles, exact here, so that all lanes have one width.
struct LaneSums {
  alignas(64) double tau_sum[kLanes] = {};
  alignas(64) double tau_count[kLanes] = {};
  alignas(64) double confident_sum[kLanes] = {};
  alignas(64) double confident_count[kLanes] = {};
  alignas(64) double score_max[kLanes] = {};
  alignas(64) double finite[kLanes] = {};
  alignas(64) double unmatched[kLanes] = {};
};

D2DEFENSE_VECTOR_INLINE void add_block(
    const InconsistencyInputs& inputs, const Block& block, int64_t leading_lanes, LaneSums& sums) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const double finite = block.finite[lane];
    const double s = inconsistency_of(block.difference[lane]);
    const double significant = lane < leading_lanes && s > inputs.epsilon ? finite : 0.0;
    const double confident = block.objectness[lane] > inputs.objectness_floor ? finite : 0.0;
    const double foreground = block.foreground[lane] > kForegroundFloor ? finite : 0.0;
    sums.tau_sum[lane] += significant * s;
    sums.tau_count[lane] += significant;
    sums.confident_sum[lane] += confident * block.difference[lane];
    sums.confident_count[lane] += confident;
    sums.score_max[lane] = sums.score_max[lane] > s ? sums.score_max[lane] : s;
    sums.finite[lane] += finite;
    sums.unmatched[lane] += foreground * (1.0 - block.near[lane]);
  }
}

double total(const double (&lanes)[kLanes]) {
  double result = 0.0;
  for (const double value : lanes) {
    result += value;
  }
  return result;
}

// Always inlined into one function an instruction set, which it is compiled for.
template <typename Logit>
D2DEFENSE_VECTOR_INLINE ChunkSums reduce_chunk(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  const int64_t first_target = inputs.target_offsets[chunk.group];
  const int64_t targets = inputs.target_offsets[chunk.group + 1] - first_target;
  scratch.geometry.resize(targets);
  for (int64_t target = 0; target < targets; ++target) {
    const Box box = target_box(inputs.target_boxes + 4 * (first_target + target));
    scratch.geometry[target] = TargetGeometry{box, box_area(box)};
  }
  const int64_t group_begin = inputs.proposal_offsets[chunk.group];
  const int64_t leading_end = inputs.topk == 0 || inputs.topk > chunk.end - group_begin
                                  ? chunk.end
                                  : group_begin + inputs.topk;
  LaneSums sums;
  Block block;
  for (block.begin = chunk.begin; block.begin < chunk.end; block.begin += kLanes) {
    block.lanes = std::min<int64_t>(kLanes, chunk.end - block.begin);
    const int64_t leading_lanes = std::min(block.lanes, leading_end - block.begin);
    read_logits<Logit>(inputs, scratch, block);
    read_boxes(inputs, block);
    score_block(block);
    match_targets<Logit>(
        inputs, scratch.geometry.data(), inputs.target_classes + first_target, targets, out, block);
    add_block(inputs, block, leading_lanes, sums);
    if (inputs.num_bins > 0) {
      for (int64_t lane = 0; lane < leading_lanes; ++lane) {
        if (block.finite[lane] != 0.0) {
          const double s = inconsistency_of(block.difference[lane]);
          ++out.histogram[histogram_bin(s, inputs.num_bins)];
        }
      }
    }
  }
  ChunkSums result;
  result.tau_sum = total(sums.tau_sum);
  result.confident_sum = total(sums.confident_sum);
  result.score_max = *std::max_element(sums.score_max, sums.score_max + kLanes);
  result.tau_count = static_cast<int64_t>(total(sums.tau_count));
  result.confident_count = static_cast<int64_t>(total(sums.confident_count));
  result.nonfinite = chunk.end - chunk.begin - static_cast<int64_t>(total(sums.finite));
  result.unmatched_foreground = static_cast<int64_t>(total(sums.unmatched));
  return result;
}

template <typename Logit>
using ChunkKernel =
    ChunkSums (*)(const InconsistencyInputs&, const Chunk&, const ChunkTargets&, Scratch&);

template <typename Logit>
ChunkSums reduce_chunk_baseline(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  return reduce_chunk<Logit>(inputs, chunk, out, scratch);
}

#if defined(__x86_64__)
template <typename Logit>
__attribute__((target("avx2,fma"))) ChunkSums reduce_chunk_avx2(
    const InconsistencyInputs& inputs,
    const Chunk& chunk,
    const ChunkTargets& out,
    Scratch& scratch) {
  return reduce_chunk<Logit>(inputs, chunk, out, scratch);
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
  return reduce_chunk<Logit>(inputs, chunk, out, scratch);
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
      scratch.row.resize((inputs.classes + 1) * sizeof(Logit));
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
