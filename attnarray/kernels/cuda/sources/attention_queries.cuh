// Shared by both kernels of the gradient of queries: the end of a block.
#pragma once
#include "attention_scores.cuh"

// Rows one pair at a time, where a sum is not finite: masked pairs must not contribute NaN.
inline void differentiate_slowly(Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k,
                                 Global<const Stored> v, Global<const float> shift, Global<const float> delta,
                                 Global<Stored> dq, const Rows& rows, const Options& o, const Problem& p) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
    if (!rows.is_there(row)) continue;
    const Head h = rows.head_at(row, p);
    const int t = rows.query(row, p);
    const int64 number = rows.number(row, p);
    float sums[DIM / 32] = {};
    for (int j = first_key(t, h, p); j < past_key(t, h, p); j++) {
      Global<const Stored> key = row_pointer(k, p.k, h.batch, h.kv_head, j);
      const float g = pair_gradient(row_product(row_pointer(q, p.q, h.batch, h.head, t), key, p.dim),
                                       row_product(row_pointer(dout, p.dout, h.batch, h.head, t),
                                                       row_pointer(v, p.v, h.batch, h.kv_head, j), p.value_dim),
                                       shift[number], delta[number], h, t, j, o, p);
      UNROLL for (int n = 0; n < DIM / 32; n++)
        if (lane + 32 * n < p.dim) {
          Stored x = key[lane + 32 * n];
          sums[n] += masked_product(g, wide(x), p);
        }
    }
    UNROLL for (int n = 0; n < DIM / 32; n++)
      if (lane + 32 * n < p.dim) {
        Stored stored;
        narrow(sums[n], stored);
        dq[number * p.dim + lane + 32 * n] = stored;
      }
  }
}

// The gradient of the queries of a block, recomputed one pair at a time where a sum is not finite. Called by all threads.
inline void finish(float (&sums)[PANELS][DIM / 8][4], Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k,
                   Global<const Stored> v, Global<const float> shift, Global<const float> delta, Global<Stored> dq,
                   const Rows& rows, const Options& o, const Problem& p) {
  if (any_thread(!all_finite(sums))) {
    differentiate_slowly(dout, q, k, v, shift, delta, dq, rows, o, p);
    return;
  }
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half);
      if (!rows.is_there(row)) continue;
      UNROLL for (int part = 0; part < DIM / 8; part++) {
        const int column = 8 * part + threadIdx.x % 4 * 2;
        const float x = sums[panel][part][2 * half] * p.scale, y = sums[panel][part][2 * half + 1] * p.scale;
        if (column < p.dim) store_pair<Stored>(dq, rows.number(row, p) * p.dim + column, x, y);
      }
    }
}
