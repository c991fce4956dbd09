// Shared by both kernels of attention forward: the online softmax over tiles of keys in registers, and the end of a block.
//
// Scores stay in registers: products, -inf for masked ones, the maximum, powers of 2.
#pragma once
#include "attention_scores.cuh"

constexpr int PARTS = ACROSS / 8;

// The tiles of keys [tile, past_tile) that a block loops over: those visible to its rows, and of several parts its own.
inline void part_tiles(const Rows& rows, const Problem& p, int& tile, int& past_tile) {
  block_tiles(rows, p, tile, past_tile);
  if (p.parts > 1) {
    const int each = (past_tile - tile + p.parts - 1) / p.parts;
    tile += each * blockIdx.z;
    if (past_tile > tile + each) past_tile = tile + each;
  }
}

// Where a block writes its results: the output, or with several parts this part of it, to be merged.
struct Results { Global<Stored> out; Global<float> lse, part_out, part_lse; Global<const Stored> sinks; };

// Output and lse of a row, of which `shift` is subtracted from exponents and `row_sum` is the sum of the powers; the factor of
// the sum of values is returned.
inline float finish_row(int64 number, int head, float shift, float row_sum, bool is_writer, const Results& r,
                        const Problem& p) {
  float sink = -infinity<float>();
  if (r.sinks && p.parts == 1) {
    Stored z = r.sinks[head];
    sink = wide(z) / SHIFT_UNIT;
  }
  float factor = 1;
  if (sink != -infinity<float>()) {  // NaN too
    const float both = sink > shift ? sink : shift;
    factor = exp2((shift - both) * SHIFT_TO_EXPONENT);
    row_sum = row_sum * factor + exp2((sink - both) * SHIFT_TO_EXPONENT), shift = both;
  }
  const float lse = row_sum == 0 ? -infinity<float>() : (shift + log2(row_sum) * (LN2 / SHIFT_UNIT)) * SHIFT_UNIT;
  if (is_writer) (p.parts == 1 ? r.lse : r.part_lse + int64(blockIdx.z) * p.batch * p.heads * p.queries)[number] = lse;
  return row_sum == 0 ? 0.0f : factor / row_sum;
}

// Rows one pair at a time, where a sum is not finite: masked pairs must not contribute NaN.
inline void attend_slowly(Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, int part_start,
                          int part_end, const Rows& rows, const Results& r, const Options& o, const Problem& p) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
    if (!rows.is_there(row)) continue;
    const Head h = rows.head_at(row, p);
    const int t = rows.query(row, p);
    int first = first_key(t, h, p), past = past_key(t, h, p);
    if (first < part_start) first = part_start;
    if (past > part_end) past = part_end;
    float sums[VALUE_DIM / 32] = {}, row_max = -infinity<float>(), row_sum = 0;
    for (int j = first; j < past; j++) {
      const float dot =
          row_product(row_pointer(q, p.q, h.batch, h.head, t), row_pointer(k, p.k, h.batch, h.kv_head, j), p.dim);
      const float s = score(dot, h, t, j, o, p);
      if (s == -infinity<float>()) continue;
      const float higher = s > row_max ? s : row_max;
      const float rescale = exp2((row_max - higher) * LOG2E), power = exp2((s - higher) * LOG2E);
      const float weight = power * dropout_factor(h, t, j, o, p);
      row_max = higher, row_sum = row_sum * rescale + power;
      Global<const Stored> value = row_pointer(v, p.v, h.batch, h.kv_head, j);
      UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
        if (lane + 32 * n < p.value_dim) {
          Stored x = value[lane + 32 * n];
          sums[n] = sums[n] * rescale + masked_product(weight, wide(x), p);
        }
    }
    const int64 number = rows.number(row, p);
    const float factor = finish_row(number, h.head, row_max / SHIFT_UNIT, row_sum, lane == 0, r, p);
    UNROLL for (int n = 0; n < VALUE_DIM / 32; n++) {
      const int d = lane + 32 * n;
      if (d >= p.value_dim) continue;
      const float x = row_sum == 0 ? 0.0f : sums[n] * factor;
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

// Update the running maximum of each row of this lane with the scores of a tile. `rescale` gets the factors of the sums so far;
// returns whether some row of the warp needs rescaling. The maximum is kept as a shift; powers are at most 2^room.
inline bool update_row_max(const float (&s)[PANELS][PARTS][4], float (&row_max)[PANELS][2], float (&row_sum)[PANELS][2],
                          float (&rescale)[PANELS][2], float factor, float room = 0) {
  float higher[PANELS][2];
  bool has_moved = false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      float m = -infinity<float>();
      UNROLL for (int part = 0; part < PARTS; part++)
        m = fmaxf(m, fmaxf(s[panel][part][2 * half], s[panel][part][2 * half + 1]));
      m = fmaxf(m, shuffle_xor(m, 1));
      m = fmaxf(m, shuffle_xor(m, 2));
      higher[panel][half] = fmaxf(row_max[panel][half], UNSCALED ? m * factor - room : m);
      has_moved |= higher[panel][half] != row_max[panel][half];
    }
  if (!any_lane(has_moved)) return false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const float high = higher[panel][half];
      rescale[panel][half] = high == -infinity<float>() ? 1.0f : exp2_fast((row_max[panel][half] - high) * SHIFT_TO_EXPONENT);
      row_max[panel][half] = high;
      row_sum[panel][half] *= rescale[panel][half];
    }
  return true;
}

inline void rescale_sums(float (&sums)[PANELS][VALUE_DIM / 8][4], const float (&rescale)[PANELS][2]) {
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int part = 0; part < VALUE_DIM / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) sums[panel][part][2 * half + n] *= rescale[panel][half];
}

// Replace scores by powers of 2, added to the row sums and then dropped or kept.
inline void exponentiate(float (&s)[PANELS][PARTS][4], const float (&row_max)[PANELS][2], float (&row_sum)[PANELS][2],
                         float factor, int key, const Rows& rows, const Options& o, const Problem& p) {
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const float shift = row_max[panel][half] == -infinity<float>() ? 0.0f : row_max[panel][half];
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
          row_sum[panel][half] += power;
          x = DROPOUT ? power * kept[n] : power;
        }
      }
    }
}

// Output and lse of the rows of a block, recomputed one pair at a time where a sum is not finite. Called by all threads.
inline void finish(float (&sums)[PANELS][VALUE_DIM / 8][4], const float (&row_max)[PANELS][2], float (&row_sum)[PANELS][2],
                   Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, int part_start,
                   int part_end, const Rows& rows, const Results& results, const Options& o, const Problem& p) {
  bool is_wrong = false;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      float all = row_sum[panel][half];
      all += shuffle_xor(all, 1);
      all += shuffle_xor(all, 2);
      row_sum[panel][half] = all;
      is_wrong |= !is_finite(all);
    }
  if (any_thread(is_wrong || !all_finite(sums))) {
    attend_slowly(q, k, v, part_start, part_end, rows, results, o, p);
    return;
  }
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half), head = rows.head_at(row, p).head;
      if (!rows.is_there(row)) continue;
      const int64 number = rows.number(row, p);
      const float by = finish_row(number, head, row_max[panel][half], row_sum[panel][half], threadIdx.x % 4 == 0,
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
