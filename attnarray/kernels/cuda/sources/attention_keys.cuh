// What both kernels of the gradients of keys and values share: which queries a block goes over, what is hidden, how it ends.
#pragma once
#include "attention_scores.cuh"

constexpr int OTHERS = ACROSS / 8;

// The queries [first, past) that may see some of the keys [key, key_past).
inline void queries_of_keys(int key, int key_past, const Head& h, const Problem& p, int& first, int& past) {
  first = within(key - h.offset - p.right, p.queries), past = within(key_past - h.offset + p.left, p.queries);
  if (key >= h.length) past = first;
}

// Rows one pair at a time, where something is not finite: what is hidden must not matter.
inline void differentiate_slowly(Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k,
                                 Global<const Stored> v, Global<const float> shift, Global<const float> delta,
                                 Global<Stored> dk, Global<Stored> dv, int batch, int kv_head, int first_of_block,
                                 const Options& o, const Problem& p) {
  const int lane = threadIdx.x % 32, group = p.heads / p.kv_heads;
  for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
    const int j = first_of_block + row;
    if (j >= p.keys) continue;
    float of_key[DIM / 32] = {}, of_value[VALUE_DIM / 32] = {};
    Global<const Stored> key = row_of(k, p.k, batch, kv_head, j), value = row_of(v, p.v, batch, kv_head, j);
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
      const Head h = head_of(batch, head, o, p);
      int first, past;
      queries_of_keys(j, j + 1, h, p, first, past);
      for (int t = first; t < past; t++) {
        const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
        Global<const Stored> query = row_of(q, p.q, batch, head, t), cotangent = row_of(dout, p.dout, batch, head, t);
        const float product = product_of_rows(query, key, p.dim);
        const float g = gradient_of_pair(product, product_of_rows(cotangent, value, p.value_dim), shift[number],
                                         delta[number], h, t, j, o, p);
        const float weight = weight_of_pair(product, shift[number], h, t, j, o, p), kept = kept_of(h, t, j, o, p);
        UNROLL for (int n = 0; n < DIM / 32; n++)
          if (lane + 32 * n < p.dim) {
            Stored x = query[lane + 32 * n];
            of_key[n] += reached(g, wide(x), p);
          }
        UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
          if (lane + 32 * n < p.value_dim) {
            Stored x = cotangent[lane + 32 * n];
            of_value[n] += reached(kept == 0 ? 0.0f : weight * kept, wide(x), p);
          }
      }
    }
    const int64 number = (int64(batch) * p.kv_heads + kv_head) * p.keys + j;
    Stored stored;
    UNROLL for (int n = 0; n < DIM / 32; n++)
      if (OF_KEYS && lane + 32 * n < p.dim) narrow(of_key[n], stored), dk[number * p.dim + lane + 32 * n] = stored;
    UNROLL for (int n = 0; n < VALUE_DIM / 32; n++)
      if (OF_VALUES && lane + 32 * n < p.value_dim)
        narrow(of_value[n], stored), dv[number * p.value_dim + lane + 32 * n] = stored;
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
inline void hide_turned(float (&s)[PANELS][OTHERS][4], int first_of_block, int t, const Head& h, const Problem& p) {
  const int lane_query = t + threadIdx.x % 4 * 2;  // places are counted from here, so that they are constants
  int first[PANELS][2], past[PANELS][2];           // of the queries that see a key
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int j = first_of_block + lane_row(panel, half);
      queries_of_keys(j, j + 1, h, p, first[panel][half], past[panel][half]);
      first[panel][half] -= lane_query, past[panel][half] -= lane_query;
    }
  UNROLL for (int part = 0; part < OTHERS; part++)
    UNROLL for (int n = 0; n < 2; n++)
      UNROLL for (int panel = 0; panel < PANELS; panel++)
        UNROLL for (int half = 0; half < 2; half++) {
          const int place = 8 * part + n;
          if (place < first[panel][half] || place >= past[panel][half]) s[panel][part][2 * half + n] = -infinity<float>();
        }
}

// The gradients of the keys and values of a block, which are made again one pair at a time where something is not finite. By all
// threads.
template <int OF_KEY, int OF_VALUE>
inline void finish(const float (&sums_of_keys)[PANELS][OF_KEY][4],
                   const float (&sums_of_values)[PANELS][OF_VALUE][4], Global<const Stored> dout,
                   Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<const float> shift,
                   Global<const float> delta, Global<Stored> dk, Global<Stored> dv, int batch, int kv_head,
                   int first_of_block, const Options& o, const Problem& p) {
  const int64 number = (int64(batch) * p.kv_heads + kv_head) * p.keys + first_of_block;
  if (any_thread((OF_KEYS && !all_finite(sums_of_keys)) || (OF_VALUES && !all_finite(sums_of_values)))) {
    differentiate_slowly(dout, q, k, v, shift, delta, dk, dv, batch, kv_head, first_of_block, o, p);
    return;
  }
  if (OF_KEYS) store_rows(dk, sums_of_keys, number, first_of_block, p.dim, p.scale, p);
  if (OF_VALUES) store_rows(dv, sums_of_values, number, first_of_block, p.value_dim, 1, p);
}
