// Attention on tensor cores, the gradient of a bias. Reference: attention/engine.py, `attention_backward`. Parallel over tiles
// of the bias; each block loops over all scores that its tile was added to, and sums their gradients in registers, so that
// there is no array of queries by keys but the result. Shared: a tile each of queries, keys, cotangents, values, bias and mask.
#include "attention_scores.cuh"

using QueryTile = Tile<Stored, ROWS, DIM>;
using CotangentTile = Tile<Stored, ROWS, VALUE_DIM>;
using KeyTile = Tile<Stored, ACROSS, DIM>;
using ValueTile = Tile<Stored, ACROSS, VALUE_DIM>;
using ScoreTables = Tables<ROWS, ACROSS>;
constexpr int COTANGENTS = QueryTile::BYTES, KEYS = COTANGENTS + CotangentTile::BYTES;
constexpr int VALUES = KEYS + KeyTile::BYTES, TABLES = VALUES + ValueTile::BYTES;
constexpr int AT_ONCE = ACROSS < 64 ? ACROSS : 64, PARTS = AT_ONCE / 8;  // keys whose scores are in registers at a time
static_assert(ACROSS % AT_ONCE == 0, "a tile has whole steps");

// The scores that a block sums: those of batches, heads, queries and keys from first to past, every ROWS-th query from its first
// ones and every ACROSS-th key.
struct Summed { int batch, past_batch, head, past_head, t, past_t, j, past_j; };

inline float product_by_thread(Global<const Stored> x, Global<const Stored> y, int count) {
  float sum = 0;
  for (int d = 0; d < count; d++) {
    Stored a = x[d], b = y[d];
    sum += wide(a) * wide(b);
  }
  return sum;
}

// The sums one pair at a time, where a sum is not finite: masked pairs must not contribute NaN. Into ROWS x ACROSS numbers of
// shared memory.
inline void differentiate_slowly(Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k,
                                 Global<const Stored> v, Global<const float> shift, Global<const float> delta, const Summed& all,
                                 const Options& o, const Problem& p) {
  static_assert(ROWS * ACROSS * sizeof(float) <= TABLES + ScoreTables::BYTES, "present is room for the sums");
  for (int entry = threadIdx.x; entry < ROWS * ACROSS; entry += THREADS) {
    float sum = 0;
    for (int batch = all.batch; batch < all.past_batch; batch++)
      for (int head = all.head; head < all.past_head; head++) {
        const Head h = make_head(batch, head, o, p);
        for (int t = all.t + entry / ACROSS; t < all.past_t; t += ROWS)
          for (int j = all.j + entry % ACROSS; j < all.past_j; j += ACROSS) {
            if (j < first_key(t, h, p) || j >= past_key(t, h, p)) continue;
            const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
            const float product =
                product_by_thread(row_pointer(q, p.q, batch, head, t), row_pointer(k, p.k, batch, h.kv_head, j), p.dim);
            const float weight = pair_weight(product, shift[number], h, t, j, o, p);
            const float dproduct = product_by_thread(row_pointer(dout, p.dout, batch, head, t),
                                                     row_pointer(v, p.v, batch, h.kv_head, j), p.value_dim);
            sum += score_gradient(weight, dproduct, delta[number], dropout_factor(h, t, j, o, p));
          }
      }
    shared<float>(0)[entry] = sum;
  }
}

KERNEL(THREADS) attention_bias(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<const float> shift,
    Global<const float> delta, Global<Stored> dbias, int64 batches, int64 heads, int64 queries, int64 keys, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const int bias_batch = blockIdx.x / heads, bias_head = blockIdx.x % heads;
  const int first_t = blockIdx.y * ROWS, first_j = blockIdx.z * ACROSS;
  Summed all = {bias_batch, bias_batch + 1, bias_head, bias_head + 1, first_t, within(first_t + ROWS, p.queries),
                first_j, within(first_j + ACROSS, p.keys)};
  if (batches == 1) all.batch = 0, all.past_batch = p.batch;
  if (heads == 1) all.head = 0, all.past_head = p.heads;
  if (queries == 1) all.t = 0, all.past_t = p.queries;
  if (keys == 1) all.j = 0, all.past_j = p.keys;
  const QueryTile query_tile = {0};
  const CotangentTile cotangent_tile = {COTANGENTS};
  const KeyTile key_tile = {KEYS};
  const ValueTile value_tile = {VALUES};
  const ScoreTables tables = {TABLES};
  uint32 query_rows[PANELS], dout_rows[PANELS];
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    const int row = (threadIdx.x / 32 * PANELS + panel) * 16;
    query_rows[panel] = query_tile.left(row), dout_rows[panel] = cotangent_tile.left(row);
  }
  const float factor = unit(p);
  float sums[PANELS][ACROSS / 8][4] = {};

  bool is_first = true;
  for (int batch = all.batch; batch < all.past_batch; batch++)
    for (int head = all.head; head < all.past_head; head++) {
      const Head h = make_head(batch, head, o, p);
      for (int t = all.t; t < all.past_t; t += ROWS) {
        const int last = (t + ROWS < p.queries ? t + ROWS : p.queries) - 1;
        for (int j = all.j; j < all.past_j; j += ACROSS) {
          if (j >= past_key(last, h, p) || j + ACROSS <= first_key(t, h, p)) continue;
          sync_threads();  // all threads have read the previous tiles
          fill<THREADS>(query_tile, row_pointer(q, p.q, batch, head, t), p.q.row, p.queries - t, p.dim);
          fill<THREADS>(cotangent_tile, row_pointer(dout, p.dout, batch, head, t), p.dout.row, p.queries - t, p.value_dim);
          fill<THREADS>(key_tile, row_pointer(k, p.k, batch, h.kv_head, j), p.k.row, h.length - j, p.dim);
          fill<THREADS>(value_tile, row_pointer(v, p.v, batch, h.kv_head, j), p.v.row, h.length - j, p.value_dim);
          if (is_first || MASK) tables.fetch(h, t, j, p.queries - t, o, p);  // all summed scores share the bias
          is_first = false;
          commit_copies();
          wait_copies<0>();
          sync_threads();
          const Rows rows = {batch, h.kv_head, 1, t, p.queries, h};
          const KeyBounds bounds = warp_bounds(rows, p);
          const int64 first_number = (int64(batch) * p.heads + head) * p.queries;
          UNROLL for (int from = 0; from < ACROSS; from += AT_ONCE) {
            const int key = j + from;
            if (key >= bounds.some_past || key + AT_ONCE <= bounds.some_first) continue;
            float s[PANELS][PARTS][4] = {}, d[PANELS][PARTS][4] = {};
            add_rows_times_rows<Stored, QueryTile, KeyTile>(s, query_rows, key_tile.right() + from * KeyTile::ROW);
            score_products(s, tables, from, key, rows, o, p);
            hide(s, key, rows, bounds, p);
            add_rows_times_rows<Stored, CotangentTile, ValueTile>(d, dout_rows, value_tile.right() + from * ValueTile::ROW);
            UNROLL for (int panel = 0; panel < PANELS; panel++)
              UNROLL for (int half = 0; half < 2; half++) {
                const int i = t + lane_row(panel, half);
                if (i >= p.queries) continue;
                const float high = shift[first_number + i], less = delta[first_number + i];
                UNROLL for (int part = 0; part < PARTS; part++) {
                  float kept[2] = {1, 1};
                  if (DROPOUT) keep_pair(kept, h, i, key + 8 * part + threadIdx.x % 4 * 2, o, p);
                  UNROLL for (int n = 0; n < 2; n++) {
                    const float weight = exp2_fast(exponent(s[panel][part][2 * half + n], factor, high));
                    sums[panel][from / 8 + part][2 * half + n] += weight * (d[panel][part][2 * half + n] * kept[n] - less);
                  }
                }
              }
          }
        }
      }
    }
  if (any_thread(!all_finite(sums))) {
    differentiate_slowly(dout, q, k, v, shift, delta, all, o, p);
    sync_threads();
    UNROLL for (int panel = 0; panel < PANELS; panel++)
      UNROLL for (int part = 0; part < ACROSS / 8; part++)
        UNROLL for (int n = 0; n < 4; n++) {
          float sum = shared<float>(0)[lane_row(panel, n / 2) * ACROSS + 8 * part + threadIdx.x % 4 * 2 + n % 2];
          sums[panel][part][n] = sum;
        }
  }

  // Sum over queries that share the bias: the rows of a lane, of the warp, and then of one warp after the other.
  if (queries == 1) {
    Shared<float> columns = shared<float>(0);
    for (int warp = 0; warp < WARPS; warp++) {
      sync_threads();
      if (int(threadIdx.x) / 32 != warp) continue;
      UNROLL for (int part = 0; part < ACROSS / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          float sum = 0;
          UNROLL for (int panel = 0; panel < PANELS; panel++) sum += sums[panel][part][n] + sums[panel][part][2 + n];
          UNROLL for (int lanes = 4; lanes < 32; lanes *= 2) sum += shuffle_xor(sum, lanes);
          const int column = 8 * part + threadIdx.x % 4 * 2 + n;
          if (threadIdx.x % 32 < 4) columns[column] = warp ? columns[column] + sum : sum;
        }
    }
    sync_threads();
    UNROLL for (int part = 0; part < ACROSS / 8; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + threadIdx.x % 4 * 2 + n;
        float sum = 0;
        if (threadIdx.x < 4) sum = columns[column];
        UNROLL for (int panel = 0; panel < PANELS; panel++) sums[panel][part][n] = sums[panel][part][2 + n] = 0;
        sums[0][part][n] = sum;
      }
  }
  const int64 first_number = (int64(bias_batch) * heads + bias_head) * queries;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int64 row = queries == 1 ? 0 : first_t + lane_row(panel, half);
      const bool is_there = queries == 1 ? threadIdx.x < 4 && panel == 0 && half == 0 : row < queries;
      float all = 0;
      UNROLL for (int part = 0; part < ACROSS / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          const int64 key = first_j + 8 * part + threadIdx.x % 4 * 2 + n;
          const float sum = sums[panel][part][2 * half + n];
          all += sum;
          if (keys == 1 || !is_there || key >= keys) continue;
          Stored stored;
          narrow(sum, stored);
          dbias[(first_number + row) * keys + key] = stored;
        }
      if (keys == 1) {
        all += shuffle_xor(all, 1);
        all += shuffle_xor(all, 2);
        Stored stored;
        narrow(all, stored);
        if (is_there && threadIdx.x % 4 == 0) dbias[first_number + row] = stored;
      }
    }
}
EXPORT(attention_bias)
