// Philox4x32-10, a counter-based random generator: 128 bits of counter and 64 bits of key give
// 128 random bits, without state. J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.
#pragma once

#include "host_device.h"

namespace diffflow {

struct PhiloxWords {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t low, high;
};

/// One round: two 32 x 32 -> 64 bit products whose halves are mixed with the other words and the
/// key.
DF_HD PhiloxWords philox_round(PhiloxWords in, PhiloxKey key) {
  const uint64_t product_0 = static_cast<uint64_t>(0xD2511F53u) * in.word[0];
  const uint64_t product_1 = static_cast<uint64_t>(0xCD9E8D57u) * in.word[2];
  return {{static_cast<uint32_t>(product_1 >> 32) ^ in.word[1] ^ key.low,
           static_cast<uint32_t>(product_1),
           static_cast<uint32_t>(product_0 >> 32) ^ in.word[3] ^ key.high,
           static_cast<uint32_t>(product_0)}};
}

/// Ten rounds; the key advances by a Weyl sequence (golden ratio, sqrt(3) - 1) between them.
DF_HD PhiloxWords philox4x32_10(PhiloxWords counter, PhiloxKey key) {
  for (int round = 0; round < 9; ++round) {
    counter = philox_round(counter, key);
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return philox_round(counter, key);
}

}  // namespace diffflow
