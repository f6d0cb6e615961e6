// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

TORCH_LIBRARY(d2defense, library) {
  library.set_python_module("d2defense.ops.extension");
  library.def(
      "inconsistency(Tensor objectness_logits, Tensor class_logits, Tensor proposal_boxes, "
      "Tensor proposal_offsets, Tensor target_boxes, Tensor target_offsets, "
      "Tensor target_classes, *, float epsilon=0.1, int topk=0, float objectness_floor=0.8, "
      "float iou_threshold=0.5, int num_bins=0) -> (Tensor tau_sum, Tensor tau_count, "
      "Tensor confident_sum, Tensor confident_count, Tensor score_max, Tensor nonfinite, "
      "Tensor histogram, Tensor target_objectness, Tensor target_foreground, "
      "Tensor target_true_class, Tensor target_matches, Tensor unmatched_foreground)");
}

// Statistics carry no gradient: inputs that require one are read like any others.
TORCH_LIBRARY_IMPL(d2defense, Autograd, library) {
  library.impl("inconsistency", torch::CppFunction::makeFallthrough());
}
