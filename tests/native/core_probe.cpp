// Single functions of the core behind a C interface, so that tests reach what Python cannot: the
// polynomials, the counter of a draw, and index arithmetic of tensors too large to allocate.
#include "../../csrc/ops/noise.h"
#include "../../csrc/ops/sum_order.h"

namespace df = diffflow;

namespace {

/// The word whose uniform is the centre of a cell; its lower 9 bits do not count.
uint32_t word_of(int64_t cell) { return static_cast<uint32_t>(cell) << 9; }

}  // namespace

extern "C" {

float probe_uniform(uint32_t word) { return df::uniform_open<float>(word); }

/// log(u) for the uniforms u of cells first, first + 1, ...
void probe_log(int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = -0.5f * df::minus_two_log(df::uniform_open<float>(word_of(first + i)));
  }
}

/// sin and cos of 2 pi v for the uniforms v of cells first, first + 1, ...
void probe_sincos(int64_t first, int64_t count, float* sine, float* cosine) {
  for (int64_t i = 0; i < count; ++i) {
    const df::NormalPair<float> at = df::on_circle(1.0f, word_of(first + i));
    cosine[i] = at.first, sine[i] = at.second;
  }
}

void probe_box_muller(uint32_t word_u, uint32_t word_v, float* out) {
  const df::NormalPair<float> pair = df::box_muller<float>(word_u, word_v);
  out[0] = pair.first, out[1] = pair.second;
}

/// The words behind the draws of a quad.
void probe_noise_words(uint64_t seed, uint32_t stream, uint32_t purpose, uint32_t step,
                       uint32_t sample_offset, int64_t sample, int64_t quad, uint32_t* out) {
  const df::NoiseSource source{seed, stream, purpose, step, sample_offset, nullptr};
  const df::PhiloxWords<uint32_t> words =
      df::noise_words(source, df::noise_numbers(source), static_cast<uint32_t>(quad),
                      static_cast<uint32_t>(sample));
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

/// offset, count and wide of a place; then the number of quads of the shape.
void probe_place(int64_t samples, int64_t elements, int64_t sample, int64_t quad, int aligned,
                 int64_t* out) {
  const df::Shape shape{samples, elements};
  const df::Place at = df::place_at(sample, quad, shape, aligned != 0);
  out[0] = at.offset, out[1] = at.count, out[2] = at.wide, out[3] = shape.quads();
}

int64_t probe_num_segments(int64_t quads) { return df::num_segments(quads); }
int probe_num_lanes(int64_t quads) { return df::num_lanes(quads); }

/// Writes the quads that one lane adds up, in order; returns how many.
int64_t probe_lane_quads(int64_t segment, int lane, int lanes, int64_t quads, int64_t* out) {
  int64_t count = 0;
  df::lane_sum<double>(segment, lane, lanes, quads, [&](int64_t quad) {
    out[count++] = quad;
    return 0.0;
  });
  return count;
}

/// Conversions of every 16-bit pattern, and of given floats.
void probe_widen(const uint16_t* bits, int64_t count, float* from_bfloat16, float* from_half) {
  for (int64_t i = 0; i < count; ++i) {
    from_bfloat16[i] = df::BFloat16{bits[i]};
    from_half[i] = df::Half{bits[i]};
  }
}

void probe_narrow(const float* values, int64_t count, uint16_t* to_bfloat16, uint16_t* to_half) {
  for (int64_t i = 0; i < count; ++i) {
    to_bfloat16[i] = df::BFloat16::from_float(values[i]).bits;
    to_half[i] = df::Half::from_float(values[i]).bits;
  }
}
}
