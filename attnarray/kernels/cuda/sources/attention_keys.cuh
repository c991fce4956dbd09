// Shared by both kernels of the gradients of keys and values: the queries of a block, masking, and the end of a block.
#pragma once
#include "attention_scores.cuh"

constexpr int OTHERS = ACROSS / 8;

// The queries [first, past) to which some of the keys [key, key_past) are visible.
inline void visible_queries(int key, int key_past, const Head& h, const Problem& p, int& first, int& past) {
  first = within(key - h.offset - p.right, p.queries), past = within(key_past - h.offset + p.left, p.queries);
  if (key >= h.length) past = first;
}

// Rows one pair at a time, where a sum is not finite: masked pairs must not contribute NaN.
inline void differentiate_slowly(Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k,
                                 Global<const Stored> v, Global<const float> shift, Global<const float> delta,
                                 Global<Stored> dk, Global<Stored> dv, int batch, int kv_head, int block_start,
                                 const Options& o, const Problem& p) {
  const int lane = threadIdx.x % 32, group = p.heads / p.kv_heads;
  for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
    const int j = block_start + row;
    if (j >= p.keys) continue;
    float dk_row[DIM / 32] = {}, dv_row[VALUE_DIM / 32] = {};
    Global<const Stored> key = row_pointer(k, p.k, batch, kv_head, j), value = row_pointer(v, p.v, batch, kv_head, j);
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
      const Head h = make_head(batch, head, o, p);
      int first, past;
      visible_queries(j, j + 1, h, p, first, past);
      for (int t = first; t < past; t++) {
        const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
        Global<const Stored> query = row_pointer(q, p.q, batch, head, t), cotangent = row_pointer(dout, p.dout, batch, head, t);
        const float product = row_product(query, key, p.dim);
        const float g = pair_gradient(product, row_product(cotangent, value, p.value_dim), shift[number],
                                         delta[number], h, t, j, o, p);
        const float weight = pair_weight(product, shift[number], h, t, j, o, p), kept = dropout_factor(h, t, j, o, p);
        UNROLL for (int n = 0; n < DIM / 32; n++)
          if (lane + 32 * n < p.dim) {
            Stored x = query[lane + 32 * n];
            dk_row[n] += masked_product(g, wide(x), p);
          }
        UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
          if (lane + 32 * n < p.value_dim) {
            Stored x = cotangent[lane + 32 * n];
            dv_row[n] += masked_product(kept == 0 ? 0.0f : weight * kept, wide(x), p);
          }
      }
    }
    const int64 number = (int64(batch) * p.kv_heads + kv_head) * p.keys + j;
    Stored stored;
    UNROLL for (int n = 0; n < DIM / 32; n++)
      if (WANTS_DK && lane + 32 * n < p.dim) narrow(dk_row[n], stored), dk[number * p.dim + lane + 32 * n] = stored;
    UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
      if (WANTS_DV && lane + 32 * n < p.value_dim)
        narrow(dv_row[n], stored), dv[number * p.value_dim + lane + 32 * n] = stored;
  }
}

template <int PARTS>
inline void store_rows(Global<Stored> to, const float (&sums)[PANELS][PARTS][4], int64 first_number, int first_key,
                       int columns, float scale, const Problem& p) {
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half);
      if (first_key + row >= p.keys) continue;
      UNROLL for (int part = 0; part < PARTS; part++) {
        const int column = 8 * part + threadIdx.x % 4 * 2;
        const float x = sums[panel][part][2 * half] * scale, y = sums[panel][part][2 * half + 1] * scale;
        if (column < columns) store_pair<Stored>(to, (first_number + row) * columns + column, x, y);
      }
    }
}

// Scores of the keys of this warp with queries from t on, -inf beyond the band.
inline void hide_transposed(float (&s)[PANELS][OTHERS][4], int block_start, int t, const Head& h, const Problem& p) {
  const int lane_query = t + threadIdx.x % 4 * 2;  // offsets from here are compile-time constants
  int first[PANELS][2], past[PANELS][2];           // of the queries to which a key is visible
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int j = block_start + lane_row(panel, half);
      visible_queries(j, j + 1, h, p, first[panel][half], past[panel][half]);
      first[panel][half] -= lane_query, past[panel][half] -= lane_query;
    }
  UNROLL for (int part = 0; part < OTHERS; part++)
    UNROLL for (int n = 0; n < 2; n++)
      UNROLL for (int panel = 0; panel < PANELS; panel++)
        UNROLL for (int half = 0; half < 2; half++) {
          const int offset = 8 * part + n;
          if (offset < first[panel][half] || offset >= past[panel][half]) s[panel][part][2 * half + n] = -infinity<float>();
        }
}

// The gradients of the keys and values of a block, recomputed one pair at a time where a sum is not finite. Called by all
// threads.
template <int KEY_PARTS, int VALUE_PARTS>
inline void finish(const float (&dk_sums)[PANELS][KEY_PARTS][4],
                   const float (&dv_sums)[PANELS][VALUE_PARTS][4], Global<const Stored> dout,
                   Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<const float> shift,
                   Global<const float> delta, Global<Stored> dk, Global<Stored> dv, int batch, int kv_head,
                   int block_start, const Options& o, const Problem& p) {
  const int64 number = (int64(batch) * p.kv_heads + kv_head) * p.keys + block_start;
  if (any_thread((WANTS_DK && !all_finite(dk_sums)) || (WANTS_DV && !all_finite(dv_sums)))) {
    differentiate_slowly(dout, q, k, v, shift, delta, dk, dv, batch, kv_head, block_start, o, p);
    return;
  }
  if (WANTS_DK) store_rows(dk, dk_sums, number, block_start, p.dim, p.scale, p);
  if (WANTS_DV) store_rows(dv, dv_sums, number, block_start, p.value_dim, 1, p);
}
