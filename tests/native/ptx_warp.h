// Instructions that move values: loads and stores, between registers and lanes, products of
// matrices by a warp.
#pragma once

#include "ptx_arithmetic.h"
#include "ptx_memory.h"

namespace ptx {

// --- memory --------------------------------------------------------------------------------------

inline Space space_of(const Words& op) {
  if (has(op, "shared") || has(op, "shared::cta")) return Space::kShared;
  if (has(op, "local")) return Space::kLocal;
  if (has(op, "param")) return Space::kParameter;
  return Space::kGlobal;  // also addresses of any space: no kernel makes one of another
}

/// `ld` and `st` of one value or of a vector.
inline Operation access(Kernel& kernel, const Words& op, const Words& o) {
  const bool writes = op[0] == "st", is_signed = op.back()[0] == 's';
  const Space space = space_of(op);
  const int item = bytes_of(op.back());
  const std::vector<int> rows = rows_of(kernel, o[writes ? 1 : 0]);
  const auto [base, offset] = address_of(kernel, o[writes ? 0 : 1]);
  const int bytes = item * static_cast<int>(rows.size()), unused = 64 - 8 * item;
  return [=, base = base, offset = offset](Warp& warp, Lanes lanes) {
    each(lanes, [&](int lane) {
      const uint64_t at = warp.rows[base][lane] + offset;
      uint8_t* from = place_of(warp, lane, space, at, bytes, writes);
      if (from == nullptr) return;
      for (int row : rows) {
        uint64_t& value = warp.rows[row][lane];
        if (writes) {
          std::memcpy(from, &value, item);
        } else {
          value = 0;
          std::memcpy(&value, from, item);
          if (is_signed) value = put(static_cast<int64_t>(value << unused) >> unused);
        }
        from += item;
      }
    });
  };
}

/// `ldmatrix` of 8 x 8 values of 16 bits: each lane gives the address of a row of 16 bytes, and
/// gets a pair of values of each matrix.
inline Operation load_matrices(Kernel& kernel, const Words& op, const Words& o, Instruction& out) {
  const std::vector<int> rows = rows_of(kernel, o[0]);
  const auto [base, offset] = address_of(kernel, o[1]);
  if (!has(op, "m8n8") || !has(op, "b16") || has(op, "trans")) return nullptr;
  const int addresses = 8 * static_cast<int>(rows.size());
  out.kind = Kind::kWarpWide;
  return [=, base = base, offset = offset](Warp& warp, Lanes) {
    uint32_t words[kWarp][4] = {};
    for (int lane = 0; lane < addresses; ++lane) {
      const uint64_t at = warp.rows[base][lane] + offset;
      const uint8_t* from = place_of(warp, lane, Space::kShared, at, 16, false);
      if (from != nullptr) std::memcpy(words[lane], from, 16);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (size_t i = 0; i < rows.size(); ++i) {
        warp.rows[rows[i]][lane] = words[8 * i + lane / 4][lane % 4];
      }
    }
  };
}

// --- registers and lanes -------------------------------------------------------------------------

/// `mov`, which also packs several registers into one and unpacks it.
inline Operation move(Kernel& kernel, const Words& op, const Words& o) {
  const std::vector<int> to = rows_of(kernel, o[0]), from = rows_of(kernel, o[1]);
  if (to.size() == 1 && from.size() == 1) {
    return of_bits(kernel, o, [](uint64_t a) { return a; });
  }
  const int parts = static_cast<int>(std::max(to.size(), from.size()));
  const int bits = 8 * bytes_of(op.back()) / parts;
  const uint64_t low = (uint64_t{1} << bits) - 1;
  return [=](Warp& warp, Lanes lanes) {
    each(lanes, [&](int lane) {
      uint64_t whole = from.size() == 1 ? warp.rows[from[0]][lane] : 0;
      for (size_t i = 0; i < from.size() && from.size() > 1; ++i) {
        whole |= (warp.rows[from[i]][lane] & low) << (bits * i);
      }
      for (size_t i = 0; i < to.size(); ++i) {
        warp.rows[to[i]][lane] = to.size() == 1 ? whole : whole >> (bits * i) & low;
      }
    });
  };
}

/// The lane that `lane` reads in a shuffle, and whether it lies inside; `c` holds the bounds.
inline std::pair<int, bool> source_lane(const std::string& mode, int lane, int by, int c) {
  const int clamp = c & 31, segment = c >> 8 & 31;
  const int last = (lane & segment) | (clamp & ~segment);
  if (mode == "up") return {lane - by, lane - by >= last};
  if (mode == "down") return {lane + by, lane + by <= last};
  if (mode == "bfly") return {lane ^ by, (lane ^ by) <= last};
  const int indexed = (lane & segment) | (by & ~segment);
  return {indexed, indexed <= last};
}

inline Operation shuffle(Kernel& kernel, const Words& op, const Words& o, Instruction& out) {
  const Words results = split(o[0], '|');
  const int value = row_of(kernel, results[0]);
  const int valid = results.size() > 1 ? row_of(kernel, results[1]) : kernel.new_row();
  const int a = row_of(kernel, o[1]), b = row_of(kernel, o[2]), c = row_of(kernel, o[3]);
  const std::string mode = op[2];
  out.kind = Kind::kWarpWide, out.members = row_of(kernel, o[4]);
  return [=](Warp& warp, Lanes lanes) {
    const Row from = warp.rows[a];
    each(lanes, [&](int lane) {
      const int by = warp.rows[b][lane] & 31, bounds = static_cast<int>(warp.rows[c][lane]);
      const auto [source, inside] = source_lane(mode, lane, by, bounds);
      const int read = inside ? source : lane;
      if ((lanes >> read & 1) == 0) report("shfl.sync reads a lane that takes no part");
      warp.rows[value][lane] = from[read], warp.rows[valid][lane] = inside;
    });
  };
}

// --- products of matrices ------------------------------------------------------------------------

/// sum + a . b. Products are exact in double; long double adds up to 16 of them nearly so.
inline float exact_product(float sum, const float* a, const float* b, int n) {
  long double total = sum;
  for (int i = 0; i < n; ++i) total += static_cast<long double>(a[i]) * b[i];
  return static_cast<float>(total);
}

/// As tensor cores compute it: terms are cut off where the largest ends, and so is their sum.
/// Numerical behavior of NVIDIA tensor cores (Fasi, Higham, Mikaitis, Pranesh, 2021).
inline float truncated_product(float sum, const float* a, const float* b, int n) {
  double terms[17] = {sum};
  for (int i = 0; i < n; ++i) terms[i + 1] = static_cast<double>(a[i]) * b[i];
  int top = std::numeric_limits<int>::min();
  for (int i = 0; i <= n; ++i) {
    if (!std::isfinite(terms[i])) return exact_product(sum, a, b, n);
    if (terms[i] != 0) top = std::max(top, std::ilogb(terms[i]));
  }
  double total = 0;
  for (int i = 0; i <= n; ++i) total += std::trunc(std::ldexp(terms[i], 24 - top));
  total = std::ldexp(total, top - 24);
  const float rounded = static_cast<float>(total);
  const bool away = std::fabs(static_cast<double>(rounded)) > std::fabs(total);
  return away ? std::nextafter(rounded, 0.0f) : rounded;
}

/// The fragments of m16n8k8 (TF32) and m16n8k16 (bfloat16), PTX ISA 9.7.14.5.
struct Fragments {
  bool pairs;  ///< two bfloat16 values a word
  float a[16][16], b[8][16], c[16][8];

  int terms() const { return pairs ? 16 : 8; }
  void put_word(float* row, int place, uint32_t word) const {
    if (pairs) {
      row[2 * place] = get<float>(word << 16), row[2 * place + 1] = get<float>(word & 0xffff0000u);
    } else {
      row[place] = get<float>(word & 0xffffe000u);
    }
  }
  float result(int row, int column) const {
    const float *left = a[row], *right = b[column];
    if (settings.inexact == 0) return exact_product(c[row][column], left, right, terms());
    const int half = terms() / 2;
    const float sum = truncated_product(c[row][column], left, right, half);
    return truncated_product(sum, left + half, right + half, half);
  }
};

inline Operation multiply(Kernel& kernel, const Words& op, const Words& o, Instruction& out) {
  const bool bf16 = has(op, "m16n8k16") && op[7] == "bf16" && op[8] == "bf16";
  const bool tf32 = has(op, "m16n8k8") && op[7] == "tf32" && op[8] == "tf32";
  if (!(bf16 || tf32) || !has(op, "row") || !has(op, "col")) return nullptr;
  std::array<std::vector<int>, 4> rows;
  for (int i = 0; i < 4; ++i) rows[i] = rows_of(kernel, o[i]);
  out.kind = Kind::kWarpWide;
  return [=](Warp& warp, Lanes) {
    const auto word = [&](int operand, int i, int lane) {
      return static_cast<uint32_t>(warp.rows[rows[operand][i]][lane]);
    };
    Fragments at;
    at.pairs = bf16;
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, place = lane % 4;
      for (int i = 0; i < 4; ++i) {
        at.put_word(at.a[group + 8 * (i % 2)], place + 4 * (i / 2), word(1, i, lane));
        at.c[group + 8 * (i / 2)][2 * place + i % 2] = get<float>(word(3, i, lane));
      }
      for (int i = 0; i < 2; ++i) at.put_word(at.b[group], place + 4 * i, word(2, i, lane));
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const float sum = at.result(lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
        warp.rows[rows[0][i]][lane] = put(sum);
      }
    }
  };
}

}  // namespace ptx
