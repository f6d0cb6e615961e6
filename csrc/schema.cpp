// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

#include <string>

namespace {

const std::string kArguments =
    "Tensor objectness_logits, Tensor class_logits, Tensor proposal_boxes, "
    "Tensor proposal_offsets, Tensor target_boxes, Tensor target_offsets, "
    "Tensor target_classes, *, float epsilon=0.1, int topk=0, float objectness_floor=0.8, "
    "float iou_threshold=0.5, int num_bins=0";

const std::string kResults =
    "Tensor tau_sum, Tensor tau_count, Tensor confident_sum, Tensor confident_count, "
    "Tensor score_max, Tensor nonfinite, Tensor histogram, Tensor target_objectness, "
    "Tensor target_foreground, Tensor target_true_class, Tensor target_matches, "
    "Tensor unmatched_foreground";

const std::string kSaved = "Tensor largest_logit, Tensor foreground_sum, Tensor maximum_rows";

// Of the results that have one; none is zero.
const std::string kGradients =
    "Tensor? tau_sum_grad, Tensor? confident_sum_grad, Tensor? target_objectness_grad, "
    "Tensor? target_foreground_grad, Tensor? target_true_class_grad";

void define(torch::Library& library, const std::string& schema) {
  library.def(schema.c_str());
}

}  // namespace

TORCH_LIBRARY(d2defense, library) {
  library.set_python_module("d2defense.ops.extension");
  define(library, "inconsistency(" + kArguments + ") -> (" + kResults + ")");
  define(
      library, "_inconsistency_forward(" + kArguments + ") -> (" + kResults + ", " + kSaved + ")");
  define(
      library,
      "_inconsistency_backward(" + kGradients + ", " + kSaved + ", " + kArguments +
          ") -> (Tensor objectness_logits_grad, Tensor class_logits_grad)");
}
