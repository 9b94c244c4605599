// Tensor cores for cuda_host.h: a warp's fragments as the PTX manual lays them out, their product,
// and how they are read from shared memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "cuda_host_device.h"

namespace emu {

struct Fragments {
  uint32_t left[4], right[2];
};

/// The number of the running warp's first thread in its block.
inline unsigned first_of_warp() {
  const unsigned thread =
      threadIdx.x + blockDim.x * (threadIdx.y + static_cast<unsigned>(blockDim.y) * threadIdx.z);
  return thread / kLanes * kLanes;
}

/// mma.m16n8k16 of pairs and mma.m16n8k8 of single numbers: eight words a row of either factor,
/// `decode(word, i)` its i-th number. Rows of the left factor are `group` and `group + 8`, columns
/// of the right one `group`; the sums lie at columns 2 place and 2 place + 1.
template <typename Decode>
void mma(float* sum, const uint32_t* left, const uint32_t* right, int per_word, Decode decode) {
  static thread_local Fragments all[kMaxThreads];
  Fragments* const warp = all + first_of_warp();
  const unsigned lane = machine().lane(), group = lane / 4, place = lane % 4;
  std::copy(left, left + 4, warp[lane].left);
  std::copy(right, right + 2, warp[lane].right);
  __syncwarp();
  float total[4];
  for (unsigned c = 0; c < 4; ++c) {
    total[c] = sum[c];
    for (unsigned word = 0; word < 8; ++word) {
      const uint32_t a = warp[4 * group + word % 4].left[word / 4 * 2 + c / 2];
      const uint32_t b = warp[4 * (2 * place + c % 2) + word % 4].right[word / 4];
      for (int i = 0; i < per_word; ++i) total[c] += decode(a, i) * decode(b, i);
    }
  }
  __syncwarp();
  std::copy(total, total + 4, sum);
}

/// ldmatrix.m8n8.x4 without transposition: lane i brings the address of row i % 8 of matrix i / 8,
/// four words long, and gets word i % 4 of row i / 4 of each matrix.
inline void ldmatrix(uint32_t* to, const uint32_t* row) {
  static thread_local const uint32_t* all[kMaxThreads];
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    throw std::runtime_error("ldmatrix: expected an address that is a multiple of 16 bytes");
  }
  const uint32_t** const warp = all + first_of_warp();
  const unsigned lane = machine().lane();
  warp[lane] = row;
  __syncwarp();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    to[matrix] = warp[8 * matrix + lane / 4][lane % 4];
  }
  __syncwarp();
}

}  // namespace emu
