// The transform from words to normals in the lanes of vectors, beside the same for numbers.
// Compiled for one set of instructions, which -DDF_NAMESPACE and -DDF_LANES name.
#include "../../csrc/ops/simd.h"

namespace df = diffflow;
using df::DF_NAMESPACE::Vec;
using df::DF_NAMESPACE::WordVec;

/// How many normals differ in a bit: all 2^23 radii and all 2^23 angles, each with one value of the
/// other, and with lower bits of the words that do not count.
extern "C" int64_t probe_differences() {
  constexpr int lanes = DF_LANES;
  int64_t differences = 0;
  for (uint32_t first = 0; first < 1u << 23; first += lanes) {
    uint32_t words[lanes];
    for (uint32_t i = 0; i < lanes; ++i) words[i] = (first + i) << 9 | (first * 2654435761u) >> 23;
    WordVec changing;
    memcpy(&changing, words, sizeof(words));
    const WordVec fixed = WordVec{} + 0x12345678u;
    const df::NormalPair<Vec> radii = df::box_muller<Vec>(changing, fixed);
    const df::NormalPair<Vec> angles = df::box_muller<Vec>(fixed, changing);
    for (int i = 0; i < lanes; ++i) {
      const df::NormalPair<float> radius = df::box_muller<float>(words[i], 0x12345678u);
      const df::NormalPair<float> angle = df::box_muller<float>(0x12345678u, words[i]);
      const float all[4][2] = {{radii.first[i], radius.first},
                               {radii.second[i], radius.second},
                               {angles.first[i], angle.first},
                               {angles.second[i], angle.second}};
      for (const auto& two : all) differences += memcmp(&two[0], &two[1], sizeof(float)) != 0;
    }
  }
  return differences;
}
