// SPDX-License-Identifier: Apache-2.0
// The operator's arguments as one object, and their checks: the dispatcher's edge.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace d2defense {

// In the order of the schema. The references are the caller's.
struct InconsistencyArguments {
  const at::Tensor& objectness_logits;
  const at::Tensor& class_logits;
  const at::Tensor& proposal_boxes;
  const at::Tensor& proposal_offsets;
  const at::Tensor& target_boxes;
  const at::Tensor& target_offsets;
  const at::Tensor& target_classes;
  double epsilon;
  int64_t topk;
  double objectness_floor;
  double iou_threshold;
  int64_t num_bins;
};

// Those of the backward operator: the gradients of the results that have one, what the forward
// pass kept, and what it was called with.
struct InconsistencyBackwardArguments {
  const std::optional<at::Tensor>& tau_sum_grad;
  const std::optional<at::Tensor>& confident_sum_grad;
  const std::optional<at::Tensor>& target_objectness_grad;
  const std::optional<at::Tensor>& target_foreground_grad;
  const std::optional<at::Tensor>& target_true_class_grad;
  const at::Tensor& largest_logit;
  const at::Tensor& foreground_sum;
  const at::Tensor& maximum_rows;
  InconsistencyArguments forward;
};

// What the dispatcher calls: functions of the fields above.
template <typename Result, typename... Leading>
using InconsistencySignature = Result(
    Leading...,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&,
    double,
    int64_t,
    double,
    double,
    int64_t);

// Makes such a function of one that takes a struct: Unpacked<function, Struct, Signature>::call.
template <auto function, typename Struct, typename Signature>
struct Unpacked;

template <auto function, typename Struct, typename Result, typename... Field>
struct Unpacked<function, Struct, Result(Field...)> {
  static Result call(Field... field) {
    return function(Struct{field...});
  }
};

// Calls such a function: with `leading`, then the fields.
template <typename Function, typename... Leading>
auto call_with_fields(
    const Function& function, const InconsistencyArguments& given, const Leading&... leading) {
  return function(
      leading...,
      given.objectness_logits,
      given.class_logits,
      given.proposal_boxes,
      given.proposal_offsets,
      given.target_boxes,
      given.target_offsets,
      given.target_classes,
      given.epsilon,
      given.topk,
      given.objectness_floor,
      given.iou_threshold,
      given.num_bins);
}

void check_type(const char* name, const at::Tensor& tensor, at::ScalarType type);
void check_device(const char* name, const at::Tensor& tensor, at::Device device);

// Shapes, types, devices and settings; the logits and boxes are on `device`, offsets and classes on
// the CPU. Throws c10::ValueError or c10::TypeError naming the argument that is wrong.
void check_arguments(const InconsistencyArguments& arguments, at::DeviceType device);

// Values of the offsets and classes, contiguous and on the CPU: with them, every row and column
// that a kernel reads exists. Throws likewise.
void check_offsets(const char* name, const int64_t* offsets, int64_t groups, int64_t rows);
void check_classes(const int64_t* target_classes, int64_t targets, int64_t classes);

}  // namespace d2defense
