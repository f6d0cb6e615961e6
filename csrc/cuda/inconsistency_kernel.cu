// SPDX-License-Identifier: Apache-2.0
// The walk over memory on a GPU, tile by tile. First a few lanes at a time reduce a row of logits,
// so that loads coalesce; then each lane holds one proposal. A tile writes one partial sum for each
// group that it touches, and a second kernel adds a group's partial sums in an order that the
// offsets decide. What is accumulated by atomics (maxima and integers) does not depend on an order.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "tiles.cuh"

namespace d2defense {
namespace {

constexpr int kFinishThreads = 128;

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

// A maximum and the proposal that has it, such that the larger number is the larger maximum or, of
// equal ones, the earlier proposal. Maxima are not negative, so that they order like their bits.
__device__ __forceinline__ unsigned long long pack_maximum(float value, int64_t row) {
  const unsigned long long bits = __float_as_uint(value);
  return bits << 32 | (0xffffffffu - static_cast<unsigned>(row));
}

// 0 stands for none, like a maximum that is 0: no gradient comes from there.
__device__ __forceinline__ int64_t row_of_maximum(unsigned long long packed) {
  const unsigned row = 0xffffffffu - static_cast<unsigned>(packed);
  return packed >> 32 == 0 ? kNoRow : static_cast<int64_t>(row);
}

// Raises a maximum to the largest value of the matched lanes, of which there is one at least.
// `packed` keeps its row, and is null where none is wanted.
__device__ __forceinline__ void raise_maximum(
    float* maximum, unsigned long long* packed, bool matched, float value, int64_t row) {
  const float largest = warp_max(matched ? value : 0.0f);
  const bool leader = threadIdx.x % kTile == 0;
  if (leader) {
    atomic_max(maximum, largest);
  }
  if (packed != nullptr) {
    const unsigned holders = __ballot_sync(kAllLanes, matched && value == largest);
    const int64_t first = __shfl_sync(kAllLanes, row, __ffs(holders) - 1);
    if (leader) {
      atomicMax(packed, pack_maximum(largest, first));
    }
  }
}

// Matches the tile's proposals of one group (`member`) with its targets. Returns whether this
// lane's proposal has nothing to do with any of them.
template <typename Logit>
__device__ bool match_targets(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved,
    int64_t group,
    bool member,
    const Proposal& proposal) {
  const int64_t begin = inputs.target_offsets[group];
  const int64_t end = inputs.target_offsets[group + 1];
  const bool leader = threadIdx.x % kTile == 0;
  auto* packed = reinterpret_cast<unsigned long long*>(saved.maximum_rows);
  const auto packed_of = [&](TargetMaximum which, int64_t target) {
    return packed == nullptr ? nullptr : packed + which * inputs.targets + target;
  };
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
    if (leader) {
      atomicAdd(outputs.target_matches + target, __popc(lanes));
    }
    raise_maximum(
        outputs.target_objectness + target,
        packed_of(kObjectness, target),
        matched,
        static_cast<float>(proposal.objectness),
        proposal.row);
    raise_maximum(
        outputs.target_foreground + target,
        packed_of(kForeground, target),
        matched,
        static_cast<float>(proposal.foreground),
        proposal.row);
    const int64_t true_class = inputs.target_classes[target];
    if (true_class >= 0) {
      float probability = 0.0f;
      if (matched) {
        const Logit* logits = static_cast<const Logit*>(inputs.class_logits);
        const float logit = static_cast<float>(
            logits[proposal.row * inputs.row_stride + true_class * inputs.column_stride]);
        probability = expf(logit - proposal.largest_logit) / proposal.exponential_sum;
      }
      raise_maximum(
          outputs.target_true_class + target,
          packed_of(kTrueClass, target),
          matched,
          probability,
          proposal.row);
    }
  }
  return unmatched;
}

template <typename Logit, int Lanes, int Unroll>
__global__ void __launch_bounds__(kThreads) reduce_tiles(
    const InconsistencyInputs inputs,
    const InconsistencyOutputs outputs,
    const InconsistencySaved saved,
    Partial* partials) {
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
  if (active && saved.largest_logit != nullptr) {
    saved.largest_logit[proposal.row] = proposal.largest_logit;
    saved.foreground_sum[proposal.row] = check;
  }
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
    const bool unmatched = match_targets<Logit>(inputs, outputs, saved, current, member, proposal);
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
__global__ void __launch_bounds__(kThreads) set_up(
    const InconsistencyInputs inputs,
    const InconsistencyOutputs outputs,
    const InconsistencySaved saved) {
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
  if (saved.maximum_rows != nullptr) {
    for (int64_t i = first; i < kTargetMaxima * inputs.targets; i += step) {
      saved.maximum_rows[i] = 0;
    }
  }
}

// From packed maxima to rows.
__global__ void __launch_bounds__(kThreads) unpack_rows(int64_t* rows, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    rows[i] = row_of_maximum(static_cast<unsigned long long>(rows[i]));
  }
}

template <typename Logit>
void launch_tiles(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved,
    Partial* partials,
    cudaStream_t stream) {
  const dim3 grid = grid_of(inputs.proposals);
  if (inputs.classes <= kShortRow) {
    reduce_tiles<Logit, 8, 12><<<grid, kThreads, 0, stream>>>(inputs, outputs, saved, partials);
  } else {
    reduce_tiles<Logit, 32, 12><<<grid, kThreads, 0, stream>>>(inputs, outputs, saved, partials);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void inconsistency_cuda_kernel(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  constexpr int64_t kMostThreads = 1024 * kThreads;
  const int64_t row_count = saved.maximum_rows == nullptr ? 0 : kTargetMaxima * inputs.targets;
  const int64_t initialised =
      std::max({inputs.targets, row_count, inputs.groups * inputs.num_bins});
  if (initialised > 0) {
    set_up<<<blocks_for(std::min(kMostThreads, initialised)), kThreads, 0, stream>>>(
        inputs, outputs, saved);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (inputs.groups == 0) {
    return;
  }
  const int64_t partial_count = tiles_of(inputs.proposals) + inputs.groups;
  const c10::DataPtr workspace = c10::cuda::CUDACachingAllocator::get()->allocate(
      static_cast<size_t>(partial_count) * sizeof(Partial));
  Partial* partials = static_cast<Partial*>(workspace.get());
  if (inputs.proposals > 0) {
    switch (inputs.logit_type) {
      case at::kHalf:
        launch_tiles<c10::Half>(inputs, outputs, saved, partials, stream);
        break;
      case at::kBFloat16:
        launch_tiles<c10::BFloat16>(inputs, outputs, saved, partials, stream);
        break;
      default:
        launch_tiles<float>(inputs, outputs, saved, partials, stream);
    }
  }
  finish_groups<<<static_cast<unsigned>(inputs.groups), kFinishThreads, 0, stream>>>(
      inputs, outputs, partials);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (row_count > 0) {
    unpack_rows<<<blocks_for(row_count), kThreads, 0, stream>>>(saved.maximum_rows, row_count);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
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
