// SPDX-License-Identifier: Apache-2.0
// From the dispatcher's call to the kernel of the device: checked arguments, outputs, addresses.
#include "inconsistency.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "arguments.h"

#ifdef WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace d2defense {
namespace {

// tau_sum, tau_count, confident_sum, confident_count, score_max, nonfinite, histogram,
// target_objectness, target_foreground, target_true_class, target_matches, unmatched_foreground
using InconsistencyTensors = std::tuple<
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor,
    at::Tensor>;

// Offsets and classes in one tensor of their own: one copy brings them to a GPU, and whatever
// becomes of the caller's, what was checked is what a kernel reads.
at::Tensor pack_and_check(const InconsistencyArguments& given) {
  const int64_t edges = given.proposal_offsets.size(0);
  const int64_t targets = given.target_classes.size(0);
  const bool pinned = given.objectness_logits.is_cuda();
  at::Tensor packed =
      at::empty({2 * edges + targets}, at::TensorOptions(at::kLong).pinned_memory(pinned));
  at::cat_out(packed, {given.proposal_offsets, given.target_offsets, given.target_classes});
  const int64_t* values = packed.const_data_ptr<int64_t>();
  check_offsets("proposal_offsets", values, edges - 1, given.objectness_logits.size(0));
  check_offsets("target_offsets", values + edges, edges - 1, targets);
  check_classes(values + 2 * edges, targets, given.class_logits.size(1) - 1);
  return packed;
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
        packed_(pack_and_check(given).to(given.objectness_logits.device(), true)) {
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

InconsistencyTensors inconsistency_cpu(const InconsistencyArguments& arguments) {
  check_arguments(arguments, at::kCPU);
  const Inputs inputs(arguments);
  InconsistencyTensors outputs = empty_outputs(inputs);
  inconsistency_cpu_kernel(inputs.addresses(), addresses_of(outputs));
  return outputs;
}

#ifdef WITH_CUDA
void check_sizes_on_device(const InconsistencyArguments& arguments) {
  // Columns are counted in 32 bits there, and each group is a block of one launch.
  constexpr int64_t kMost = int64_t{1} << 30;
  TORCH_CHECK_VALUE(
      arguments.class_logits.size(1) < kMost,
      "class_logits must have fewer than ",
      kMost,
      " columns on a GPU");
  TORCH_CHECK_VALUE(
      arguments.proposal_offsets.size(0) < kMost,
      "proposal_offsets must describe fewer than ",
      kMost,
      " groups on a GPU");
}

InconsistencyTensors inconsistency_cuda(const InconsistencyArguments& arguments) {
  check_arguments(arguments, at::kCUDA);
  check_sizes_on_device(arguments);
  const c10::cuda::CUDAGuard guard(arguments.objectness_logits.device());
  // A graph would upload them anew at each replay, from memory that is no longer theirs.
  TORCH_CHECK(
      c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None,
      "inconsistency cannot be captured in a CUDA graph, since its offsets come from the CPU");
  const Inputs inputs(arguments);
  InconsistencyTensors outputs = empty_outputs(inputs);
  const InconsistencyInputs& addresses = inputs.addresses();
  const at::Tensor workspace = inputs.empty(
      {inconsistency_cuda_workspace(addresses.proposals, addresses.groups)}, at::kByte);
  inconsistency_cuda_kernel(addresses, addresses_of(outputs), workspace.mutable_data_ptr());
  return outputs;
}
#endif

using Signature = InconsistencySignature<InconsistencyTensors>;

}  // namespace

TORCH_LIBRARY_IMPL(d2defense, CPU, library) {
  library.impl("inconsistency", &Unpacked<inconsistency_cpu, Signature>::call);
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(d2defense, CUDA, library) {
  library.impl("inconsistency", &Unpacked<inconsistency_cuda, Signature>::call);
}
#endif

}  // namespace d2defense
