// Attention on tensor cores, the gradients of keys and values. Reference: attention/engine.py, `attention_backward`. Parallel over
// blocks of keys; each goes over the queries of all heads that share them. Shared: keys and values, two tiles of queries and
// cotangents with their shifts and deltas, and of bias and mask.
//
// Scores are made turned around, keys by queries, so that weights in registers are the left matrix of the products with
// cotangents and queries. OF_KEYS and OF_VALUES say which gradients; both at once where registers hold the sums of both.
#include "attention_keys.cuh"

using KeyTile = Tile<Stored, ROWS, DIM>;
using ValueTile = Tile<Stored, ROWS, VALUE_DIM>;
using QueryTile = Tile<Stored, ACROSS, DIM>;
using CotangentTile = Tile<Stored, ACROSS, VALUE_DIM>;
constexpr int HELD = KeyTile::BYTES + ValueTile::BYTES;
constexpr int SHIFTS = QueryTile::BYTES + CotangentTile::BYTES, DELTAS = SHIFTS + ACROSS * sizeof(float);
using ScoreTables = Tables<ACROSS, ROWS>;
constexpr int TABLES = (DELTAS + ACROSS * sizeof(float) + 127) / 128 * 128, STAGE = TABLES + ScoreTables::BYTES;

KERNEL(THREADS) attention_keys(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dk, Global<Stored> dv, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const int batch = blockIdx.x / p.kv_heads, kv_head = blockIdx.x % p.kv_heads, group = p.heads / p.kv_heads;
  const int first_of_block = blockIdx.y * ROWS;
  const Head first_head = head_of(batch, kv_head * group, o, p);
  int first, past;
  queries_of_keys(first_of_block, first_of_block + ROWS, first_head, p, first, past);
  first = first / ACROSS * ACROSS;
  const int past_head = past > first ? first_head.head + group : first_head.head;

  const KeyTile keys = {0};
  const ValueTile values = {KeyTile::BYTES};
  auto stage = [](int step) { return uint32(HELD + step % 2 * STAGE); };
  auto fetch = [&](int step, int head, int t) {
    const int there = p.queries - t;
    fill<THREADS>(QueryTile{stage(step)}, row_of(q, p.q, batch, head, t), p.q.row, there, p.dim);
    fill<THREADS>(CotangentTile{stage(step) + QueryTile::BYTES}, row_of(dout, p.dout, batch, head, t), p.dout.row, there,
                  p.value_dim);
    const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
    ROLLED for (int n = threadIdx.x; n < ACROSS; n += THREADS) {  // zeros beyond the queries meet cotangents of zeros
      copy_number_async(stage(step) + SHIFTS + n * 4, shift + number + n, n < there);
      copy_number_async(stage(step) + DELTAS + n * 4, delta + number + n, n < there);
    }
    Head h = first_head;
    h.head = head;
    ScoreTables{stage(step) + TABLES}.fetch(h, t, first_of_block, there, o, p);
  };
  fill<THREADS>(keys, row_of(k, p.k, batch, kv_head, first_of_block), p.k.row, p.keys - first_of_block, p.dim);
  fill<THREADS>(values, row_of(v, p.v, batch, kv_head, first_of_block), p.v.row, p.keys - first_of_block,
                p.value_dim);
  int head = first_head.head, t = first;
  if (head < past_head) fetch(0, head, t);
  commit_copies();

  const float factor = unit(p);
  uint32 of_keys[PANELS], of_values[PANELS];
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    const int row = (threadIdx.x / 32 * PANELS + panel) * 16;
    of_keys[panel] = keys.left(row), of_values[panel] = values.left(row);
  }
  float sums_of_keys[PANELS][OF_KEYS ? DIM / 8 : 1][4] = {}, sums_of_values[PANELS][OF_VALUES ? VALUE_DIM / 8 : 1][4] = {};

  for (int step = 0; head < past_head; step++) {  // over the tiles of one head after the other
    wait_copies<0>();
    sync_threads();  // the tile is there, and nobody reads the one before any more
    const bool is_last = t + ACROSS >= past;
    const int next_head = head + is_last, next_t = is_last ? first : t + ACROSS;
    if (next_head < past_head) fetch(step + 1, next_head, next_t);
    commit_copies();

    const int last = (t + ACROSS < p.queries ? t + ACROSS : p.queries) - 1;
    Head h = first_head;
    h.head = head;
    const int warp_key = first_of_block + threadIdx.x / 32 * 16 * PANELS;
    const bool is_edge = warp_key < first_key(last, h, p) || warp_key + 16 * PANELS > past_key(t, h, p);
    const QueryTile query_tile = {stage(step)};
    const CotangentTile cotangent_tile = {stage(step) + QueryTile::BYTES};
    const Shared<float> shifts = shared<float>(stage(step) + SHIFTS), deltas = shared<float>(stage(step) + DELTAS);

    float s[PANELS][OTHERS][4] = {}, d[PANELS][OTHERS][4] = {};
    add_rows_times_rows<Stored, KeyTile, QueryTile>(s, of_keys, query_tile.right());
    float bent[PANELS][SOFTCAP ? OTHERS : 1][4];
    slopes(bent, s, p);
    score_products_turned(s, ScoreTables{stage(step) + TABLES}, first_of_block, t, h, o, p);
    if (is_edge) hide_turned(s, first_of_block, t, h, p);
    if (OF_KEYS) add_rows_times_rows<Stored, ValueTile, CotangentTile>(d, of_values, cotangent_tile.right());
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + threadIdx.x % 4 * 2 + n;
        const float high = shifts[column], less = deltas[column];
        UNROLL for (int panel = 0; panel < PANELS; panel++)
          UNROLL for (int half = 0; half < 2; half++) {
            const int j = first_of_block + lane_row(panel, half), e = 2 * half + n;
            const float kept = DROPOUT && j < p.keys && t + column < p.queries ? kept_of(h, t + column, j, o, p) : 1.0f;
            const float weight = exp2_fast(exponent(s[panel][part][e], factor, high));
            s[panel][part][e] = DROPOUT ? weight * kept : weight;
            d[panel][part][e] = weight * (d[panel][part][e] * kept - less);
            if (SOFTCAP) d[panel][part][e] *= bent[panel][SOFTCAP ? part : 0][e];
          }
      }
    if (OF_VALUES) add_weights_times<Stored, CotangentTile>(sums_of_values, s, turned(cotangent_tile));
    if (OF_KEYS) add_weights_times<Stored, QueryTile>(sums_of_keys, d, turned(query_tile));
    head = next_head, t = next_t;
  }

  finish(sums_of_keys, sums_of_values, dout, q, k, v, shift, delta, dk, dv, batch, kv_head, first_of_block, o, p);
}
EXPORT(attention_keys)
