// Attention on tensor cores, the gradient of queries. Reference: attention/engine.py, `attention_backward`. Parallel over
// blocks of queries, as the forward pass is. Shared: queries and their cotangents with shifts and deltas, two tiles of keys and
// values, and of bias and mask.
//
// Weights are recomputed from the lse. No block adds to the results of another one, so results have the same bits in each run.
#include "attention_queries.cuh"

using QueryTile = Tile<Stored, ROWS, DIM>;
using CotangentTile = Tile<Stored, ROWS, VALUE_DIM>;
using KeyTile = Tile<Stored, ACROSS, DIM>;
using ValueTile = Tile<Stored, ACROSS, VALUE_DIM>;
constexpr int SHIFTS = QueryTile::BYTES + CotangentTile::BYTES, DELTAS = SHIFTS + ROWS * sizeof(float);
using ScoreTables = Tables<ROWS, ACROSS>;
constexpr int HELD = (DELTAS + ROWS * sizeof(float) + 127) / 128 * 128;
constexpr int VALUES = KeyTile::BYTES, TABLES = VALUES + ValueTile::BYTES, STAGE = TABLES + ScoreTables::BYTES;

KERNEL(THREADS) attention_queries(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dq, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const Rows rows = block_rows(o, p);
  int tile, past_tile;
  block_tiles(rows, p, tile, past_tile);

  const QueryTile queries = {0};
  const CotangentTile cotangents = {QueryTile::BYTES};
  Global<const Stored> keys = row_pointer(k, p.k, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_pointer(v, p.v, rows.batch, rows.kv_head, 0);
  auto stage = [](int tile) { return uint32(HELD + tile % 2 * STAGE); };
  auto fetch = [&](int tile) {
    const int key = tile * ACROSS, present = rows.head.length - key;
    fill<THREADS>(KeyTile{stage(tile)}, keys + key * p.k.row, p.k.row, present, p.dim);
    fill<THREADS>(ValueTile{stage(tile) + VALUES}, values + key * p.v.row, p.v.row, present, p.value_dim);
    ScoreTables{stage(tile) + TABLES}.fetch(rows, key, o, p);
  };
  fill_rows(queries, q, p.q, rows, p.dim, p);
  fill_rows(cotangents, dout, p.dout, rows, p.value_dim, p);
  if (tile < past_tile) fetch(tile);
  commit_copies();

  const KeyBounds bounds = warp_bounds(rows, p);
  const float factor = unit(p);
  uint32 query_rows[PANELS], dout_rows[PANELS];
  float sums[PANELS][DIM / 8][4] = {};
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    const int row = (threadIdx.x / 32 * PANELS + panel) * 16;
    query_rows[panel] = queries.left(row), dout_rows[panel] = cotangents.left(row);
  }
  for (int row = threadIdx.x; row < ROWS; row += THREADS) {
    const int64 number = rows.number(row, p);
    copy_number_async(SHIFTS + row * 4, shift + number, rows.is_there(row));
    copy_number_async(DELTAS + row * 4, delta + number, rows.is_there(row));
  }
  commit_copies();

  for (; tile < past_tile; tile++) {
    wait_copies<0>();
    sync_threads();  // the tile is copied, and all threads have read the previous one
    if (tile + 1 < past_tile) fetch(tile + 1);
    commit_copies();
    const int key = tile * ACROSS;
    if (key >= bounds.some_past || key + ACROSS <= bounds.some_first) continue;

    float s[PANELS][ACROSS / 8][4] = {}, d[PANELS][ACROSS / 8][4] = {}, cap_slopes[PANELS][SOFTCAP ? ACROSS / 8 : 1][4];
    const KeyTile key_tile = {stage(tile)};
    add_rows_times_rows<Stored, QueryTile, KeyTile>(s, query_rows, key_tile.right());
    slopes(cap_slopes, s, p);
    score_products(s, ScoreTables{stage(tile) + TABLES}, 0, key, rows, o, p);
    hide(s, key, rows, bounds, p);
    add_rows_times_rows<Stored, CotangentTile, ValueTile>(d, dout_rows, ValueTile{stage(tile) + VALUES}.right());
    UNROLL for (int panel = 0; panel < PANELS; panel++)
      UNROLL for (int half = 0; half < 2; half++) {
        const int row = lane_row(panel, half);
        const float high = read_shared(SHIFTS + row * 4), less = read_shared(DELTAS + row * 4);
        UNROLL for (int part = 0; part < ACROSS / 8; part++) {
          float kept[2] = {1, 1};
          if (DROPOUT) {
            const int j = key + 8 * part + threadIdx.x % 4 * 2;
            keep_pair(kept, rows.head_at(row, p), rows.query(row, p), j, o, p);
          }
          UNROLL for (int n = 0; n < 2; n++) {
            float& x = s[panel][part][2 * half + n];
            const float weight = exp2_fast(exponent(x, factor, high));
            x = weight * (d[panel][part][2 * half + n] * kept[n] - less);
            if (SOFTCAP) x *= cap_slopes[panel][SOFTCAP ? part : 0][2 * half + n];
          }
        }
      }
    add_weights_times<Stored, KeyTile>(sums, s, transposed(key_tile));
  }

  finish(sums, dout, q, k, v, shift, delta, dq, rows, o, p);
}
EXPORT(attention_queries)
