// SPDX-License-Identifier: Apache-2.0
// The operators as the dispatcher knows them: schema.cpp in C++ types.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "arguments.h"

namespace d2defense {

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
// largest_logit, foreground_sum, maximum_rows
using SavedTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using ForwardTensors = decltype(std::tuple_cat(InconsistencyTensors(), SavedTensors()));
// Of objectness_logits and class_logits.
using GradientTensors = std::tuple<at::Tensor, at::Tensor>;

using OperatorSignature = InconsistencySignature<InconsistencyTensors>;
using ForwardSignature = InconsistencySignature<ForwardTensors>;
using BackwardSignature = InconsistencySignature<
    GradientTensors,
    const std::optional<at::Tensor>&,
    const std::optional<at::Tensor>&,
    const std::optional<at::Tensor>&,
    const std::optional<at::Tensor>&,
    const std::optional<at::Tensor>&,
    const at::Tensor&,
    const at::Tensor&,
    const at::Tensor&>;

template <auto function>
using Operator = Unpacked<function, InconsistencyArguments, OperatorSignature>;
template <auto function>
using ForwardOperator = Unpacked<function, InconsistencyArguments, ForwardSignature>;
template <auto function>
using BackwardOperator = Unpacked<function, InconsistencyBackwardArguments, BackwardSignature>;

}  // namespace d2defense
