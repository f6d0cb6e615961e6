// SPDX-License-Identifier: Apache-2.0
// The operator's gradient with respect to both heads' logits. Calls that need none go to the plain
// operator, which keeps nothing.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../operators.h"

namespace d2defense {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <typename Signature, typename... Leading>
auto call(
    const c10::TypedOperatorHandle<Signature>& operation,
    const InconsistencyArguments& given,
    const Leading&... leading) {
  const auto function = [&](const auto&... argument) { return operation.call(argument...); };
  return call_with_fields(function, given, leading...);
}

template <typename... Tensor>
variable_list list_of(const std::tuple<Tensor...>& tensors) {
  return std::apply([](const auto&... tensor) { return variable_list{tensor...}; }, tensors);
}

// Places of the results that have a gradient.
constexpr size_t kTauSum = 0;
constexpr size_t kConfidentSum = 2;
constexpr size_t kTargetObjectness = 7;
constexpr size_t kTargetForeground = 8;
constexpr size_t kTargetTrueClass = 9;
constexpr size_t kResults = std::tuple_size_v<InconsistencyTensors>;

class Inconsistency : public torch::autograd::Function<Inconsistency> {
 public:
  // The logits stand among the arguments once more: autograd looks for tensors, not into structs.
  static variable_list forward(
      AutogradContext* context,
      const at::Tensor& objectness_logits,
      const at::Tensor& class_logits,
      const InconsistencyArguments& given) {
    static const auto operation = find<ForwardSignature>("d2defense::_inconsistency_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    variable_list results = list_of(call(operation, given));
    variable_list kept{
        objectness_logits,
        class_logits,
        given.proposal_boxes,
        given.proposal_offsets,
        given.target_boxes,
        given.target_offsets,
        given.target_classes};
    kept.insert(kept.end(), results.begin() + kResults, results.end());
    results.resize(kResults);
    variable_list without_gradient;
    for (size_t i = 0; i < kResults; ++i) {
      if (i != kTauSum && i != kConfidentSum && i != kTargetObjectness && i != kTargetForeground &&
          i != kTargetTrueClass) {
        without_gradient.push_back(results[i]);
      }
    }
    context->save_for_backward(std::move(kept));
    context->mark_non_differentiable(without_gradient);
    context->set_materialize_grads(false);
    context->saved_data["epsilon"] = given.epsilon;
    context->saved_data["topk"] = given.topk;
    context->saved_data["objectness_floor"] = given.objectness_floor;
    context->saved_data["iou_threshold"] = given.iou_threshold;
    context->saved_data["num_bins"] = given.num_bins;
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto operation = find<BackwardSignature>("d2defense::_inconsistency_backward");
    const variable_list kept = context->get_saved_variables();
    const InconsistencyArguments given{
        kept[0],
        kept[1],
        kept[2],
        kept[3],
        kept[4],
        kept[5],
        kept[6],
        context->saved_data["epsilon"].toDouble(),
        context->saved_data["topk"].toInt(),
        context->saved_data["objectness_floor"].toDouble(),
        context->saved_data["iou_threshold"].toDouble(),
        context->saved_data["num_bins"].toInt()};
    const auto optional = [&](size_t result) {
      return gradients[result].defined() ? std::optional<at::Tensor>(gradients[result])
                                         : std::nullopt;
    };
    const auto [objectness_logits, class_logits] = call(
        operation,
        given,
        optional(kTauSum),
        optional(kConfidentSum),
        optional(kTargetObjectness),
        optional(kTargetForeground),
        optional(kTargetTrueClass),
        kept[7],
        kept[8],
        kept[9]);
    return {objectness_logits, class_logits, at::Tensor()};
  }
};

template <size_t... i>
InconsistencyTensors tuple_of(const variable_list& tensors, std::index_sequence<i...>) {
  return InconsistencyTensors{tensors[i]...};
}

bool wants_gradient(const at::Tensor& tensor) {
  // The second is forward mode, which the function above refuses.
  return tensor.requires_grad() || tensor._fw_grad(0).defined();
}

InconsistencyTensors inconsistency(const InconsistencyArguments& given) {
  const bool wanted = wants_gradient(given.objectness_logits) || wants_gradient(given.class_logits);
  if (at::GradMode::is_enabled() && wanted) {
    const variable_list results =
        Inconsistency::apply(given.objectness_logits, given.class_logits, given);
    return tuple_of(results, std::make_index_sequence<kResults>());
  }
  static const auto operation = find<OperatorSignature>("d2defense::inconsistency");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call(operation, given);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2defense, Autograd, library) {
  library.impl("inconsistency", &Operator<inconsistency>::call);
  // Of the gradients there is none: who asks for one gets an error.
  library.impl("_inconsistency_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace d2defense
