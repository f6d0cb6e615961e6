// SPDX-License-Identifier: Apache-2.0
// The kernels of the fused inconsistency operator: from the logits of the two heads of a detector
// to every statistic of their disagreement, in one pass over the logits.
//
// For proposal i with objectness logit o_i and class logits z_i (background last):
//   p_i = sigmoid(o_i), q_i = 1 - softmax(z_i)[background], d_i = p_i - q_i, s_i = |d_i|
// (arXiv 2409.16057, section 3). Per group (one triggered image) it sums and counts the s_i above
// epsilon among the first topk proposals, the d_i of proposals with p_i above a floor, and so on;
// per target (an object that bears a trigger) it takes the largest p, q and probability of the
// true class over the proposals whose IoU with the target reaches a threshold. docs/operator.md
// lists all of it; d2defense/ops/reference.py says the same in PyTorch.
//
// Arithmetic (proposal_score.h): exponentials and their sum over the classes in float, the rest
// in double. Sums over proposals are taken in an order that the shapes and the offsets decide
// alone, and all else that is accumulated (counts, maxima) does not depend on an order: the same
// bits always.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace d2defense {

// What a kernel reads; checked, all of it on the kernel's device, and contiguous but for
// class_logits.
struct InconsistencyInputs {
  at::ScalarType logit_type;
  const void* objectness_logits;
  const void* class_logits;
  int64_t row_stride;     // of class_logits, in elements; 0 where expanded
  int64_t column_stride;  // likewise
  const float* proposal_boxes;
  const int64_t* proposal_offsets;
  const float* target_boxes;
  const int64_t* target_offsets;
  const int64_t* target_classes;
  int64_t proposals;
  int64_t classes;  // K, without the background
  int64_t groups;
  int64_t targets;
  double epsilon;
  int64_t topk;  // 0 = all
  double objectness_floor;
  double iou_threshold;
  int64_t num_bins;
};

// What a kernel writes: all of it, since nothing is initialised before.
struct InconsistencyOutputs {
  double* tau_sum;
  int64_t* tau_count;
  double* confident_sum;
  int64_t* confident_count;
  float* score_max;
  int64_t* nonfinite;
  int64_t* histogram;
  float* target_objectness;
  float* target_foreground;
  float* target_true_class;
  int32_t* target_matches;
  int64_t* unmatched_foreground;
};

// The maxima of a target, in the order in which InconsistencySaved has their rows.
enum TargetMaximum { kObjectness, kForeground, kTrueClass, kTargetMaxima };
constexpr int64_t kNoRow = -1;

// What a forward pass keeps for the backward one; all null where nothing is to be kept.
struct InconsistencySaved {
  float* largest_logit;   // [N], of the class logits of a proposal
  float* foreground_sum;  // [N], of their exponentials relative to it; NaN where not finite
  int64_t* maximum_rows;  // [kTargetMaxima, M], the first proposal that has the maximum, or kNoRow
};

// What a backward pass reads beside the inputs. A gradient that is null is zero.
struct InconsistencyGradients {
  const double* tau_sum;
  const double* confident_sum;
  const float* target_maxima[kTargetMaxima];
  const float* largest_logit;
  const float* foreground_sum;
  const int64_t* maximum_rows;  // compared with rows, never followed
  // What it writes, contiguous and of the logits' type.
  void* objectness_logits;
  void* class_logits;
};

void inconsistency_cpu_kernel(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved);
void inconsistency_backward_cpu_kernel(
    const InconsistencyInputs& inputs, const InconsistencyGradients& gradients);

// Instruction sets that the CPU kernel was compiled for, narrowest first.
std::vector<std::string> compiled_instruction_sets();
// The one that this process uses: the widest that the processor has, or a narrower one that the
// environment variable D2DEFENSE_CPU_CAPABILITY names.
std::string chosen_instruction_set();

#ifdef WITH_CUDA
// They queue their work on the current stream and wait for nothing.
void inconsistency_cuda_kernel(
    const InconsistencyInputs& inputs,
    const InconsistencyOutputs& outputs,
    const InconsistencySaved& saved);
void inconsistency_backward_cuda_kernel(
    const InconsistencyInputs& inputs, const InconsistencyGradients& gradients);

std::string cuda_version();
// Compute capabilities that the kernels were compiled for, such as "8.0".
std::vector<std::string> cuda_architectures();
#endif

}  // namespace d2defense
