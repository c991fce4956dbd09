// Attention on tensor cores, forward. Reference: attention/engine.py, `attention`. Parallel over blocks of queries, the heads
// that share keys together, and over parts of the keys where there are few queries. Shared: the queries, two tiles of keys and
// values, and of bias and mask.
//
// A block first copies its queries and the first tile. While a tile is processed, the next one is copied. Powers of 2 are used
// from registers as the left matrix of the product with values.
#include "attention_forward.cuh"

using QueryTile = Tile<Stored, ROWS, DIM>;
using KeyTile = Tile<Stored, ACROSS, DIM>;
using ValueTile = Tile<Stored, ACROSS, VALUE_DIM>;
using ScoreTables = Tables<ROWS, ACROSS>;
constexpr int VALUES = KeyTile::BYTES, TABLES = VALUES + ValueTile::BYTES, STAGE = TABLES + ScoreTables::BYTES;

KERNEL(THREADS) attention_forward(
    Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<Stored> out, Global<float> lse,
    Global<float> part_out, Global<float> part_lse, Global<const Stored> sinks, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const Results results = {out, lse, part_out, part_lse, sinks};
  const Rows rows = block_rows(o, p);
  int tile, past_tile;
  part_tiles(rows, p, tile, past_tile);
  const int part_start = tile * ACROSS, part_end = past_tile * ACROSS;

  const QueryTile queries = {0};
  Global<const Stored> keys = row_pointer(k, p.k, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_pointer(v, p.v, rows.batch, rows.kv_head, 0);
  auto stage = [](int tile) { return uint32(QueryTile::BYTES + tile % 2 * STAGE); };
  auto fetch = [&](int tile) {
    const int key = tile * ACROSS, present = rows.head.length - key;
    fill<THREADS>(KeyTile{stage(tile)}, keys + key * p.k.row, p.k.row, present, p.dim);
    fill<THREADS>(ValueTile{stage(tile) + VALUES}, values + key * p.v.row, p.v.row, present, p.value_dim);
    ScoreTables{stage(tile) + TABLES}.fetch(rows, key, o, p);
  };
  fill_rows(queries, q, p.q, rows, p.dim, p);
  if (tile < past_tile) fetch(tile);
  commit_copies();

  const KeyBounds bounds = warp_bounds(rows, p);
  const float factor = unit(p);
  uint32 left[PANELS];
  UNROLL for (int panel = 0; panel < PANELS; panel++) left[panel] = queries.left((threadIdx.x / 32 * PANELS + panel) * 16);
  float sums[PANELS][VALUE_DIM / 8][4] = {}, row_max[PANELS][2], row_sum[PANELS][2] = {};
  UNROLL for (int panel = 0; panel < PANELS; panel++) row_max[panel][0] = row_max[panel][1] = -infinity<float>();

  for (; tile < past_tile; tile++) {
    wait_copies<0>();
    sync_threads();  // the tile is copied, and all threads have read the previous one
    if (tile + 1 < past_tile) fetch(tile + 1);
    commit_copies();
    const int key = tile * ACROSS;
    if (key >= bounds.some_past || key + ACROSS <= bounds.some_first) continue;
    float s[PANELS][PARTS][4] = {};
    add_rows_times_rows<Stored, QueryTile, KeyTile>(s, left, KeyTile{stage(tile)}.right());
    score_products(s, ScoreTables{stage(tile) + TABLES}, 0, key, rows, o, p);
    hide(s, key, rows, bounds, p);
    float rescale[PANELS][2];
    if (update_row_max(s, row_max, row_sum, rescale, factor)) rescale_sums(sums, rescale);
    exponentiate(s, row_max, row_sum, factor, key, rows, o, p);
    add_weights_times<Stored, ValueTile>(sums, s, transposed(ValueTile{stage(tile) + VALUES}));
  }

  finish(sums, row_max, row_sum, q, k, v, part_start, part_end, rows, results, o, p);
}
EXPORT(attention_forward)
