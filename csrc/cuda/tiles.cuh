// SPDX-License-Identifier: Apache-2.0
// The unit of work on a GPU is a tile: 32 consecutive proposals, counted from the first of all, one
// warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace d2defense {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kTile;
constexpr unsigned kAllLanes = 0xffffffffu;
// Short rows leave most lanes of a whole warp idle, long ones make few loads coalesce: up to so
// many classes, 8 neighbouring lanes share a row, beyond them 32.
constexpr int64_t kShortRow = 256;

__host__ __device__ __forceinline__ int64_t tiles_of(int64_t proposals) {
  return (proposals + kTile - 1) / kTile;
}

inline dim3 grid_of(int64_t proposals) {
  return dim3(static_cast<unsigned>((tiles_of(proposals) + kWarps - 1) / kWarps));
}

// The group that owns a row: the last that does not begin after it.
__device__ __forceinline__ int64_t group_of(const int64_t* offsets, int64_t groups, int64_t row) {
  int64_t low = 0;
  int64_t high = groups;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (offsets[middle + 1] > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace d2defense
