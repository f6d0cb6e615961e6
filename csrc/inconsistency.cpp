// SPDX-License-Identifier: Apache-2.0
// From the dispatcher's call to the kernel of the device: checked arguments, outputs, addresses.
#include "inconsistency.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "arguments.h"
#include "operators.h"

#ifdef WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace d2defense {
namespace {

// Offsets and classes in one tensor of their own: one copy brings them to a GPU, and whatever
// becomes of the caller's, what was checked is what a kernel reads.
at::Tensor pack_and_check(const InconsistencyArguments& given) {
  const int64_t edges = given.proposal_offsets.size(0);
  const int64_t targets = given.target_classes.size(0);
  const at::Device device = given.objectness_logits.device();
  const auto options = at::TensorOptions(at::kLong).pinned_memory(device.is_cuda());
  const at::Tensor packed = at::empty({2 * edges + targets}, options);
  int64_t* values = packed.mutable_data_ptr<int64_t>();
  int64_t* next = values;
  for (const at::Tensor* each :
       {&given.proposal_offsets, &given.target_offsets, &given.target_classes}) {
    const at::Tensor source = each->contiguous();
    next = std::copy_n(source.const_data_ptr<int64_t>(), source.numel(), next);
  }
  check_offsets("proposal_offsets", values, edges - 1, given.objectness_logits.size(0));
  check_offsets("target_offsets", values + edges, edges - 1, targets);
  check_classes(values + 2 * edges, targets, given.class_logits.size(1) - 1);
  return device.is_cuda() ? packed.to(device, /*non_blocking=*/true) : packed;
}

// What a kernel reads; the tensors stay alive here while it holds their addresses.
class Inputs {
 public:
  explicit Inputs(const InconsistencyArguments& given)
      : objectness_logits_(given.objectness_logits.contiguous()),
        // Its strides are handed on: a contiguous copy would be a second tensor of its size.
        class_logits_(given.class_logits),
        proposal_boxes_(given.proposal_boxes.contiguous()),
        target_boxes_(given.target_boxes.contiguous()),
        packed_(pack_and_check(given)) {
    const int64_t edges = given.proposal_offsets.size(0);
    const int64_t* packed = packed_.const_data_ptr<int64_t>();
    addresses_.logit_type = objectness_logits_.scalar_type();
    addresses_.objectness_logits = objectness_logits_.const_data_ptr();
    addresses_.class_logits = class_logits_.const_data_ptr();
    addresses_.row_stride = class_logits_.stride(0);
    addresses_.column_stride = class_logits_.stride(1);
    addresses_.proposal_boxes = proposal_boxes_.const_data_ptr<float>();
    addresses_.proposal_offsets = packed;
    addresses_.target_boxes = target_boxes_.const_data_ptr<float>();
    addresses_.target_offsets = packed + edges;
    addresses_.target_classes = packed + 2 * edges;
    addresses_.proposals = objectness_logits_.size(0);
    addresses_.classes = class_logits_.size(1) - 1;
    addresses_.groups = edges - 1;
    addresses_.targets = target_boxes_.size(0);
    addresses_.epsilon = given.epsilon;
    addresses_.topk = given.topk;
    addresses_.objectness_floor = given.objectness_floor;
    addresses_.iou_threshold = given.iou_threshold;
    addresses_.num_bins = given.num_bins;
  }

  const InconsistencyInputs& addresses() const {
    return addresses_;
  }

  at::Tensor empty(at::IntArrayRef shape, at::ScalarType type) const {
    return at::empty(shape, objectness_logits_.options().dtype(type));
  }

 private:
  at::Tensor objectness_logits_;
  at::Tensor class_logits_;
  at::Tensor proposal_boxes_;
  at::Tensor target_boxes_;
  at::Tensor packed_;
  InconsistencyInputs addresses_;
};

InconsistencyTensors empty_outputs(const Inputs& inputs) {
  const int64_t groups = inputs.addresses().groups;
  const int64_t targets = inputs.addresses().targets;
  return InconsistencyTensors{
      inputs.empty({groups}, at::kDouble),
      inputs.empty({groups}, at::kLong),
      inputs.empty({groups}, at::kDouble),
      inputs.empty({groups}, at::kLong),
      inputs.empty({groups}, at::kFloat),
      inputs.empty({groups}, at::kLong),
      inputs.empty({groups, inputs.addresses().num_bins}, at::kLong),
      inputs.empty({targets}, at::kFloat),
      inputs.empty({targets}, at::kFloat),
      inputs.empty({targets}, at::kFloat),
      inputs.empty({targets}, at::kInt),
      inputs.empty({groups}, at::kLong)};
}

InconsistencyOutputs addresses_of(const InconsistencyTensors& tensors) {
  return InconsistencyOutputs{
      std::get<0>(tensors).mutable_data_ptr<double>(),
      std::get<1>(tensors).mutable_data_ptr<int64_t>(),
      std::get<2>(tensors).mutable_data_ptr<double>(),
      std::get<3>(tensors).mutable_data_ptr<int64_t>(),
      std::get<4>(tensors).mutable_data_ptr<float>(),
      std::get<5>(tensors).mutable_data_ptr<int64_t>(),
      std::get<6>(tensors).mutable_data_ptr<int64_t>(),
      std::get<7>(tensors).mutable_data_ptr<float>(),
      std::get<8>(tensors).mutable_data_ptr<float>(),
      std::get<9>(tensors).mutable_data_ptr<float>(),
      std::get<10>(tensors).mutable_data_ptr<int32_t>(),
      std::get<11>(tensors).mutable_data_ptr<int64_t>()};
}

SavedTensors empty_saved(const Inputs& inputs) {
  const int64_t proposals = inputs.addresses().proposals;
  return SavedTensors{
      inputs.empty({proposals}, at::kFloat),
      inputs.empty({proposals}, at::kFloat),
      inputs.empty({kTargetMaxima, inputs.addresses().targets}, at::kLong)};
}

InconsistencySaved addresses_of(const SavedTensors& tensors) {
  return InconsistencySaved{
      std::get<0>(tensors).mutable_data_ptr<float>(),
      std::get<1>(tensors).mutable_data_ptr<float>(),
      std::get<2>(tensors).mutable_data_ptr<int64_t>()};
}

#ifdef WITH_CUDA
void check_on_gpu(const InconsistencyArguments& given) {
  // Columns are counted in 32 bits there, a proposal's number is kept in as many, and each group is
  // a block of one launch.
  constexpr int64_t kMost = int64_t{1} << 30;
  TORCH_CHECK_VALUE(
      given.class_logits.size(1) < kMost,
      "class_logits must have fewer than ",
      kMost,
      " columns on a GPU");
  TORCH_CHECK_VALUE(
      given.objectness_logits.size(0) < 4 * kMost - 1,
      "objectness_logits must have fewer than ",
      4 * kMost - 1,
      " rows on a GPU");
  TORCH_CHECK_VALUE(
      given.proposal_offsets.size(0) < kMost,
      "proposal_offsets must describe fewer than ",
      kMost,
      " groups on a GPU");
  // A graph would upload them anew at each replay, from memory that is no longer theirs.
  TORCH_CHECK(
      c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None,
      "inconsistency cannot be captured in a CUDA graph, since its offsets come from the CPU");
}
#endif

void check(const InconsistencyArguments& given, at::DeviceType device) {
  check_arguments(given, device);
#ifdef WITH_CUDA
  if (device == at::kCUDA) {
    check_on_gpu(given);
  }
#endif
}

template <at::DeviceType device, auto kernel>
InconsistencyTensors inconsistency(const InconsistencyArguments& given) {
  const c10::DeviceGuard guard(given.objectness_logits.device());
  check(given, device);
  const Inputs inputs(given);
  InconsistencyTensors outputs = empty_outputs(inputs);
  kernel(inputs.addresses(), addresses_of(outputs), InconsistencySaved{});
  return outputs;
}

template <at::DeviceType device, auto kernel>
ForwardTensors inconsistency_forward(const InconsistencyArguments& given) {
  const c10::DeviceGuard guard(given.objectness_logits.device());
  check(given, device);
  const Inputs inputs(given);
  InconsistencyTensors outputs = empty_outputs(inputs);
  SavedTensors saved = empty_saved(inputs);
  kernel(inputs.addresses(), addresses_of(outputs), addresses_of(saved));
  return std::tuple_cat(std::move(outputs), std::move(saved));
}

// A tensor of the backward operator, contiguous; null and undefined where there is none.
template <typename Value>
class Checked {
 public:
  Checked(
      const char* name,
      const std::optional<at::Tensor>& tensor,
      at::IntArrayRef shape,
      at::Device device) {
    if (!tensor.has_value() || !tensor->defined()) {
      return;
    }
    TORCH_CHECK_VALUE(
        tensor->sizes() == shape, name, " must have shape ", shape, ", got ", tensor->sizes());
    check_type(name, *tensor, c10::CppTypeToScalarType<Value>::value);
    check_device(name, *tensor, device);
    tensor_ = tensor->contiguous();
  }

  const Value* address() const {
    return tensor_.defined() ? tensor_.const_data_ptr<Value>() : nullptr;
  }

 private:
  at::Tensor tensor_;
};

template <at::DeviceType device_type, auto kernel>
GradientTensors inconsistency_backward(const InconsistencyBackwardArguments& given) {
  const at::Device device = given.forward.objectness_logits.device();
  const c10::DeviceGuard guard(device);
  check(given.forward, device_type);
  const Inputs inputs(given.forward);
  const int64_t proposals = inputs.addresses().proposals;
  const int64_t columns = inputs.addresses().classes + 1;
  const int64_t groups = inputs.addresses().groups;
  const int64_t targets = inputs.addresses().targets;
  const Checked<double> tau_sum("tau_sum_grad", given.tau_sum_grad, {groups}, device);
  const Checked<double> confident_sum(
      "confident_sum_grad", given.confident_sum_grad, {groups}, device);
  const Checked<float> target_objectness(
      "target_objectness_grad", given.target_objectness_grad, {targets}, device);
  const Checked<float> target_foreground(
      "target_foreground_grad", given.target_foreground_grad, {targets}, device);
  const Checked<float> target_true_class(
      "target_true_class_grad", given.target_true_class_grad, {targets}, device);
  const Checked<float> largest_logit("largest_logit", given.largest_logit, {proposals}, device);
  const Checked<float> foreground_sum("foreground_sum", given.foreground_sum, {proposals}, device);
  const Checked<int64_t> maximum_rows(
      "maximum_rows", given.maximum_rows, {kTargetMaxima, targets}, device);
  const at::ScalarType type = inputs.addresses().logit_type;
  GradientTensors outputs{
      inputs.empty({proposals}, type), inputs.empty({proposals, columns}, type)};
  kernel(
      inputs.addresses(),
      InconsistencyGradients{
          tau_sum.address(),
          confident_sum.address(),
          {target_objectness.address(), target_foreground.address(), target_true_class.address()},
          largest_logit.address(),
          foreground_sum.address(),
          maximum_rows.address(),
          std::get<0>(outputs).mutable_data_ptr(),
          std::get<1>(outputs).mutable_data_ptr()});
  return outputs;
}

template <at::DeviceType device, auto kernel, auto backward_kernel>
void register_kernels(torch::Library& library) {
  library.impl("inconsistency", &Operator<inconsistency<device, kernel>>::call);
  library.impl(
      "_inconsistency_forward", &ForwardOperator<inconsistency_forward<device, kernel>>::call);
  library.impl(
      "_inconsistency_backward",
      &BackwardOperator<inconsistency_backward<device, backward_kernel>>::call);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2defense, CPU, library) {
  register_kernels<at::kCPU, inconsistency_cpu_kernel, inconsistency_backward_cpu_kernel>(library);
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(d2defense, CUDA, library) {
  register_kernels<at::kCUDA, inconsistency_cuda_kernel, inconsistency_backward_cuda_kernel>(
      library);
}
#endif

}  // namespace d2defense
