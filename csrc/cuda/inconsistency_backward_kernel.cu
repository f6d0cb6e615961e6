// SPDX-License-Identifier: Apache-2.0
// The backward pass on a GPU, tile by tile. First each lane holds one proposal and looks up what
// its group's sums and the targets whose maxima it has ask of it; then a few lanes at a time write
// a row, so that stores coalesce; last, each lane corrects the few columns of its own row that
// differ. Nothing is accumulated across lanes. A row that nothing asks for is filled with zeros,
// and its logits are not read.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "tiles.cuh"

namespace d2defense {
namespace {

// exp(z - largest) * factor of every column, by Lanes neighbouring lanes.
template <typename Logit, int Lanes, int Unroll>
__device__ __forceinline__ void write_row(
    const Logit* row, int64_t column_stride, int columns, float largest, float factor, Logit* out) {
  const int first = threadIdx.x % Lanes;
  if (factor == 0.0f) {
    for (int column = first; column < columns; column += Lanes) {
      out[column] = static_cast<Logit>(0.0f);
    }
    return;
  }
  for (int base = 0; base < columns; base += Lanes * Unroll) {
    float logits[Unroll];
#pragma unroll
    for (int i = 0; i < Unroll; ++i) {
      const int column = base + i * Lanes + first;
      logits[i] = column < columns ? static_cast<float>(row[column * column_stride]) : largest;
    }
#pragma unroll
    for (int i = 0; i < Unroll; ++i) {
      const int column = base + i * Lanes + first;
      if (column < columns) {
        out[column] = static_cast<Logit>(__expf(logits[i] - largest) * factor);
      }
    }
  }
}

// A lane's proposal: whose gradients it is asked for.
template <typename Logit>
struct RowOfLane {
  const Logit* logits;
  int64_t column_stride;
  float largest;
  double sum;

  __device__ __forceinline__ double probability(int64_t column) const {
    const float logit = static_cast<float>(logits[column * column_stride]);
    return static_cast<double>(expf(logit - largest)) / sum;
  }
};

template <typename Logit, int Lanes, int Unroll>
__global__ void __launch_bounds__(kThreads)
    write_tiles(const InconsistencyInputs inputs, const InconsistencyGradients gradients) {
  constexpr int kRowsAtOnce = kTile / Lanes;
  __shared__ float shared_largest[kWarps][kTile];
  __shared__ float shared_factor[kWarps][kTile];
  const int warp = threadIdx.x / kTile;
  const int lane = threadIdx.x % kTile;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (tile >= tiles_of(inputs.proposals)) {
    return;
  }
  const Logit* class_logits = static_cast<const Logit*>(inputs.class_logits);
  const int columns = static_cast<int>(inputs.classes) + 1;
  const int64_t last_row = inputs.proposals - 1;
  // Lanes beyond the last row look at it once more, and write nothing.
  const bool active = tile * kTile + lane <= last_row;
  const int64_t proposal = min(tile * kTile + lane, last_row);
  const float foreground_sum = gradients.foreground_sum[proposal];
  const bool finite = foreground_sum == foreground_sum;

  const int64_t group = group_of(inputs.proposal_offsets, inputs.groups, proposal);
  const int64_t first_target = inputs.target_offsets[group];
  const int64_t end_target = inputs.target_offsets[group + 1];
  const int64_t* objectness_rows = gradients.maximum_rows + kObjectness * inputs.targets;
  const int64_t* foreground_rows = gradients.maximum_rows + kForeground * inputs.targets;
  const int64_t* true_class_rows = gradients.maximum_rows + kTrueClass * inputs.targets;
  const float* true_class_gradients = gradients.target_maxima[kTrueClass];
  const auto asks_for_class = [&](int64_t target) {
    return true_class_gradients != nullptr && true_class_rows[target] == proposal &&
           inputs.target_classes[target] >= 0;
  };

  RowOfLane<Logit> row;
  row.logits = class_logits + proposal * inputs.row_stride;
  row.column_stride = inputs.column_stride;
  row.largest = gradients.largest_logit[proposal];
  const float background = static_cast<float>(row.logits[inputs.classes * inputs.column_stride]);
  const float background_term = expf(background - row.largest);
  row.sum = static_cast<double>(foreground_sum) + background_term;
  const float logit =
      static_cast<float>(static_cast<const Logit*>(inputs.objectness_logits)[proposal]);
  const double decay = expf(-fabsf(logit));
  const double objectness = objectness_probability<double>(logit, decay);
  const double foreground = foreground_probability<double>(foreground_sum, background_term);
  const double difference = objectness - foreground;
  const bool leading = inputs.topk == 0 || proposal - inputs.proposal_offsets[group] < inputs.topk;
  const bool significant = leading && inconsistency_of(difference) > inputs.epsilon;
  const bool confident = objectness > inputs.objectness_floor;
  const double of_difference = difference_gradient<double>(
      difference,
      significant,
      confident,
      gradients.tau_sum == nullptr ? 0.0 : gradients.tau_sum[group],
      gradients.confident_sum == nullptr ? 0.0 : gradients.confident_sum[group]);
  double of_objectness = 0.0;
  double of_foreground = 0.0;
  double class_sum = 0.0;
  for (int64_t target = first_target; target < end_target; ++target) {
    if (gradients.target_maxima[kObjectness] != nullptr && objectness_rows[target] == proposal) {
      of_objectness += gradients.target_maxima[kObjectness][target];
    }
    if (gradients.target_maxima[kForeground] != nullptr && foreground_rows[target] == proposal) {
      of_foreground += gradients.target_maxima[kForeground][target];
    }
    if (asks_for_class(target)) {
      class_sum += true_class_gradients[target] * row.probability(inputs.target_classes[target]);
    }
  }
  of_objectness += of_difference;
  of_foreground -= of_difference;
  const RowGradient<double> gradient = row_gradient<double>(
      of_foreground,
      foreground,
      background_probability<double>(foreground_sum, background_term),
      class_sum);
  shared_largest[warp][lane] = row.largest;
  shared_factor[warp][lane] = finite ? static_cast<float>(gradient.common / row.sum) : 0.0f;
  if (active) {
    const double of_logit = finite ? of_objectness * objectness_slope(decay) : 0.0;
    static_cast<Logit*>(gradients.objectness_logits)[proposal] =
        static_cast<Logit>(static_cast<float>(of_logit));
  }
  __syncwarp();

  Logit* out = static_cast<Logit*>(gradients.class_logits);
  for (int step = 0; step < Lanes; ++step) {
    const int index = step * kRowsAtOnce + lane / Lanes;
    const int64_t written = tile * kTile + index;
    if (written <= last_row) {
      write_row<Logit, Lanes, Unroll>(
          class_logits + written * inputs.row_stride,
          inputs.column_stride,
          columns,
          shared_largest[warp][index],
          shared_factor[warp][index],
          out + written * columns);
    }
  }
  __syncwarp();

  if (!active || !finite) {
    return;
  }
  out += proposal * columns;
  out[inputs.classes] = static_cast<Logit>(static_cast<float>(gradient.background));
  for (int64_t target = first_target; target < end_target; ++target) {
    if (!asks_for_class(target)) {
      continue;
    }
    const int64_t column = inputs.target_classes[target];
    double own = gradient.common;
    for (int64_t other = first_target; other < end_target; ++other) {
      if (asks_for_class(other) && inputs.target_classes[other] == column) {
        own += true_class_gradients[other];
      }
    }
    out[column] = static_cast<Logit>(static_cast<float>(row.probability(column) * own));
  }
}

template <typename Logit>
void launch_tiles(
    const InconsistencyInputs& inputs,
    const InconsistencyGradients& gradients,
    cudaStream_t stream) {
  const dim3 grid = grid_of(inputs.proposals);
  if (inputs.classes <= kShortRow) {
    write_tiles<Logit, 8, 12><<<grid, kThreads, 0, stream>>>(inputs, gradients);
  } else {
    write_tiles<Logit, 32, 12><<<grid, kThreads, 0, stream>>>(inputs, gradients);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void inconsistency_backward_cuda_kernel(
    const InconsistencyInputs& inputs, const InconsistencyGradients& gradients) {
  if (inputs.proposals == 0) {
    return;
  }
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  switch (inputs.logit_type) {
    case at::kHalf:
      return launch_tiles<c10::Half>(inputs, gradients, stream);
    case at::kBFloat16:
      return launch_tiles<c10::BFloat16>(inputs, gradients, stream);
    default:
      return launch_tiles<float>(inputs, gradients, stream);
  }
}

}  // namespace d2defense
