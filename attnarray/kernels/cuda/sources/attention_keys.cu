// Attention on tensor cores, the gradients of keys and values. Reference: attention/engine.py, `attention_backward`. Parallel
// over blocks of keys; each loops over the queries of all heads that share them. Shared: keys and values, two tiles of queries
// and cotangents with their shifts and deltas, and of bias and mask.
//
// Scores are computed transposed, keys by queries, so that weights in registers are the left matrix of the products with
// cotangents and queries. WANTS_DK and WANTS_DV select the gradients; both at once where registers hold both sums.
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
  const int block_start = blockIdx.y * ROWS;
  const Head first_head = make_head(batch, kv_head * group, o, p);
  int first, past;
  visible_queries(block_start, block_start + ROWS, first_head, p, first, past);
  first = first / ACROSS * ACROSS;
  const int past_head = past > first ? first_head.head + group : first_head.head;

  const KeyTile keys = {0};
  const ValueTile values = {KeyTile::BYTES};
  auto stage = [](int step) { return uint32(HELD + step % 2 * STAGE); };
  auto fetch = [&](int step, int head, int t) {
    const int present = p.queries - t;
    fill<THREADS>(QueryTile{stage(step)}, row_pointer(q, p.q, batch, head, t), p.q.row, present, p.dim);
    fill<THREADS>(CotangentTile{stage(step) + QueryTile::BYTES}, row_pointer(dout, p.dout, batch, head, t), p.dout.row, present,
                  p.value_dim);
    const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
    ROLLED for (int n = threadIdx.x; n < ACROSS; n += THREADS) {  // zeros beyond the queries, whose cotangents are zeros
      copy_number_async(stage(step) + SHIFTS + n * 4, shift + number + n, n < present);
      copy_number_async(stage(step) + DELTAS + n * 4, delta + number + n, n < present);
    }
    Head h = first_head;
    h.head = head;
    ScoreTables{stage(step) + TABLES}.fetch(h, t, block_start, present, o, p);
  };
  fill<THREADS>(keys, row_pointer(k, p.k, batch, kv_head, block_start), p.k.row, p.keys - block_start, p.dim);
  fill<THREADS>(values, row_pointer(v, p.v, batch, kv_head, block_start), p.v.row, p.keys - block_start,
                p.value_dim);
  int head = first_head.head, t = first;
  if (head < past_head) fetch(0, head, t);
  commit_copies();

  const float factor = unit(p);
  uint32 key_rows[PANELS], value_rows[PANELS];
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    const int row = (threadIdx.x / 32 * PANELS + panel) * 16;
    key_rows[panel] = keys.left(row), value_rows[panel] = values.left(row);
  }
  float dk_sums[PANELS][WANTS_DK ? DIM / 8 : 1][4] = {}, dv_sums[PANELS][WANTS_DV ? VALUE_DIM / 8 : 1][4] = {};

  for (int step = 0; head < past_head; step++) {  // over the tiles of one head after the other
    wait_copies<0>();
    sync_threads();  // the tile is copied, and all threads have read the previous one
    const bool is_last = t + ACROSS >= past;
    const int next_head = head + is_last, next_t = is_last ? first : t + ACROSS;
    if (next_head < past_head) fetch(step + 1, next_head, next_t);
    commit_copies();

    const int last = (t + ACROSS < p.queries ? t + ACROSS : p.queries) - 1;
    Head h = first_head;
    h.head = head;
    const int warp_key = block_start + threadIdx.x / 32 * 16 * PANELS;
    const bool is_edge = warp_key < first_key(last, h, p) || warp_key + 16 * PANELS > past_key(t, h, p);
    const QueryTile query_tile = {stage(step)};
    const CotangentTile cotangent_tile = {stage(step) + QueryTile::BYTES};
    const Shared<float> shifts = shared<float>(stage(step) + SHIFTS), deltas = shared<float>(stage(step) + DELTAS);

    float s[PANELS][OTHERS][4] = {}, d[PANELS][OTHERS][4] = {};
    add_rows_times_rows<Stored, KeyTile, QueryTile>(s, key_rows, query_tile.right());
    float cap_slopes[PANELS][SOFTCAP ? OTHERS : 1][4];
    slopes(cap_slopes, s, p);
    score_products_transposed(s, ScoreTables{stage(step) + TABLES}, block_start, t, h, o, p);
    if (is_edge) hide_transposed(s, block_start, t, h, p);
    if (WANTS_DK) add_rows_times_rows<Stored, ValueTile, CotangentTile>(d, value_rows, cotangent_tile.right());
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + threadIdx.x % 4 * 2 + n;
        const float high = shifts[column], less = deltas[column];
        UNROLL for (int panel = 0; panel < PANELS; panel++)
          UNROLL for (int half = 0; half < 2; half++) {
            const int j = block_start + lane_row(panel, half), e = 2 * half + n;
            const float kept = DROPOUT && j < p.keys && t + column < p.queries ? dropout_factor(h, t + column, j, o, p) : 1.0f;
            const float weight = exp2_fast(exponent(s[panel][part][e], factor, high));
            s[panel][part][e] = DROPOUT ? weight * kept : weight;
            d[panel][part][e] = weight * (d[panel][part][e] * kept - less);
            if (SOFTCAP) d[panel][part][e] *= cap_slopes[panel][SOFTCAP ? part : 0][e];
          }
      }
    if (WANTS_DV) add_weights_times<Stored, CotangentTile>(dv_sums, s, transposed(cotangent_tile));
    if (WANTS_DK) add_weights_times<Stored, QueryTile>(dk_sums, d, transposed(query_tile));
    head = next_head, t = next_t;
  }

  finish(dk_sums, dv_sums, dout, q, k, v, shift, delta, dk, dv, batch, kv_head, block_start, o, p);
}
EXPORT(attention_keys)
