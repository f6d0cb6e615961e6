// SPDX-License-Identifier: Apache-2.0
// The dispatcher's edge: checks of the arguments, outputs, then the kernel of the device.
#include "inconsistency.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cmath>

#ifdef WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#endif

namespace d2defense {

InconsistencyTensors inconsistency(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes,
    double epsilon,
    int64_t topk,
    double objectness_floor,
    double iou_threshold,
    int64_t num_bins) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("d2defense::inconsistency", "")
                       .typed<decltype(inconsistency)>();
  return op.call(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes,
      epsilon,
      topk,
      objectness_floor,
      iou_threshold,
      num_bins);
}

namespace {

constexpr int64_t kMaxBins = int64_t{1} << 20;

void check_shapes(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes) {
  TORCH_CHECK_VALUE(
      objectness_logits.dim() == 1,
      "objectness_logits must have shape [N], got ",
      objectness_logits.sizes());
  const int64_t proposals = objectness_logits.size(0);
  TORCH_CHECK_VALUE(
      class_logits.dim() == 2 && class_logits.size(0) == proposals && class_logits.size(1) >= 2,
      "class_logits must have shape [",
      proposals,
      ", K + 1] with K >= 1, got ",
      class_logits.sizes());
  TORCH_CHECK_VALUE(
      proposal_boxes.dim() == 2 && proposal_boxes.size(0) == proposals &&
          proposal_boxes.size(1) == 4,
      "proposal_boxes must have shape [",
      proposals,
      ", 4], got ",
      proposal_boxes.sizes());
  TORCH_CHECK_VALUE(
      target_boxes.dim() == 2 && target_boxes.size(1) == 4,
      "target_boxes must have shape [M, 4], got ",
      target_boxes.sizes());
  TORCH_CHECK_VALUE(
      target_classes.dim() == 1 && target_classes.size(0) == target_boxes.size(0),
      "target_classes must have shape [",
      target_boxes.size(0),
      "], got ",
      target_classes.sizes());
  TORCH_CHECK_VALUE(
      proposal_offsets.dim() == 1 && proposal_offsets.size(0) >= 1,
      "proposal_offsets must have shape [G + 1], got ",
      proposal_offsets.sizes());
  TORCH_CHECK_VALUE(
      target_offsets.dim() == 1 && target_offsets.size(0) == proposal_offsets.size(0),
      "target_offsets must have shape [",
      proposal_offsets.size(0),
      "] like proposal_offsets, got ",
      target_offsets.sizes());
}

void check_type(const char* name, const at::Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
}

void check_types(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes) {
  const at::ScalarType logit_type = objectness_logits.scalar_type();
  TORCH_CHECK_TYPE(
      logit_type == at::kFloat || logit_type == at::kHalf || logit_type == at::kBFloat16,
      "objectness_logits must be Float, Half or BFloat16, got ",
      logit_type);
  check_type("class_logits", class_logits, logit_type);
  check_type("proposal_boxes", proposal_boxes, at::kFloat);
  check_type("proposal_offsets", proposal_offsets, at::kLong);
  check_type("target_boxes", target_boxes, at::kFloat);
  check_type("target_offsets", target_offsets, at::kLong);
  check_type("target_classes", target_classes, at::kLong);
}

void check_device(const char* name, const at::Tensor& tensor, at::Device device) {
  TORCH_CHECK_VALUE(
      tensor.device() == device,
      name,
      " must be on ",
      device,
      " like objectness_logits, got ",
      tensor.device());
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, name, " must be a dense tensor");
}

void check_settings(
    double epsilon, int64_t topk, double objectness_floor, double iou_threshold, int64_t num_bins) {
  TORCH_CHECK_VALUE(
      std::isfinite(epsilon) && epsilon >= 0.0,
      "epsilon must be finite and at least 0, got ",
      epsilon);
  TORCH_CHECK_VALUE(topk >= 0, "topk must be at least 0, got ", topk);
  TORCH_CHECK_VALUE(
      objectness_floor >= 0.0 && objectness_floor <= 1.0,
      "objectness_floor must lie in 0 .. 1, got ",
      objectness_floor);
  TORCH_CHECK_VALUE(
      iou_threshold > 0.0 && iou_threshold <= 1.0,
      "iou_threshold must be above 0 and at most 1, got ",
      iou_threshold);
  TORCH_CHECK_VALUE(
      num_bins >= 0 && num_bins <= kMaxBins,
      "num_bins must lie in 0 .. ",
      kMaxBins,
      ", got ",
      num_bins);
}

void check_offsets(const char* name, const at::Tensor& offsets, int64_t rows) {
  const int64_t* edges = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.size(0) - 1;
  TORCH_CHECK_VALUE(edges[0] == 0, name, " must start at 0, got ", edges[0]);
  for (int64_t i = 0; i < last; ++i) {
    TORCH_CHECK_VALUE(edges[i] <= edges[i + 1], name, " must not decrease, but does at ", i + 1);
  }
  TORCH_CHECK_VALUE(edges[last] == rows, name, " must end at ", rows, ", got ", edges[last]);
}

void check_classes(const at::Tensor& target_classes, int64_t classes) {
  const int64_t* values = target_classes.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < target_classes.size(0); ++i) {
    TORCH_CHECK_VALUE(
        values[i] >= -1 && values[i] < classes,
        "target_classes must lie in -1 .. ",
        classes - 1,
        ", got ",
        values[i]);
  }
}

// The operator on one device: the tensors stay alive here while a kernel holds their addresses.
class Call {
 public:
  Call(
      const at::Tensor& objectness_logits,
      const at::Tensor& class_logits,
      const at::Tensor& proposal_boxes,
      const at::Tensor& proposal_offsets,
      const at::Tensor& target_boxes,
      const at::Tensor& target_offsets,
      const at::Tensor& target_classes,
      double epsilon,
      int64_t topk,
      double objectness_floor,
      double iou_threshold,
      int64_t num_bins)
      : objectness_logits_(objectness_logits.contiguous()),
        // Its strides are handed on: a contiguous copy would be a second tensor of its size.
        class_logits_(class_logits),
        proposal_boxes_(proposal_boxes.contiguous()),
        proposal_offsets_(proposal_offsets.contiguous()),
        target_boxes_(target_boxes.contiguous()),
        target_offsets_(target_offsets.contiguous()),
        target_classes_(target_classes.contiguous()) {
    inputs_.logit_type = objectness_logits_.scalar_type();
    inputs_.objectness_logits = objectness_logits_.const_data_ptr();
    inputs_.class_logits = class_logits_.const_data_ptr();
    inputs_.row_stride = class_logits_.stride(0);
    inputs_.column_stride = class_logits_.stride(1);
    inputs_.proposal_boxes = proposal_boxes_.const_data_ptr<float>();
    inputs_.proposal_offsets = proposal_offsets_.const_data_ptr<int64_t>();
    inputs_.target_boxes = target_boxes_.const_data_ptr<float>();
    inputs_.target_offsets = target_offsets_.const_data_ptr<int64_t>();
    inputs_.target_classes = target_classes_.const_data_ptr<int64_t>();
    inputs_.proposals = objectness_logits_.size(0);
    inputs_.classes = class_logits_.size(1) - 1;
    inputs_.groups = proposal_offsets_.size(0) - 1;
    inputs_.targets = target_boxes_.size(0);
    inputs_.epsilon = epsilon;
    inputs_.topk = topk;
    inputs_.objectness_floor = objectness_floor;
    inputs_.iou_threshold = iou_threshold;
    inputs_.num_bins = num_bins;
  }

  const InconsistencyInputs& inputs() const {
    return inputs_;
  }

  void check_values() const {
    check_offsets("proposal_offsets", proposal_offsets_, inputs_.proposals);
    check_offsets("target_offsets", target_offsets_, inputs_.targets);
    check_classes(target_classes_, inputs_.classes);
  }

  InconsistencyOutputs allocate_outputs() {
    const at::TensorOptions options = objectness_logits_.options();
    const int64_t groups = inputs_.groups;
    const int64_t targets = inputs_.targets;
    tensors_ = InconsistencyTensors{
        at::empty({groups}, options.dtype(at::kDouble)),
        at::empty({groups}, options.dtype(at::kLong)),
        at::empty({groups}, options.dtype(at::kDouble)),
        at::empty({groups}, options.dtype(at::kLong)),
        at::empty({groups}, options.dtype(at::kFloat)),
        at::empty({groups}, options.dtype(at::kLong)),
        at::empty({groups, inputs_.num_bins}, options.dtype(at::kLong)),
        at::empty({targets}, options.dtype(at::kFloat)),
        at::empty({targets}, options.dtype(at::kFloat)),
        at::empty({targets}, options.dtype(at::kFloat)),
        at::empty({targets}, options.dtype(at::kInt)),
        at::empty({groups}, options.dtype(at::kLong))};
    return InconsistencyOutputs{
        std::get<0>(tensors_).mutable_data_ptr<double>(),
        std::get<1>(tensors_).mutable_data_ptr<int64_t>(),
        std::get<2>(tensors_).mutable_data_ptr<double>(),
        std::get<3>(tensors_).mutable_data_ptr<int64_t>(),
        std::get<4>(tensors_).mutable_data_ptr<float>(),
        std::get<5>(tensors_).mutable_data_ptr<int64_t>(),
        std::get<6>(tensors_).mutable_data_ptr<int64_t>(),
        std::get<7>(tensors_).mutable_data_ptr<float>(),
        std::get<8>(tensors_).mutable_data_ptr<float>(),
        std::get<9>(tensors_).mutable_data_ptr<float>(),
        std::get<10>(tensors_).mutable_data_ptr<int32_t>(),
        std::get<11>(tensors_).mutable_data_ptr<int64_t>()};
  }

  InconsistencyTensors take_outputs() {
    return std::move(tensors_);
  }

 private:
  at::Tensor objectness_logits_;
  at::Tensor class_logits_;
  at::Tensor proposal_boxes_;
  at::Tensor proposal_offsets_;
  at::Tensor target_boxes_;
  at::Tensor target_offsets_;
  at::Tensor target_classes_;
  InconsistencyInputs inputs_;
  InconsistencyTensors tensors_;
};

void check_arguments(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes,
    double epsilon,
    int64_t topk,
    double objectness_floor,
    double iou_threshold,
    int64_t num_bins) {
  check_shapes(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes);
  check_types(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes);
  const at::Device device = objectness_logits.device();
  check_device("objectness_logits", objectness_logits, device);
  check_device("class_logits", class_logits, device);
  check_device("proposal_boxes", proposal_boxes, device);
  check_device("proposal_offsets", proposal_offsets, device);
  check_device("target_boxes", target_boxes, device);
  check_device("target_offsets", target_offsets, device);
  check_device("target_classes", target_classes, device);
  check_settings(epsilon, topk, objectness_floor, iou_threshold, num_bins);
}

InconsistencyTensors inconsistency_cpu(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes,
    double epsilon,
    int64_t topk,
    double objectness_floor,
    double iou_threshold,
    int64_t num_bins) {
  check_arguments(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes,
      epsilon,
      topk,
      objectness_floor,
      iou_threshold,
      num_bins);
  Call call(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes,
      epsilon,
      topk,
      objectness_floor,
      iou_threshold,
      num_bins);
  call.check_values();
  const InconsistencyOutputs outputs = call.allocate_outputs();
  inconsistency_cpu_kernel(call.inputs(), outputs);
  return call.take_outputs();
}

#ifdef WITH_CUDA
constexpr int64_t kMostOnDevice = int64_t{1} << 30;

const char* describe(DeviceFault fault) {
  switch (fault) {
    case DeviceFault::kProposalOffsetsStart:
      return "proposal_offsets must start at 0";
    case DeviceFault::kProposalOffsetsDecrease:
      return "proposal_offsets must not decrease";
    case DeviceFault::kProposalOffsetsEnd:
      return "proposal_offsets must end at the number of proposals";
    case DeviceFault::kTargetOffsetsStart:
      return "target_offsets must start at 0";
    case DeviceFault::kTargetOffsetsDecrease:
      return "target_offsets must not decrease";
    case DeviceFault::kTargetOffsetsEnd:
      return "target_offsets must end at the number of targets";
    case DeviceFault::kTargetClasses:
      return "target_classes must lie in -1 .. K - 1";
    case DeviceFault::kNone:
      break;
  }
  return "no fault";
}

InconsistencyTensors inconsistency_cuda(
    const at::Tensor& objectness_logits,
    const at::Tensor& class_logits,
    const at::Tensor& proposal_boxes,
    const at::Tensor& proposal_offsets,
    const at::Tensor& target_boxes,
    const at::Tensor& target_offsets,
    const at::Tensor& target_classes,
    double epsilon,
    int64_t topk,
    double objectness_floor,
    double iou_threshold,
    int64_t num_bins) {
  check_arguments(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes,
      epsilon,
      topk,
      objectness_floor,
      iou_threshold,
      num_bins);
  // Columns are counted in 32 bits there, and each group is a block of one launch.
  TORCH_CHECK_VALUE(
      class_logits.size(1) < kMostOnDevice,
      "class_logits must have fewer than ",
      kMostOnDevice,
      " columns on a GPU");
  TORCH_CHECK_VALUE(
      proposal_offsets.size(0) < kMostOnDevice,
      "proposal_offsets must describe fewer than ",
      kMostOnDevice,
      " groups on a GPU");
  const c10::cuda::CUDAGuard guard(objectness_logits.device());
  Call call(
      objectness_logits,
      class_logits,
      proposal_boxes,
      proposal_offsets,
      target_boxes,
      target_offsets,
      target_classes,
      epsilon,
      topk,
      objectness_floor,
      iou_threshold,
      num_bins);
  const InconsistencyOutputs outputs = call.allocate_outputs();
  const at::Tensor workspace = at::empty(
      {inconsistency_cuda_workspace(call.inputs().proposals, call.inputs().groups)},
      objectness_logits.options().dtype(at::kByte));
  const DeviceFault fault =
      inconsistency_cuda_kernel(call.inputs(), outputs, workspace.mutable_data_ptr());
  TORCH_CHECK_VALUE(fault == DeviceFault::kNone, describe(fault));
  return call.take_outputs();
}
#endif

}  // namespace

TORCH_LIBRARY_IMPL(d2defense, CPU, library) {
  library.impl("inconsistency", &inconsistency_cpu);
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(d2defense, CUDA, library) {
  library.impl("inconsistency", &inconsistency_cuda);
}
#endif

}  // namespace d2defense
