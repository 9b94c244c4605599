// Bodies for noise: words, normals, and sums of noise; bodies.h says what a body is.
#pragma once

#include "noise.h"

namespace diffflow {

/// The generator itself, for known-answer tests: four words for every counter of four words and key
/// of two. Run on {1, 4 * counters}; words lie in int64.
struct PhiloxBlocks {
  const int64_t *counter, *key;
  int64_t* words;

  DF_HD void operator()(const Place& at) const {
    const int64_t* in = counter + at.offset;
    const int64_t* k = key + 2 * at.quad;
    const PhiloxWords out =
        philox4x32_10({{static_cast<uint32_t>(in[0]), static_cast<uint32_t>(in[1]),
                        static_cast<uint32_t>(in[2]), static_cast<uint32_t>(in[3])}},
                      {static_cast<uint32_t>(k[0]), static_cast<uint32_t>(k[1])});
    for (int i = 0; i < 4; ++i) words[at.offset + i] = out.word[i];
  }
};

/// out = standard normals. The only kernel that writes noise to memory.
template <typename T>
struct Normal {
  T* out;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD void apply(const Place& at, const Quad<T>& eps) const { store(out, at, eps); }
};

/// dot_b = sum_e v eps, with the noise computed again: the gradient of every noise scale.
template <typename T>
struct NoiseDot {
  using Sum = T;
  const T* v;
  T* dot;
  NoiseSource noise;

  DF_HD T operator()(const Place& at) const {
    const Quad<T> a = load<T>(v, at), eps = normals<T>(noise, at);
    return (a.value[0] * eps.value[0] + a.value[1] * eps.value[1]) +
           (a.value[2] * eps.value[2] + a.value[3] * eps.value[3]);
  }
  DF_HD void finish(int64_t sample, T sum) const { dot[sample] = sum; }
};

/// energy_b = (previous_b +) 1/2 |eps|^2 of the draws that a step used, without writing them.
template <typename T>
struct NoiseEnergy {
  using Sum = T;
  const T* previous;
  T* energy;
  NoiseSource noise;

  DF_HD T operator()(const Place& at) const {
    Quad<T> eps = normals<T>(noise, at);
    T sum = T(0);
    for (int i = 0; i < 4; ++i) sum += i < at.count ? eps.value[i] * eps.value[i] : T(0);
    return T(0.5) * sum;
  }
  DF_HD void finish(int64_t sample, T sum) const {
    energy[sample] = previous != nullptr ? previous[sample] + sum : sum;
  }
};

}  // namespace diffflow
