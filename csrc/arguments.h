// SPDX-License-Identifier: Apache-2.0
// The operator's arguments as one object, and their checks: the dispatcher's edge.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

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

// What the dispatcher calls: a function of the fields above.
template <typename Result>
using InconsistencySignature = Result(
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

// Makes such a function of one that takes the struct: Unpacked<function, Signature>::call.
template <auto function, typename Signature>
struct Unpacked;

template <auto function, typename Result, typename... Field>
struct Unpacked<function, Result(Field...)> {
  static Result call(Field... field) {
    return function(InconsistencyArguments{field...});
  }
};

// Shapes, types, devices and settings; the logits and boxes are on `device`, offsets and classes on
// the CPU. Throws c10::ValueError or c10::TypeError naming the argument that is wrong.
void check_arguments(const InconsistencyArguments& arguments, at::DeviceType device);

// Values of the offsets and classes, contiguous and on the CPU: with them, every row and column
// that a kernel reads exists. Throws likewise.
void check_offsets(const char* name, const int64_t* offsets, int64_t groups, int64_t rows);
void check_classes(const int64_t* target_classes, int64_t targets, int64_t classes);

}  // namespace d2defense
