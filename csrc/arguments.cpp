// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace d2defense {
namespace {

constexpr int64_t kMaxBins = int64_t{1} << 20;

void check_shapes(const InconsistencyArguments& given) {
  TORCH_CHECK_VALUE(
      given.objectness_logits.dim() == 1,
      "objectness_logits must have shape [N], got ",
      given.objectness_logits.sizes());
  const int64_t proposals = given.objectness_logits.size(0);
  TORCH_CHECK_VALUE(
      given.class_logits.dim() == 2 && given.class_logits.size(0) == proposals &&
          given.class_logits.size(1) >= 2,
      "class_logits must have shape [",
      proposals,
      ", K + 1] with K >= 1, got ",
      given.class_logits.sizes());
  TORCH_CHECK_VALUE(
      given.proposal_boxes.dim() == 2 && given.proposal_boxes.size(0) == proposals &&
          given.proposal_boxes.size(1) == 4,
      "proposal_boxes must have shape [",
      proposals,
      ", 4], got ",
      given.proposal_boxes.sizes());
  TORCH_CHECK_VALUE(
      given.target_boxes.dim() == 2 && given.target_boxes.size(1) == 4,
      "target_boxes must have shape [M, 4], got ",
      given.target_boxes.sizes());
  const int64_t targets = given.target_boxes.size(0);
  TORCH_CHECK_VALUE(
      given.target_classes.dim() == 1 && given.target_classes.size(0) == targets,
      "target_classes must have shape [",
      targets,
      "], got ",
      given.target_classes.sizes());
  TORCH_CHECK_VALUE(
      given.proposal_offsets.dim() == 1 && given.proposal_offsets.size(0) >= 1,
      "proposal_offsets must have shape [G + 1], got ",
      given.proposal_offsets.sizes());
  const int64_t edges = given.proposal_offsets.size(0);
  TORCH_CHECK_VALUE(
      given.target_offsets.dim() == 1 && given.target_offsets.size(0) == edges,
      "target_offsets must have shape [",
      edges,
      "] like proposal_offsets, got ",
      given.target_offsets.sizes());
}

void check_types(const InconsistencyArguments& given) {
  const at::ScalarType logit_type = given.objectness_logits.scalar_type();
  TORCH_CHECK_TYPE(
      logit_type == at::kFloat || logit_type == at::kHalf || logit_type == at::kBFloat16,
      "objectness_logits must be Float, Half or BFloat16, got ",
      logit_type);
  check_type("class_logits", given.class_logits, logit_type);
  check_type("proposal_boxes", given.proposal_boxes, at::kFloat);
  check_type("proposal_offsets", given.proposal_offsets, at::kLong);
  check_type("target_boxes", given.target_boxes, at::kFloat);
  check_type("target_offsets", given.target_offsets, at::kLong);
  check_type("target_classes", given.target_classes, at::kLong);
}

void check_devices(const InconsistencyArguments& given, at::DeviceType type) {
  const at::Device device = given.objectness_logits.device();
  TORCH_CHECK_VALUE(device.type() == type, "objectness_logits must be on ", type, ", got ", device);
  check_device("objectness_logits", given.objectness_logits, device);
  check_device("class_logits", given.class_logits, device);
  check_device("proposal_boxes", given.proposal_boxes, device);
  check_device("target_boxes", given.target_boxes, device);
  check_device("proposal_offsets", given.proposal_offsets, at::kCPU);
  check_device("target_offsets", given.target_offsets, at::kCPU);
  check_device("target_classes", given.target_classes, at::kCPU);
}

void check_settings(const InconsistencyArguments& given) {
  TORCH_CHECK_VALUE(
      std::isfinite(given.epsilon) && given.epsilon >= 0.0,
      "epsilon must be finite and at least 0, got ",
      given.epsilon);
  TORCH_CHECK_VALUE(given.topk >= 0, "topk must be at least 0, got ", given.topk);
  TORCH_CHECK_VALUE(
      given.objectness_floor >= 0.0 && given.objectness_floor <= 1.0,
      "objectness_floor must lie in 0 .. 1, got ",
      given.objectness_floor);
  TORCH_CHECK_VALUE(
      given.iou_threshold > 0.0 && given.iou_threshold <= 1.0,
      "iou_threshold must be above 0 and at most 1, got ",
      given.iou_threshold);
  TORCH_CHECK_VALUE(
      given.num_bins >= 0 && given.num_bins <= kMaxBins,
      "num_bins must lie in 0 .. ",
      kMaxBins,
      ", got ",
      given.num_bins);
}

}  // namespace

void check_type(const char* name, const at::Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
}

void check_device(const char* name, const at::Tensor& tensor, at::Device device) {
  TORCH_CHECK_VALUE(
      tensor.device() == device, name, " must be on ", device, ", got ", tensor.device());
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, name, " must be a dense tensor");
}

void check_arguments(const InconsistencyArguments& arguments, at::DeviceType device) {
  check_shapes(arguments);
  check_types(arguments);
  check_devices(arguments, device);
  check_settings(arguments);
}

void check_offsets(const char* name, const int64_t* offsets, int64_t groups, int64_t rows) {
  TORCH_CHECK_VALUE(offsets[0] == 0, name, " must start at 0, got ", offsets[0]);
  for (int64_t i = 0; i < groups; ++i) {
    TORCH_CHECK_VALUE(
        offsets[i] <= offsets[i + 1], name, " must not decrease, but does at ", i + 1);
  }
  TORCH_CHECK_VALUE(
      offsets[groups] == rows, name, " must end at ", rows, ", got ", offsets[groups]);
}

void check_classes(const int64_t* target_classes, int64_t targets, int64_t classes) {
  for (int64_t i = 0; i < targets; ++i) {
    TORCH_CHECK_VALUE(
        target_classes[i] >= -1 && target_classes[i] < classes,
        "target_classes must lie in -1 .. ",
        classes - 1,
        ", got ",
        target_classes[i]);
  }
}

}  // namespace d2defense
