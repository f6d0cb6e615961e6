// SPDX-License-Identifier: Apache-2.0
// The walk over memory on a GPU. The unit of work is a tile: 32 consecutive proposals, one warp.
// First a few lanes at a time reduce a row of logits, so that loads coalesce; then each lane holds
// one proposal. A tile writes one partial sum for each group that it touches, and a second kernel
// adds a group's partial sums in an order that the offsets decide. What is accumulated by atomics
// (maxima and integers) does not depend on an order.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "../inconsistency.h"
#include "../proposal_score.h"

namespace d2defense {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kTile;
constexpr int kFinishThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;

// What a tile adds to a group.
struct Partial {
  double tau_sum;
  double confident_sum;
  float score_max;
  int32_t tau_count;
  int32_t confident_count;
  int32_t nonfinite;
  int32_t unmatched_foreground;
};

// The place of the partial sum of a tile and a group. Along the rows either the tile or the group
// grows from one partial sum to the next, so no two share a place.
__device__ __forceinline__ int64_t partial_index(int64_t tile, int64_t group) {
  return tile + group;
}

__host__ __device__ __forceinline__ int64_t tiles_of(int64_t proposals) {
  return (proposals + kTile - 1) / kTile;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = kTile / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// Numbers that are not negative order like their bits.
__device__ __forceinline__ float warp_max(float value) {
  unsigned bits = __float_as_uint(value);
#if __CUDA_ARCH__ >= 800
  bits = __reduce_max_sync(kAllLanes, bits);
#else
#pragma unroll
  for (int distance = kTile / 2; distance > 0; distance /= 2) {
    bits = max(bits, __shfl_xor_sync(kAllLanes, bits, distance));
  }
#endif
  return __uint_as_float(bits);
}

__device__ __forceinline__ void atomic_max(float* address, float value) {
  atomicMax(reinterpret_cast<int*>(address), __float_as_int(value));
}

// The group that owns a row: the last that does not begin after it.
__device__ __forceinline__ int64_t group_of(const int64_t* offsets, int64_t groups, int64_t row) {
  int64_t low = 0;
  int64_t high = groups;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (offsets[middle + 1] > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Sum of a row's exponentials relative to its largest logit, by Lanes neighbouring lanes which all
// get the result. The sum is NaN where a logit is NaN or infinite.
template <typename Logit, int Lanes, int Unroll>
__device__ __forceinline__ void reduce_row(
    const Logit* row,
    int64_t column_stride,
    int classes,
    float& largest_logit,
    float& foreground_sum) {
  const int first = threadIdx.x % Lanes;
  const float background = static_cast<float>(row[classes * column_stride]);
  float largest = background;
  float sum = 0.0f;
  float zero_or_nan = background * 0.0f;
  for (int base = 0; base < classes; base += Lanes * Unroll) {
    float logits[Unroll];
#pragma unroll
    for (int i = 0; i < Unroll; ++i) {
      const int column = base + i * Lanes + first;
      logits[i] = column < classes ? static_cast<float>(row[column * column_stride]) : background;
    }
    float maximum = largest;
#pragma unroll
    for (int i = 0; i < Unroll; ++i) {
      maximum = fmaxf(maximum, logits[i]);
      zero_or_nan = fmaf(logits[i], 0.0f, zero_or_nan);
    }
    sum *= __expf(largest - maximum);
    largest = maximum;
#pragma unroll
    for (int i = 0; i < Unroll; ++i) {
      const int column = base + i * Lanes + first;
      const float term = __expf(logits[i] - largest);
      sum += column < classes ? term : 0.0f;
    }
  }
  float maximum = largest;
#pragma unroll
  for (int distance = Lanes / 2; distance > 0; distance /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, distance));
  }
  sum = sum * __expf(largest - maximum) + zero_or_nan;
#pragma unroll
  for (int distance = Lanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  largest_logit = maximum;
  foreground_sum = sum;
}

// A lane's proposal.
struct Proposal {
  int64_t row;
  float largest_logit;
  float exponential_sum;
  double objectness;
  double foreground;
  double difference;
  Box<double> box;
  double area;
};

// Matches the tile's proposals of one group (`member`) with its targets. Returns whether this
// lane's proposal has nothing to do with any of them.
template <typename Logit>
__device__ bool match_targets(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    int64_t group,
    bool member,
    const Proposal& proposal) {
  const int64_t begin = inputs.target_offsets[group];
  const int64_t end = inputs.target_offsets[group + 1];
  const bool leader = threadIdx.x % kTile == 0;
  bool unmatched = true;
  for (int64_t target = begin; target < end; ++target) {
    const Box<double> box = target_box(inputs.target_boxes + 4 * target);
    const double overlap = intersection_over_union(proposal.box, proposal.area, box, box_area(box));
    unmatched = unmatched && overlap < kUnmatchedIou;
    const bool matched = member && overlap >= inputs.iou_threshold;
    const unsigned lanes = __ballot_sync(kAllLanes, matched);
    if (lanes == 0) {
      continue;
    }
    const float objectness = warp_max(matched ? static_cast<float>(proposal.objectness) : 0.0f);
    const float foreground = warp_max(matched ? static_cast<float>(proposal.foreground) : 0.0f);
    if (leader) {
      atomic_max(outputs.target_objectness + target, objectness);
      atomic_max(outputs.target_foreground + target, foreground);
      atomicAdd(outputs.target_matches + target, __popc(lanes));
    }
    const int64_t true_class = inputs.target_classes[target];
    if (true_class >= 0) {
      float probability = 0.0f;
      if (matched) {
        const Logit* logits = static_cast<const Logit*>(inputs.class_logits);
        const float logit = static_cast<float>(
            logits[proposal.row * inputs.row_stride + true_class * inputs.column_stride]);
        probability = expf(logit - proposal.largest_logit) / proposal.exponential_sum;
      }
      probability = warp_max(probability);
      if (leader) {
        atomic_max(outputs.target_true_class + target, probability);
      }
    }
  }
  return unmatched;
}

template <typename Logit, int Lanes, int Unroll>
__global__ void __launch_bounds__(kThreads) reduce_tiles(
    const InconsistencyInputs inputs, const InconsistencyOutputs outputs, Partial* partials) {
  constexpr int kRowsAtOnce = kTile / Lanes;
  __shared__ float shared_largest[kWarps][kTile];
  __shared__ float shared_sum[kWarps][kTile];
  const int warp = threadIdx.x / kTile;
  const int lane = threadIdx.x % kTile;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (tile >= tiles_of(inputs.proposals)) {
    return;
  }
  const Logit* class_logits = static_cast<const Logit*>(inputs.class_logits);
  const int classes = static_cast<int>(inputs.classes);
  const int64_t last_row = inputs.proposals - 1;

  for (int step = 0; step < Lanes; ++step) {
    const int index = step * kRowsAtOnce + lane / Lanes;
    // Lanes beyond the last row read it once more, since all take part in the shuffles.
    const int64_t row = min(tile * kTile + index, last_row);
    float largest;
    float sum;
    reduce_row<Logit, Lanes, Unroll>(
        class_logits + row * inputs.row_stride, inputs.column_stride, classes, largest, sum);
    if (lane % Lanes == 0) {
      shared_largest[warp][index] = largest;
      shared_sum[warp][index] = sum;
    }
  }
  __syncwarp();

  const bool active = tile * kTile + lane <= last_row;
  Proposal proposal;
  proposal.row = min(tile * kTile + lane, last_row);
  proposal.largest_logit = shared_largest[warp][lane];
  const float foreground_sum = shared_sum[warp][lane];
  const float background = static_cast<float>(
      class_logits[proposal.row * inputs.row_stride + classes * inputs.column_stride]);
  const float background_term = expf(background - proposal.largest_logit);
  proposal.exponential_sum = foreground_sum + background_term;
  const float logit =
      static_cast<float>(static_cast<const Logit*>(inputs.objectness_logits)[proposal.row]);
  const float* box = inputs.proposal_boxes + 4 * proposal.row;
  proposal.box = Box<double>{box[0], box[1], box[2], box[3]};
  proposal.area = box_area(proposal.box);
  const float check = foreground_sum + logit * 0.0f + nonfinite_marker(box);
  const bool finite = active && check == check;
  proposal.objectness =
      objectness_probability<double>(logit, static_cast<double>(expf(-fabsf(logit))));
  proposal.foreground = foreground_probability<double>(foreground_sum, background_term);
  proposal.difference = proposal.objectness - proposal.foreground;
  const double s = inconsistency_of(proposal.difference);
  const int64_t group = group_of(inputs.proposal_offsets, inputs.groups, proposal.row);

  unsigned remaining = __ballot_sync(kAllLanes, active);
  while (remaining != 0) {
    const int64_t current = __shfl_sync(kAllLanes, group, __ffs(remaining) - 1);
    const bool mine = active && group == current;
    remaining &= ~__ballot_sync(kAllLanes, mine);
    const bool member = mine && finite;
    const bool leading =
        inputs.topk == 0 || proposal.row - inputs.proposal_offsets[current] < inputs.topk;
    const bool significant = member && leading && s > inputs.epsilon;
    const bool confident = member && proposal.objectness > inputs.objectness_floor;
    const bool unmatched = match_targets<Logit>(inputs, outputs, current, member, proposal);
    const bool alone = member && unmatched && proposal.foreground > kForegroundFloor;
    if (inputs.num_bins > 0 && member && leading) {
      int64_t* bin =
          outputs.histogram + current * inputs.num_bins + histogram_bin(s, inputs.num_bins);
      atomicAdd(reinterpret_cast<unsigned long long*>(bin), 1ull);
    }
    Partial partial;
    partial.tau_sum = warp_sum(significant ? s : 0.0);
    partial.confident_sum = warp_sum(confident ? proposal.difference : 0.0);
    partial.score_max = warp_max(member ? static_cast<float>(s) : 0.0f);
    partial.tau_count = __popc(__ballot_sync(kAllLanes, significant));
    partial.confident_count = __popc(__ballot_sync(kAllLanes, confident));
    partial.nonfinite = __popc(__ballot_sync(kAllLanes, mine && !finite));
    partial.unmatched_foreground = __popc(__ballot_sync(kAllLanes, alone));
    if (lane == 0) {
      partials[partial_index(tile, current)] = partial;
    }
  }
}

// A group's sums so far, in one thread.
struct GroupSums {
  double tau_sum;
  double confident_sum;
  float score_max;
  int64_t tau_count;
  int64_t confident_count;
  int64_t nonfinite;
  int64_t unmatched_foreground;
};

__device__ __forceinline__ void add(GroupSums& sums, const GroupSums& other) {
  sums.tau_sum += other.tau_sum;
  sums.confident_sum += other.confident_sum;
  sums.score_max = fmaxf(sums.score_max, other.score_max);
  sums.tau_count += other.tau_count;
  sums.confident_count += other.confident_count;
  sums.nonfinite += other.nonfinite;
  sums.unmatched_foreground += other.unmatched_foreground;
}

// One block a group: each thread adds every kFinishThreads-th partial sum, then the threads' sums
// are added as a tree. Tiles are counted from the first row of all, so where they cut a group, and
// with it the last bits of its sums, depends on the rows before it.
__global__ void __launch_bounds__(kFinishThreads) finish_groups(
    const InconsistencyInputs inputs, const InconsistencyOutputs outputs, const Partial* partials) {
  __shared__ GroupSums shared[kFinishThreads];
  const int64_t group = blockIdx.x;
  const int64_t begin = inputs.proposal_offsets[group];
  const int64_t end = inputs.proposal_offsets[group + 1];
  GroupSums sums{};
  if (begin < end) {
    const int64_t last = partial_index((end - 1) / kTile, group);
    for (int64_t i = partial_index(begin / kTile, group) + threadIdx.x; i <= last;
         i += kFinishThreads) {
      const Partial& partial = partials[i];
      add(sums,
          GroupSums{
              partial.tau_sum,
              partial.confident_sum,
              partial.score_max,
              partial.tau_count,
              partial.confident_count,
              partial.nonfinite,
              partial.unmatched_foreground});
    }
  }
  shared[threadIdx.x] = sums;
  for (int distance = kFinishThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (threadIdx.x < distance) {
      add(shared[threadIdx.x], shared[threadIdx.x + distance]);
    }
  }
  if (threadIdx.x == 0) {
    outputs.tau_sum[group] = shared[0].tau_sum;
    outputs.tau_count[group] = shared[0].tau_count;
    outputs.confident_sum[group] = shared[0].confident_sum;
    outputs.confident_count[group] = shared[0].confident_count;
    outputs.score_max[group] = shared[0].score_max;
    outputs.nonfinite[group] = shared[0].nonfinite;
    outputs.unmatched_foreground[group] = shared[0].unmatched_foreground;
  }
}

// Initialises what the tiles add to.
__global__ void __launch_bounds__(kThreads)
    set_up(const InconsistencyInputs inputs, const InconsistencyOutputs outputs) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < inputs.targets; i += step) {
    outputs.target_objectness[i] = 0.0f;
    outputs.target_foreground[i] = 0.0f;
    outputs.target_true_class[i] = inputs.target_classes[i] < 0 ? nanf("") : 0.0f;
    outputs.target_matches[i] = 0;
  }
  for (int64_t i = first; i < inputs.groups * inputs.num_bins; i += step) {
    outputs.histogram[i] = 0;
  }
}

template <typename Logit>
void launch_tiles(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    Partial* partials,
    cudaStream_t stream) {
  // Short rows leave most lanes of a whole warp idle, long ones make few loads coalesce.
  constexpr int64_t kShortRow = 256;
  const int64_t blocks = (tiles_of(inputs.proposals) + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(blocks));
  if (inputs.classes <= kShortRow) {
    reduce_tiles<Logit, 8, 12><<<grid, kThreads, 0, stream>>>(inputs, outputs, partials);
  } else {
    reduce_tiles<Logit, 32, 12><<<grid, kThreads, 0, stream>>>(inputs, outputs, partials);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

int64_t inconsistency_cuda_workspace(int64_t proposals, int64_t groups) {
  return (tiles_of(proposals) + groups) * static_cast<int64_t>(sizeof(Partial));
}

void inconsistency_cuda_kernel(
    const InconsistencyInputs& inputs, const InconsistencyOutputs& outputs, void* workspace) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  Partial* partials = static_cast<Partial*>(workspace);
  constexpr int64_t kMostBlocks = 1024;
  const int64_t work = std::max(inputs.targets, inputs.groups * inputs.num_bins);
  const int64_t blocks = std::min(kMostBlocks, (work + kThreads - 1) / kThreads);
  if (blocks > 0) {
    set_up<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(inputs, outputs);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (inputs.groups == 0) {
    return;
  }
  if (inputs.proposals > 0) {
    switch (inputs.logit_type) {
      case at::kHalf:
        launch_tiles<c10::Half>(inputs, outputs, partials, stream);
        break;
      case at::kBFloat16:
        launch_tiles<c10::BFloat16>(inputs, outputs, partials, stream);
        break;
      default:
        launch_tiles<float>(inputs, outputs, partials, stream);
    }
  }
  finish_groups<<<static_cast<unsigned>(inputs.groups), kFinishThreads, 0, stream>>>(
      inputs, outputs, partials);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
#ifdef __CUDA_ARCH_LIST__
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    names.push_back(
        std::to_string(architecture / 100) + "." + std::to_string(architecture % 100 / 10));
  }
#endif
  return names;
}

}  // namespace d2defense
