// Philox4x32-10, a counter-based random generator: 128 bits of counter and 64 bits of key give
// 128 random bits, without state. J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.
#pragma once

#include "host_device.h"

namespace diffflow {

/// Four words of one counter, or of the counters of a vector's lanes.
template <class Word>
struct PhiloxWords {
  Word word[4];
};

/// One key for all lanes, or one for each.
template <class Word>
struct PhiloxKey {
  Word low, high;
};

/// The halves of a product of 64 bits. Specialised for vectors in ops/simd.h.
template <class Word>
struct WideProduct {
  Word high, low;

  DF_HD WideProduct(uint32_t factor, Word word) {
#ifdef __CUDA_ARCH__
    high = __umulhi(factor, word), low = factor * word;
#else
    const uint64_t product = static_cast<uint64_t>(factor) * word;
    high = static_cast<uint32_t>(product >> 32), low = static_cast<uint32_t>(product);
#endif
  }
};

/// One round: two 32 x 32 -> 64 bit products whose halves are mixed with the other words and the
/// key.
template <class Word, class KeyWord>
DF_HD PhiloxWords<Word> philox_round(const PhiloxWords<Word>& in, const PhiloxKey<KeyWord>& key) {
  const WideProduct<Word> first(0xD2511F53u, in.word[0]), second(0xCD9E8D57u, in.word[2]);
  return {{second.high ^ in.word[1] ^ key.low, second.low, first.high ^ in.word[3] ^ key.high,
           first.low}};
}

/// Ten rounds; the key advances by a Weyl sequence (golden ratio, sqrt(3) - 1) between them.
template <class Word, class KeyWord>
DF_HD PhiloxWords<Word> philox4x32_10(PhiloxWords<Word> counter, PhiloxKey<KeyWord> key) {
  for (int round = 0; round < 9; ++round) {
    counter = philox_round(counter, key);
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return philox_round(counter, key);
}

}  // namespace diffflow
