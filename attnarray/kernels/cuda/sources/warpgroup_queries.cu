// Attention with wgmma (sm_90a), the gradient of queries. Reference: attention/engine.py, `attention_backward`. Parallel over
// blocks of queries. Shared: queries and their cotangents, three tiles of keys and values: one being copied, one whose weights
// are computed, and the previous one, whose last product is not done.
#include "attention_queries.cuh"
#include "warpgroup_attention.cuh"

using QueryTile = PanelTile<Stored, ROWS, DIM>;
using CotangentTile = PanelTile<Stored, ROWS, VALUE_DIM>;
using KeyTile = PanelTile<Stored, ACROSS, DIM>;
using ValueTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int HELD = QueryTile::BYTES + CotangentTile::BYTES, STAGE = KeyTile::BYTES + ValueTile::BYTES;
constexpr int PARTS = ACROSS / 8;

KERNEL(THREADS) warpgroup_queries(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dq, HALVES, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const Rows rows = block_rows(o, p);
  int tile, past_tile;
  block_tiles(rows, p, tile, past_tile);

  const QueryTile queries = {0};
  const CotangentTile cotangents = {QueryTile::BYTES};
  const Halves halves = GIVEN_HALVES;
  const Source q_source = make_source(Q, q, p.q, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source k_source = make_source(K, k, p.k, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source v_source = make_source(V, v, p.v, p.value_dim, halves, rows.batch, rows.kv_head, p);
  const Source dout_source = make_source(DOUT, dout, p.dout, p.value_dim, halves, rows.batch, rows.kv_head, p);
  Global<const Stored> keys = row_pointer(k_source.from, k_source.strides, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_pointer(v_source.from, v_source.strides, rows.batch, rows.kv_head, 0);
  auto stage = [](int step) { return uint32(HELD + step % 3 * STAGE); };
  auto fetch = [&](int step, int tile) {
    const int key = tile * ACROSS, present = rows.head.length - key;
    const int64 apart = k_source.strides.row, values_apart = v_source.strides.row;
    fill<THREADS>(KeyTile{stage(step)}, keys + key * apart, apart, present, k_source.columns);
    fill<THREADS>(ValueTile{stage(step) + KeyTile::BYTES}, values + key * values_apart, values_apart, present, v_source.columns);
  };
  fill_rows(queries, q_source.from, q_source.strides, rows, q_source.columns, p);
  fill_rows(cotangents, dout_source.from, dout_source.strides, rows, dout_source.columns, p);
  if (tile < past_tile) fetch(0, tile);
  commit_copies();

  const KeyBounds bounds = warp_bounds(rows, p);
  const float factor = unit(p) * q_source.unit * k_source.unit, product_unit = v_source.unit * dout_source.unit;
  const int row = 64 * warpgroup();
  float high[2], less[2];
  for (int half = 0; half < 2; half++) {
    const bool is_there = rows.is_there(lane_row(0, half));
    const int64 number = rows.number(lane_row(0, half), p);
    high[half] = less[half] = 0;
    if (is_there) high[half] = shift[number], less[half] = delta[number];
  }
  float s[1][PARTS][4] = {}, d[PARTS][4] = {}, sums[1][DIM / 8][4] = {};
  Weights<Stored, PARTS / 2> gradients;
  RowPowers powers;
  TileSums<DIM / 8, 8> tile_sums;
  auto key_tile = [&](int step) { return KeyTile{stage(step)}; };
  auto value_tile = [&](int step) { return ValueTile{stage(step) + KeyTile::BYTES}; };
  auto to_weights = [&](int tile) {  // from products to weights
    hold(s[0]);
    hide(s, tile * ACROSS, rows, bounds, p);
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 4; n++) s[0][part][n] = exp2_fast(s[0][part][n] * factor - high[n / 2]);
  };

  auto differentiate = [&] {  // from weights to the gradients of scores
    wait_products<0>();
    hold(d), tile_sums.add_to(sums[0]);
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 4; n++) s[0][part][n] *= d[part][n] * product_unit - less[n / 2];
    powers.apply(s[0], sums[0]);
    gradients.pack(s[0]);
  };

  if (tile < past_tile) {
    wait_for_tiles();
    if (tile + 1 < past_tile) fetch(1, tile + 1);
    commit_copies();
    hold(s[0]), hold(d);
    begin_products();
    multiply_rows(s[0], queries, row, key_tile(0));
    commit_products();
    multiply_rows(d, cotangents, row, value_tile(0));
    commit_products();
    wait_products<0>();
    hold(d);
    to_weights(tile);
    int step = 0;
    for (; tile + 1 < past_tile; tile++, step++) {
      differentiate();
      wait_for_tiles();
      if (tile + 2 < past_tile) fetch(step + 2, tile + 2);
      commit_copies();
      tile_sums.multiply_first(sums[0], gradients, key_tile(step));
      hold(s[0]), hold(d), gradients.hold(), tile_sums.hold_for_products(sums[0]);
      begin_products();
      multiply_rows(s[0], queries, row, key_tile(step + 1));
      commit_products();
      tile_sums.multiply(sums[0], gradients, key_tile(step));
      commit_products();
      multiply_rows(d, cotangents, row, value_tile(step + 1));
      commit_products();
      wait_products<2>();
      to_weights(tile + 1);
    }
    differentiate();
    tile_sums.multiply_first(sums[0], gradients, key_tile(step));
    gradients.hold(), tile_sums.hold_for_products(sums[0]);
    begin_products();
    tile_sums.multiply(sums[0], gradients, key_tile(step));
    commit_products();
    wait_products<0>();
    tile_sums.add_to(sums[0]);
  }
  wait_copies<0>();
  powers.undo(sums[0], k_source.unit);
  finish(sums, dout, q, k, v, shift, delta, dq, rows, o, p);
}
EXPORT(warpgroup_queries)
