// What both kernels of attention forward share: the softmax in registers as tiles of keys go by, and how a block ends.
//
// Scores stay in registers: products, hidden ones to -inf, their largest, powers of 2.
#pragma once
#include "attention_scores.cuh"

constexpr int PARTS = ACROSS / 8;

// The tiles of keys [tile, past_tile) that a block goes over: those that its rows see, and of several parts its own.
inline void tiles_of_part(const Rows& rows, const Problem& p, int& tile, int& past_tile) {
  tiles_of_block(rows, p, tile, past_tile);
  if (p.parts > 1) {
    const int each = (past_tile - tile + p.parts - 1) / p.parts;
    tile += each * blockIdx.z;
    if (past_tile > tile + each) past_tile = tile + each;
  }
}

// Where a block leaves what it found: the output, or with several parts this part of it, to be merged.
struct Results { Global<Stored> out; Global<float> lse, part_out, part_lse; Global<const Stored> sinks; };

// Output and lse of a row, of which `shift` is subtracted from exponents and `total` is the sum of the powers; the factor of the
// sum of values is returned.
inline float finish_row(int64 number, int head, float shift, float total, bool is_writer, const Results& r,
                        const Problem& p) {
  float sink = -infinity<float>();
  if (r.sinks && p.parts == 1) {
    Stored z = r.sinks[head];
    sink = wide(z) / SHIFT_UNIT;
  }
  float factor = 1;
  if (sink != -infinity<float>()) {  // NaN too
    const float both = sink > shift ? sink : shift;
    factor = exp2((shift - both) * OF_SHIFTS);
    total = total * factor + exp2((sink - both) * OF_SHIFTS), shift = both;
  }
  const float lse = total == 0 ? -infinity<float>() : (shift + log2(total) * (LN2 / SHIFT_UNIT)) * SHIFT_UNIT;
  if (is_writer) (p.parts == 1 ? r.lse : r.part_lse + int64(blockIdx.z) * p.batch * p.heads * p.queries)[number] = lse;
  return total == 0 ? 0.0f : factor / total;
}

// Rows one pair at a time, where something is not finite: what is hidden must not matter.
inline void attend_slowly(Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, int first_of_part,
                          int past_of_part, const Rows& rows, const Results& r, const Options& o, const Problem& p) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
    if (!rows.is_there(row)) continue;
    const Head h = rows.head_at(row, p);
    const int t = rows.query(row, p);
    int first = first_key(t, h, p), past = past_key(t, h, p);
    if (first < first_of_part) first = first_of_part;
    if (past > past_of_part) past = past_of_part;
    float sums[VALUE_DIM / 32] = {}, largest = -infinity<float>(), total = 0;
    for (int j = first; j < past; j++) {
      const float dot =
          product_of_rows(row_of(q, p.q, h.batch, h.head, t), row_of(k, p.k, h.batch, h.kv_head, j), p.dim);
      const float s = score(dot, h, t, j, o, p);
      if (s == -infinity<float>()) continue;
      const float higher = s > largest ? s : largest;
      const float fade = exp2((largest - higher) * LOG2E), power = exp2((s - higher) * LOG2E);
      const float weight = power * kept_of(h, t, j, o, p);
      largest = higher, total = total * fade + power;
      Global<const Stored> value = row_of(v, p.v, h.batch, h.kv_head, j);
      UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
        if (lane + 32 * n < p.value_dim) {
          Stored x = value[lane + 32 * n];
          sums[n] = sums[n] * fade + reached(weight, wide(x), p);
        }
    }
    const int64 number = rows.number(row, p);
    const float factor = finish_row(number, h.head, largest / SHIFT_UNIT, total, lane == 0, r, p);
    UNROLL for (int n = 0; n < VALUE_DIM / 32; n++) {
      const int d = lane + 32 * n;
      if (d >= p.value_dim) continue;
      const float x = total == 0 ? 0.0f : sums[n] * factor;
      if (p.parts == 1) {
        Stored stored;
        narrow(x, stored);
        r.out[number * p.value_dim + d] = stored;
      } else {
        r.part_out[(int64(blockIdx.z) * p.batch * p.heads * p.queries + number) * p.value_dim + d] = x;
      }
    }
  }
}

// The largest score of each row that this lane has a part of, with those of a tile. Where it grows, what was summed so far fades:
// by how much, and whether the sums of some row of the warp do. It is held as a shift; powers are at most 2^room.
inline bool raise_largest(const float (&s)[PANELS][PARTS][4], float (&largest)[PANELS][2], float (&total)[PANELS][2],
                          float (&fade)[PANELS][2], float factor, float room = 0) {
  float higher[PANELS][2];
  bool has_moved = false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      float m = -infinity<float>();
      UNROLL for (int part = 0; part < PARTS; part++)
        m = fmaxf(m, fmaxf(s[panel][part][2 * half], s[panel][part][2 * half + 1]));
      m = fmaxf(m, shuffle_xor(m, 1));
      m = fmaxf(m, shuffle_xor(m, 2));
      higher[panel][half] = fmaxf(largest[panel][half], UNSCALED ? m * factor - room : m);
      has_moved |= higher[panel][half] != largest[panel][half];
    }
  if (!any_lane(has_moved)) return false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const float high = higher[panel][half];
      fade[panel][half] = high == -infinity<float>() ? 1.0f : exp2_fast((largest[panel][half] - high) * OF_SHIFTS);
      largest[panel][half] = high;
      total[panel][half] *= fade[panel][half];
    }
  return true;
}

inline void fade_sums(float (&sums)[PANELS][VALUE_DIM / 8][4], const float (&fade)[PANELS][2]) {
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int part = 0; part < VALUE_DIM / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) sums[panel][part][2 * half + n] *= fade[panel][half];
}

// Scores become powers of 2, which are added to the totals, and are dropped or not.
inline void exponentiate(float (&s)[PANELS][PARTS][4], const float (&largest)[PANELS][2], float (&total)[PANELS][2],
                         float factor, int key, const Rows& rows, const Options& o, const Problem& p) {
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const float shift = largest[panel][half] == -infinity<float>() ? 0.0f : largest[panel][half];
      const int row = lane_row(panel, half);
      UNROLL for (int part = 0; part < PARTS; part++) {
        float kept[2] = {1, 1};
        if (DROPOUT) {
          const int j = key + 8 * part + threadIdx.x % 4 * 2;
          keep_pair(kept, rows.head_at(row, p), rows.query(row, p), j, o, p);
        }
        UNROLL for (int n = 0; n < 2; n++) {
          float& x = s[panel][part][2 * half + n];
          const float power = exp2_fast(exponent(x, factor, shift));
          total[panel][half] += power;
          x = DROPOUT ? power * kept[n] : power;
        }
      }
    }
}

// Output and lse of the rows of a block, which are done again one pair at a time where something is not finite. By all threads.
inline void finish(float (&sums)[PANELS][VALUE_DIM / 8][4], const float (&largest)[PANELS][2], float (&total)[PANELS][2],
                   Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, int first_of_part,
                   int past_of_part, const Rows& rows, const Results& results, const Options& o, const Problem& p) {
  bool is_wrong = false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      float all = total[panel][half];
      all += shuffle_xor(all, 1);
      all += shuffle_xor(all, 2);
      total[panel][half] = all;
      is_wrong |= !is_finite(all);
    }
  if (any_thread(is_wrong || !all_finite(sums))) {
    attend_slowly(q, k, v, first_of_part, past_of_part, rows, results, o, p);
    return;
  }
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half), head = rows.head_at(row, p).head;
      if (!rows.is_there(row)) continue;
      const int64 number = rows.number(row, p);
      const float by = finish_row(number, head, largest[panel][half], total[panel][half], threadIdx.x % 4 == 0,
                                  results, p);
      UNROLL for (int part = 0; part < VALUE_DIM / 8; part++) {
        const int d = 8 * part + threadIdx.x % 4 * 2;
        if (d >= p.value_dim) continue;
        const float x = sums[panel][part][2 * half] * by, y = sums[panel][part][2 * half + 1] * by;
        if (p.parts == 1)
          store_pair<Stored>(results.out, number * p.value_dim + d, x, y);
        else
          store_pair<float>(results.part_out,
                            (int64(blockIdx.z) * p.batch * p.heads * p.queries + number) * p.value_dim + d, x, y);
      }
    }
}
