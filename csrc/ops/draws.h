// Bodies for noise: words, normals, and sums of noise; bodies.h says what a body is.
#pragma once

#include "noise.h"
#include "scalars.h"
#include "sum_order.h"

namespace diffflow {

/// The generator itself, for known-answer tests: four words for every counter of four words and key
/// of two. Run on {1, 4 * counters}; words lie in int64.
struct PhiloxBlocks {
  const int64_t *counter, *key;
  int64_t* words;

  DF_HD NoScalars scalars() const { return {}; }
  DF_HD void apply(const Place& at, NoScalars) const { run<uint32_t>(at.quad, 1); }

  /// Up to as many counters as `Word` has lanes, from counter `first` on.
  template <class Word>
  DF_HD void run(int64_t first, int64_t count) const {
    constexpr int lanes = sizeof(Word) / sizeof(uint32_t);
    uint32_t in[4][lanes] = {}, by[2][lanes] = {};
    for (int i = 0; i < lanes && i < count; ++i) {
      for (int j = 0; j < 4; ++j) in[j][i] = static_cast<uint32_t>(counter[4 * (first + i) + j]);
      for (int j = 0; j < 2; ++j) by[j][i] = static_cast<uint32_t>(key[2 * (first + i) + j]);
    }
    PhiloxWords<Word> drawn;
    PhiloxKey<Word> keys;
    memcpy(&drawn, in, sizeof(drawn)), memcpy(&keys, by, sizeof(keys));
    drawn = philox4x32_10(drawn, keys);
    memcpy(in, &drawn, sizeof(drawn));
    for (int i = 0; i < lanes && i < count; ++i) {
      for (int j = 0; j < 4; ++j) words[4 * (first + i) + j] = in[j][i];
    }
  }
};

/// out = standard normals. The only kernel that writes noise to memory.
template <typename T>
struct Normal {
  T* out;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD NoScalars scalars() const { return {}; }
  template <class At, class Values>
  DF_HD void apply(const At& at, NoScalars, const Values& eps) const {
    store(out, at, eps);
  }
};

/// dot_b = sum_e v eps, with the noise computed again: the gradient of every noise scale.
template <typename T>
struct NoiseDot {
  using Sum = T;
  static constexpr int kTerms = 1;
  const T* v;
  T* dot;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD NoScalars scalars() const { return {}; }
  template <class At, class Values>
  DF_HD Terms<Values, 1> apply(const At& at, NoScalars, const Values& eps) const {
    return {{load<T>(v, at) * eps}};
  }
  DF_HD T part(NoScalars, int64_t, const Quad<T>* terms) const { return in_pairs(terms[0]); }
  DF_HD void finish(int64_t sample, T sum) const { dot[sample] = sum; }
};

/// energy_b = (previous_b +) 1/2 |eps|^2 of the draws that a step used, without writing them.
template <typename T>
struct NoiseEnergy {
  using Sum = T;
  static constexpr int kTerms = 1;
  const T* previous;
  T* energy;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD NoScalars scalars() const { return {}; }
  template <class At, class Values>
  DF_HD Terms<Values, 1> apply(const At& at, NoScalars, const Values& eps) const {
    return {{inside(at, eps * eps)}};
  }
  DF_HD T part(NoScalars, int64_t, const Quad<T>* terms) const {
    return T(0.5) * in_order(terms[0]);
  }
  DF_HD void finish(int64_t sample, T sum) const {
    energy[sample] = previous != nullptr ? previous[sample] + sum : sum;
  }
};

}  // namespace diffflow
