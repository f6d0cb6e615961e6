// SPDX-License-Identifier: Apache-2.0
// The backward pass on a CPU: chunk by chunk, each row written once. A row that nothing asks for
// is filled with zeros and its logits are not read.

// Every function on vectors is inlined: none crosses a call, so its calling convention is nobody's
// concern.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include <algorithm>
#include <vector>

#include "../inconsistency.h"
#include "../proposal_score.h"
#include "chunks.h"
#include "instruction_set.h"
#include "scores.h"
#include "vector.h"

namespace d2defense {
namespace {

// The gradient of a target's true_class, at the proposal that has the maximum.
struct ClassGradient {
  int64_t row;
  int64_t column;
  double gradient;
};

// What the targets of a chunk's group ask of the chunk's proposals.
struct TargetGradients {
  double objectness[kChunkRows];
  double foreground[kChunkRows];
  std::vector<ClassGradient> classes;  // in the order of their rows, then of their targets
};

void gather(
    const InconsistencyInputs& inputs,
    const InconsistencyGradients& gradients,
    const Chunk& chunk,
    TargetGradients& gathered) {
  std::fill_n(gathered.objectness, chunk.end - chunk.begin, 0.0);
  std::fill_n(gathered.foreground, chunk.end - chunk.begin, 0.0);
  gathered.classes.clear();
  const int64_t end = inputs.target_offsets[chunk.group + 1];
  for (int which = 0; which < kTargetMaxima; ++which) {
    const float* values = gradients.target_maxima[which];
    if (values == nullptr) {
      continue;
    }
    const int64_t* rows = gradients.maximum_rows + which * inputs.targets;
    for (int64_t target = inputs.target_offsets[chunk.group]; target < end; ++target) {
      const int64_t row = rows[target];
      if (row < chunk.begin || row >= chunk.end) {
        continue;
      }
      const double gradient = values[target];
      if (which == kObjectness) {
        gathered.objectness[row - chunk.begin] += gradient;
      } else if (which == kForeground) {
        gathered.foreground[row - chunk.begin] += gradient;
      } else if (inputs.target_classes[target] >= 0) {
        gathered.classes.push_back(ClassGradient{row, inputs.target_classes[target], gradient});
      }
    }
  }
  std::stable_sort(
      gathered.classes.begin(),
      gathered.classes.end(),
      [](const ClassGradient& a, const ClassGradient& b) { return a.row < b.row; });
}

// A chunk's work, compiled for one register width.
template <typename Logit, int Bytes>
class ChunkGradient {
  using V = Vectors<Bytes>;
  using Float = typename V::Float;
  using Double = typename V::Double;
  using Lanes = ScoreLanes<Bytes>;

  // Gradients of sixteen proposals.
  struct Block : Scores {
    alignas(64) double objectness_logit[kLanes];
    alignas(64) double wanted_foreground[kLanes];  // with respect to q
    alignas(64) double background_probability[kLanes];
  };

 public:
  static D2DEFENSE_VECTOR_INLINE void write(
      const InconsistencyInputs& inputs,
      const InconsistencyGradients& gradients,
      const Chunk& chunk,
      const TargetGradients& gathered) {
    const double tau = gradients.tau_sum ? gradients.tau_sum[chunk.group] : 0.0;
    const double confident = gradients.confident_sum ? gradients.confident_sum[chunk.group] : 0.0;
    Logit* objectness_logits = static_cast<Logit*>(gradients.objectness_logits);
    Logit* class_logits = static_cast<Logit*>(gradients.class_logits);
    const int64_t columns = inputs.classes + 1;
    const ClassGradient* classes = gathered.classes.data();
    const ClassGradient* classes_end = classes + gathered.classes.size();
    Block block{};
    for (block.begin = chunk.begin; block.begin < chunk.end; block.begin += kLanes) {
      block.lanes = std::min<int64_t>(kLanes, chunk.end - block.begin);
      const int64_t end = block.begin + block.lanes;
      const double* objectness = gathered.objectness + (block.begin - chunk.begin);
      const double* foreground = gathered.foreground + (block.begin - chunk.begin);
      const bool asked = tau != 0.0 || confident != 0.0 ||
                         (classes != classes_end && classes->row < end) ||
                         any(objectness, block.lanes) || any(foreground, block.lanes);
      if (!asked) {
        std::fill_n(objectness_logits + block.begin, block.lanes, Logit(0.0f));
        std::fill_n(class_logits + block.begin * columns, block.lanes * columns, Logit(0.0f));
        continue;
      }
      read(inputs, gradients, block);
      Lanes::exponentiate(block);
      Lanes::score(block);
      differentiate(inputs, chunk, objectness, foreground, tau, confident, block);
      for (int64_t lane = 0; lane < block.lanes; ++lane) {
        const int64_t row = block.begin + lane;
        const ClassGradient* next = classes;
        while (next != classes_end && next->row == row) {
          ++next;
        }
        objectness_logits[row] =
            static_cast<Logit>(static_cast<float>(block.objectness_logit[lane]));
        write_row(inputs, block, lane, classes, next, class_logits + row * columns);
        classes = next;
      }
    }
  }

 private:
  // Whether one is not zero; NaN is not.
  static D2DEFENSE_VECTOR_INLINE bool any(const double* values, int64_t count) {
    bool found = false;
    for (int64_t i = 0; i < count; ++i) {
      found = found || values[i] != 0.0;
    }
    return found;
  }

  static D2DEFENSE_VECTOR_INLINE void read(
      const InconsistencyInputs& inputs, const InconsistencyGradients& gradients, Block& block) {
    const Logit* logits = static_cast<const Logit*>(inputs.objectness_logits) + block.begin;
    const Logit* background = static_cast<const Logit*>(inputs.class_logits) +
                              block.begin * inputs.row_stride +
                              inputs.classes * inputs.column_stride;
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      block.logit[lane] = static_cast<float>(logits[lane]);
      block.background[lane] = static_cast<float>(background[lane * inputs.row_stride]);
      block.largest_logit[lane] = gradients.largest_logit[block.begin + lane];
      block.foreground_sum[lane] = gradients.foreground_sum[block.begin + lane];
    }
  }

  static D2DEFENSE_VECTOR_INLINE void differentiate(
      const InconsistencyInputs& inputs,
      const Chunk& chunk,
      const double* objectness,
      const double* foreground,
      double tau,
      double confident,
      Block& block) {
    alignas(64) double of_objectness[kLanes] = {};
    alignas(64) double of_foreground[kLanes] = {};
    std::copy_n(objectness, block.lanes, of_objectness);
    std::copy_n(foreground, block.lanes, of_foreground);
    const int64_t leading_lanes =
        std::min(block.lanes, leading_rows(inputs, chunk.group, block.begin));
    for (int lane = 0; lane < kLanes; lane += V::kDoubles) {
      const Double of_difference = difference_gradient(
          V::load_double(block.difference + lane),
          Lanes::significant(inputs, block, leading_lanes, lane),
          Lanes::confident(inputs, block, lane),
          Lanes::number(tau),
          Lanes::number(confident));
      const Double p_gradient = V::load_double(of_objectness + lane) + of_difference;
      const Double q_gradient = V::load_double(of_foreground + lane) - of_difference;
      V::store(
          block.objectness_logit + lane,
          p_gradient * objectness_slope(V::load_double(block.decay + lane)));
      V::store(block.wanted_foreground + lane, q_gradient);
      V::store(
          block.background_probability + lane,
          background_probability(
              V::load_double(block.foreground_sum + lane),
              V::load_double(block.background_term + lane)));
    }
    for (int64_t lane = 0; lane < block.lanes; ++lane) {
      if (block.finite[lane] == 0.0) {
        block.objectness_logit[lane] = 0.0;
      }
    }
  }

  static D2DEFENSE_VECTOR_INLINE void write_row(
      const InconsistencyInputs& inputs,
      const Block& block,
      int64_t lane,
      const ClassGradient* classes,
      const ClassGradient* classes_end,
      Logit* out) {
    const int64_t columns = inputs.classes + 1;
    if (block.finite[lane] == 0.0) {
      std::fill_n(out, columns, Logit(0.0f));
      return;
    }
    const Logit* row =
        static_cast<const Logit*>(inputs.class_logits) + (block.begin + lane) * inputs.row_stride;
    const int64_t stride = inputs.column_stride;
    const float largest = block.largest_logit[lane];
    const double sum =
        static_cast<double>(block.foreground_sum[lane]) + block.background_term[lane];
    double class_sum = 0.0;
    for (const ClassGradient* each = classes; each != classes_end; ++each) {
      class_sum += each->gradient * (term(row[each->column * stride], largest) / sum);
    }
    const RowGradient<double> gradient = row_gradient(
        block.wanted_foreground[lane],
        block.foreground[lane],
        block.background_probability[lane],
        class_sum);
    const float factor = static_cast<float>(gradient.common / sum);
    if (factor == 0.0f) {
      std::fill_n(out, columns, Logit(0.0f));
    } else if (stride == 1) {
      write_columns(row, columns, largest, factor, out);
    } else {
      for (int64_t column = 0; column < columns; ++column) {
        out[column] = static_cast<Logit>(term(row[column * stride], largest) * factor);
      }
    }
    out[inputs.classes] = static_cast<Logit>(static_cast<float>(gradient.background));
    for (const ClassGradient* each = classes; each != classes_end; ++each) {
      double own = gradient.common;
      for (const ClassGradient* other = classes; other != classes_end; ++other) {
        own += other->column == each->column ? other->gradient : 0.0;
      }
      const double probability = term(row[each->column * stride], largest) / sum;
      out[each->column] = static_cast<Logit>(static_cast<float>(probability * own));
    }
  }

  static D2DEFENSE_VECTOR_INLINE float term(Logit logit, float largest) {
    return V::exponential(Float{} + (static_cast<float>(logit) - largest))[0];
  }

  // exp(z - largest) * factor of a register's columns.
  static D2DEFENSE_VECTOR_INLINE void write_register(
      const Logit* from, float largest, float factor, Logit* to) {
    V::store_logits(to, V::exponential(V::load(from) - largest) * factor);
  }

  // Of every column.
  static D2DEFENSE_VECTOR_INLINE void write_columns(
      const Logit* row, int64_t columns, float largest, float factor, Logit* out) {
    int64_t column = 0;
    for (; column + V::kFloats <= columns; column += V::kFloats) {
      write_register(row + column, largest, factor, out + column);
    }
    if (column == columns) {
      return;
    }
    if (columns > V::kFloats) {
      // Columns that were written before among them; they get the same once more.
      column = columns - V::kFloats;
      write_register(row + column, largest, factor, out + column);
      return;
    }
    Logit padded[V::kFloats] = {};
    std::copy_n(row, columns, padded);
    write_register(padded, largest, factor, padded);
    std::copy_n(padded, columns, out);
  }
};

template <typename Logit>
struct WriteGradient {
  template <int Bytes>
  static D2DEFENSE_VECTOR_INLINE void run(
      const InconsistencyInputs& inputs,
      const InconsistencyGradients& gradients,
      const Chunk& chunk,
      const TargetGradients& gathered) {
    ChunkGradient<Logit, Bytes>::write(inputs, gradients, chunk, gathered);
  }
};

template <typename Logit>
using WriteVersions = Versions<
    WriteGradient<Logit>,
    void(
        const InconsistencyInputs&,
        const InconsistencyGradients&,
        const Chunk&,
        const TargetGradients&)>;

template <typename Logit>
void run(const InconsistencyInputs& inputs, const InconsistencyGradients& gradients) {
  const std::vector<Chunk> chunks = split_into_chunks(inputs);
  const auto write = WriteVersions<Logit>::chosen();
  share_out(inputs, chunks, [&](auto chunk, auto last) {
    TargetGradients gathered;
    for (; chunk != last; ++chunk) {
      gather(inputs, gradients, *chunk, gathered);
      write(inputs, gradients, *chunk, gathered);
    }
  });
}

}  // namespace

void inconsistency_backward_cpu_kernel(
    const InconsistencyInputs& inputs, const InconsistencyGradients& gradients) {
  switch (inputs.logit_type) {
    case at::kHalf:
      return run<c10::Half>(inputs, gradients);
    case at::kBFloat16:
      return run<c10::BFloat16>(inputs, gradients);
    default:
      return run<float>(inputs, gradients);
  }
}

}  // namespace d2defense
