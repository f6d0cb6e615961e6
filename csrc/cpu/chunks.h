// SPDX-License-Identifier: Apache-2.0
// The unit of work on a CPU is a chunk: up to kChunkRows proposals of one group, counted from the
// group's start. What a chunk yields depends on nothing else, so the number of threads leaves no
// trace in a result.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../inconsistency.h"

namespace d2defense {

// Proposals handled together: a register of floats at its widest.
constexpr int kLanes = 16;
constexpr int64_t kChunkRows = 4096;
static_assert(kChunkRows % kLanes == 0, "a chunk is made of whole blocks");

struct Chunk {
  int64_t group;
  int64_t begin;
  int64_t end;
};

inline std::vector<Chunk> split_into_chunks(const InconsistencyInputs& inputs) {
  std::vector<Chunk> chunks;
  for (int64_t group = 0; group < inputs.groups; ++group) {
    const int64_t end = inputs.proposal_offsets[group + 1];
    for (int64_t begin = inputs.proposal_offsets[group]; begin < end; begin += kChunkRows) {
      chunks.push_back(Chunk{group, begin, std::min(end, begin + kChunkRows)});
    }
  }
  return chunks;
}

// Calls work(first, last) with consecutive chunks, in each thread that gets some. Rows are shared
// out evenly, and a chunk goes where its first row went.
template <typename Work>
void share_out(
    const InconsistencyInputs& inputs, const std::vector<Chunk>& chunks, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, 65536 / (inputs.classes + 1));
  at::parallel_for(0, inputs.proposals, grain, [&](int64_t begin, int64_t end) {
    const auto begins_before = [](const Chunk& chunk, int64_t row) { return chunk.begin < row; };
    const auto first = std::lower_bound(chunks.begin(), chunks.end(), begin, begins_before);
    const auto last = std::lower_bound(first, chunks.end(), end, begins_before);
    if (first != last) {
      work(first, last);
    }
  });
}

// How many of a group's rows from `begin` on are among its first topk.
inline int64_t leading_rows(const InconsistencyInputs& inputs, int64_t group, int64_t begin) {
  const int64_t rows_before = begin - inputs.proposal_offsets[group];
  return inputs.topk == 0 ? inputs.proposals : std::max<int64_t>(0, inputs.topk - rows_before);
}

}  // namespace d2defense
